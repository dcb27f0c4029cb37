"""The guard passes real tokenizers, with what llama.cpp is known to do otherwise, and fails wrong ones."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any

import pytest

from edgekit.errors import ExportError, ModelFileError
from export.student import CheckpointStudent, open_student
from export.targets.gguf import write_float_gguf
from export.tokenizer_guard.guard import check_gguf_tokenizer, check_onnx_tokenizer

BOS = "<\uff5cbegin\u2581of\u2581sentence\uff5c>"
NFC_NOTE = "llama.cpp does not normalize"


def _open(path: Path) -> CheckpointStudent:
    student = open_student(path)
    assert isinstance(student, CheckpointStudent)
    return student


def _gguf(checkpoint: Path, path: Path, change: Callable[[Any], Mapping[str, Any]] | None = None) -> Path:
    """A GGUF of the checkpoint; `change` gives fields of its tokenizer that are to be written wrong."""
    student = _open(checkpoint)
    if change is not None:
        student.__dict__["tokenizer"] = dataclasses.replace(student.tokenizer, **change(student.tokenizer))
    write_float_gguf(student, path)
    return path


def _change_tokenizer(checkpoint: Path, *, merges: tuple[tuple[str, str], ...] = (), **fields: Any) -> None:
    """Replace fields of tokenizer.json; put merges and their tokens in the place of the last ones."""
    path = checkpoint / "tokenizer.json"
    tokenizer = {**json.loads(path.read_text()), **fields}
    model = tokenizer["model"]
    for left, right in merges:
        index = model["vocab"].pop("".join(model["merges"].pop()))
        model["vocab"][left + right] = index
        model["merges"].insert(0, [left, right])
    path.write_text(json.dumps(tokenizer))


def _complete(checkpoint: Path) -> Path:
    """All fields that Hugging Face's library writes, and insists on."""
    tokenizer = json.loads((checkpoint / "tokenizer.json").read_text())
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    added = [{**flags, **token} for token in tokenizer["added_tokens"]]
    first = tokenizer["post_processor"]["single"][0]
    pair = [first, *({"Sequence": {"id": text, "type_id": 0}} for text in "AB")]
    post = {**tokenizer["post_processor"], "pair": pair}
    byte_level = {"add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    _change_tokenizer(
        checkpoint, added_tokens=added, post_processor=post, decoder={"type": "ByteLevel", **byte_level}
    )
    return checkpoint


@pytest.fixture
def checkpoint(small: Path) -> Path:
    """A small Qwen2 checkpoint with a tokenizer.json that Hugging Face's library loads."""
    return _complete(small)


def _set_template(checkpoint: Path, template: str) -> None:
    path = checkpoint / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "chat_template": template}))


def test_check_gguf_tokenizer__the_r1_tokenizer_comes_out_whole(
    r1_family: Callable[[str], Path], tmp_path: Path
) -> None:
    checkpoint = r1_family("R1-0528-Tiny-Qwen3")
    notes = check_gguf_tokenizer(_gguf(checkpoint, tmp_path / "model.gguf"), _open(checkpoint))
    # Both are llama.cpp's: it has no NFC, and it makes a control token of a plain one by its text.
    assert len(notes) == 2
    assert any(note.startswith(NFC_NOTE) for note in notes)
    assert any("'</s>'" in note for note in notes)


@pytest.mark.parametrize("family", ["R1-Tiny-Llama-1M", "R1-0528-Tiny-Qwen3"])
def test_check_gguf_tokenizer__holds_for_the_other_families(
    family: str, tiny: ModuleType, tmp_path: Path
) -> None:
    checkpoint = _complete(tiny.write_small(tmp_path / family, family))
    notes = check_gguf_tokenizer(_gguf(checkpoint, tmp_path / "model.gguf"), _open(checkpoint))
    assert [note.startswith(NFC_NOTE) for note in notes] == [True]


def test_check_gguf_tokenizer__another_pre_tokenizer_is_found(checkpoint: Path, tmp_path: Path) -> None:
    """Qwen's tokenizer takes digits one by one: it never sees that merge, GPT-2's does."""
    _change_tokenizer(checkpoint, merges=(("1", "2"),))
    check_gguf_tokenizer(_gguf(checkpoint, tmp_path / "right.gguf"), _open(checkpoint))
    gguf = _gguf(checkpoint, tmp_path / "model.gguf", lambda _: {"pre": "gpt-2"})
    said = r"digits: llama\.cpp splits '12 123.* into \[… 259, .*\]; tokenizer\.json into \[… "
    with pytest.raises(ExportError, match=said) as failure:
        check_gguf_tokenizer(gguf, _open(checkpoint))
    assert str(checkpoint) in str(failure.value.hint)
    assert len(failure.value.message) < 400


def test_check_gguf_tokenizer__a_lost_merge_is_found(checkpoint: Path, tmp_path: Path) -> None:
    whole = _gguf(checkpoint, tmp_path / "whole.gguf")
    assert [note.startswith(NFC_NOTE) for note in check_gguf_tokenizer(whole, _open(checkpoint))] == [True]
    gguf = _gguf(checkpoint, tmp_path / "model.gguf", lambda tokenizer: {"merges": tokenizer.merges[:-1]})
    with pytest.raises(ExportError, match=r"splits 'in"):
        check_gguf_tokenizer(gguf, _open(checkpoint))


def test_check_gguf_tokenizer__a_merge_that_only_its_token_shows_is_found(
    checkpoint: Path, tmp_path: Path
) -> None:
    """No hard text has it: the sweep over the vocabulary does."""
    _change_tokenizer(checkpoint, merges=(("Q", "Z"),))
    gguf = _gguf(checkpoint, tmp_path / "model.gguf", lambda tokenizer: {"merges": tokenizer.merges[1:]})
    with pytest.raises(ExportError, match=r"token 259 by itself: llama.cpp splits 'QZ'"):
        check_gguf_tokenizer(gguf, _open(checkpoint))


@pytest.mark.parametrize(
    ("token", "kind", "said"),
    [("<\uff5cUser\uff5c>", 1, "special in\ntokenizer.json"), ("in", 3, "special in the export")],
)
def test_check_gguf_tokenizer__a_token_of_the_wrong_type_is_found(
    token: str, kind: int, said: str, checkpoint: Path, tmp_path: Path
) -> None:
    def change(tokenizer: Any) -> dict[str, Any]:
        index = tokenizer.tokens.index(token)
        return {"types": (*tokenizer.types[:index], kind, *tokenizer.types[index + 1 :])}

    gguf = _gguf(checkpoint, tmp_path / "model.gguf", change)
    with pytest.raises(ExportError, match=f"token [0-9]+ '{token}'".replace("|", r"\|")) as failure:
        check_gguf_tokenizer(gguf, _open(checkpoint))
    assert said.replace("\n", " ") in failure.value.message


@pytest.mark.parametrize("template", ["\n{{ bos_token }}", "{{ bos_token }}{{ bos_token }}"])
def test_check_gguf_tokenizer__a_doubled_bos_is_found(
    template: str, checkpoint: Path, tmp_path: Path
) -> None:
    _set_template(checkpoint, template + "{% for m in messages %}{{ m['content'] }}{% endfor %}")
    with pytest.raises(ExportError, match="BOS twice"):
        check_gguf_tokenizer(_gguf(checkpoint, tmp_path / "model.gguf"), _open(checkpoint))


def test_check_gguf_tokenizer__a_template_without_bos_is_noted(checkpoint: Path, tmp_path: Path) -> None:
    _set_template(checkpoint, "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}")
    notes = check_gguf_tokenizer(_gguf(checkpoint, tmp_path / "model.gguf"), _open(checkpoint))
    assert any("writes no BOS" in note for note in notes)


def test_check_gguf_tokenizer__an_eos_after_the_prompt_is_found(checkpoint: Path, tmp_path: Path) -> None:
    def change(tokenizer: Any) -> dict[str, Any]:
        added = MappingProxyType({**tokenizer.special.added, "eos": True})
        return {"special": dataclasses.replace(tokenizer.special, added=added)}

    gguf = _gguf(checkpoint, tmp_path / "model.gguf", change)
    with pytest.raises(ExportError, match="goes around a prompt") as failure:
        check_gguf_tokenizer(gguf, _open(checkpoint))
    assert "add_eos_token" in str(failure.value.hint)


def test_check_gguf_tokenizer__two_templates_that_differ_are_found(checkpoint: Path, tmp_path: Path) -> None:
    """transformers takes the file of its own, llama.cpp's converter the entry in tokenizer_config.json."""
    (checkpoint / "chat_template.jinja").write_text("{{ bos_token }}{{ messages[0]['content'] }} ###")
    with pytest.raises(ExportError, match="renders 'a question' otherwise: at character 21"):
        check_gguf_tokenizer(_gguf(checkpoint, tmp_path / "model.gguf"), _open(checkpoint))


def test_check_gguf_tokenizer__a_lost_template_is_found(checkpoint: Path, tmp_path: Path) -> None:
    gguf = _gguf(checkpoint, tmp_path / "model.gguf", lambda _: {"chat_template": None})
    with pytest.raises(ExportError, match="only the checkpoint has a chat template"):
        check_gguf_tokenizer(gguf, _open(checkpoint))


def test_check_gguf_tokenizer__a_template_that_refuses_is_alike_on_both_sides(
    checkpoint: Path, tmp_path: Path
) -> None:
    refusing = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    _set_template(checkpoint, refusing + "{{ bos_token }}{{ messages[-1]['content'] }}")
    assert len(check_gguf_tokenizer(_gguf(checkpoint, tmp_path / "model.gguf"), _open(checkpoint))) == 1
    gguf = _gguf(
        checkpoint,
        tmp_path / "lenient.gguf",
        lambda t: {"chat_template": t.chat_template.replace(refusing, "")},
    )
    with pytest.raises(ExportError, match="the checkpoint's chat template refuses 'a system prompt'"):
        check_gguf_tokenizer(gguf, _open(checkpoint))


def test_check_gguf_tokenizer__a_vocabulary_that_llama_cpp_dies_of_is_an_error(
    checkpoint: Path, tmp_path: Path
) -> None:
    gguf = _gguf(checkpoint, tmp_path / "model.gguf", lambda t: {"tokens": (t.tokens[1], *t.tokens[1:])})
    with pytest.raises(ExportError, match="the tokenizer cannot be checked"):
        check_gguf_tokenizer(gguf, _open(checkpoint))


def test_check_gguf_tokenizer__a_damaged_tokenizer_json_is_an_error(checkpoint: Path, tmp_path: Path) -> None:
    gguf, student = _gguf(checkpoint, tmp_path / "model.gguf"), _open(checkpoint)
    (checkpoint / "tokenizer.json").write_text('{"model": {}}')
    with pytest.raises(ModelFileError, match="does not load"):
        check_gguf_tokenizer(gguf, student)


def _onnx_directory(checkpoint: Path, directory: Path) -> Path:
    directory.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(checkpoint / name, directory)
    return directory


def _add_genai_config(directory: Path) -> None:
    ids = {"bos_token_id": 263, "eos_token_id": 260, "pad_token_id": 260}
    decoder = {"filename": "model.onnx", "head_size": 16, "num_hidden_layers": 2, "session_options": {}}
    decoder |= {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}
    decoder |= {"inputs": {}, "outputs": {}}
    model = {"type": "qwen2", "vocab_size": 272, "context_length": 64, **ids, "decoder": decoder}
    (directory / "genai_config.json").write_text(json.dumps({"model": model, "search": {}}))


def test_check_onnx_tokenizer__onnxruntime_genais_limits_are_noted(checkpoint: Path, tmp_path: Path) -> None:
    # Runs of white space are one token each: where they are cut shows.
    _change_tokenizer(checkpoint, merges=(("\u010a", "\u0120\u010a"), ("\u0120", "\u010a")))
    directory = _onnx_directory(checkpoint, tmp_path / "onnx")
    _add_genai_config(directory)
    notes = check_onnx_tokenizer(directory, _open(checkpoint))
    assert all(note.startswith("onnxruntime-genai") for note in notes)
    for limit in ("NUL", "does not normalize", "runs of white space", "renders the chat template"):
        assert any(limit in note for note in notes), limit


def test_check_onnx_tokenizer__onnxruntime_genais_numerals_are_noted(
    checkpoint: Path, tmp_path: Path
) -> None:
    """As SmolLM2's tokenizer does it. The token is a space with the first byte of what follows it."""
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    steps = [{"type": "Digits", "individual_digits": True}, byte_level]
    _change_tokenizer(
        checkpoint, merges=(("\u0120", "\u00c2"),), pre_tokenizer={"type": "Sequence", "pretokenizers": steps}
    )
    directory = _onnx_directory(checkpoint, tmp_path / "onnx")
    _add_genai_config(directory)
    notes = check_onnx_tokenizer(directory, _open(checkpoint))
    assert any("numerals such as \u00bd" in note for note in notes)


def test_check_onnx_tokenizer__what_is_no_known_limit_of_genai_is_an_error(
    checkpoint: Path, tmp_path: Path
) -> None:
    """By the decoder it takes a byte-level tokenizer for SentencePiece, and finds no tokens."""
    replace = {"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "}
    decoders = [{"type": "ByteFallback"}, {"type": "Fuse"}, replace]
    _change_tokenizer(checkpoint, decoder={"type": "Sequence", "decoders": decoders})
    directory = _onnx_directory(checkpoint, tmp_path / "onnx")
    _add_genai_config(directory)
    with pytest.raises(ExportError, match=r"onnxruntime-genai splits .* into \["):
        check_onnx_tokenizer(directory, _open(checkpoint))


def test_check_onnx_tokenizer__another_tokenizer_is_found(checkpoint: Path, tmp_path: Path) -> None:
    directory = _onnx_directory(checkpoint, tmp_path / "onnx")
    assert check_onnx_tokenizer(directory, _open(checkpoint)) == ()
    tokenizer = json.loads((checkpoint / "tokenizer.json").read_text())
    tokenizer["normalizer"] = None
    (directory / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(ExportError, match="combining marks: tokenizers splits"):
        check_onnx_tokenizer(directory, _open(checkpoint))


def test_check_onnx_tokenizer__a_lost_template_is_found(checkpoint: Path, tmp_path: Path) -> None:
    directory = _onnx_directory(checkpoint, tmp_path / "onnx")
    (directory / "tokenizer_config.json").write_text(json.dumps({"bos_token": BOS}))
    with pytest.raises(ExportError, match="only the checkpoint has a chat template"):
        check_onnx_tokenizer(directory, _open(checkpoint))


def test_check_onnx_tokenizer__a_tokenizer_that_genai_refuses_is_an_error(
    checkpoint: Path, tmp_path: Path
) -> None:
    directory = _onnx_directory(checkpoint, tmp_path / "onnx")
    (directory / "genai_config.json").write_text("{}")
    with pytest.raises(ExportError, match="onnxruntime-genai does not load the tokenizer"):
        check_onnx_tokenizer(directory, _open(checkpoint))
