"""Tokenizer files as GGUF metadata."""

from __future__ import annotations

import json
import lzma
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from edgekit.errors import ModelFileError
from edgekit.gguf_header import read_gguf_header
from export.student.byte_level_bpe import encode
from export.student.pretokenizer import probe_hash, recognize
from export.student.special_tokens import read_special_tokens
from export.student.tokenizer import read_tokenizer


@pytest.fixture(scope="module")
def r1(tiny: ModuleType) -> dict[str, Any]:
    with lzma.open(tiny.FIXTURES / "r1-tokenizer" / "tokenizer.json.xz", "rt", encoding="utf-8") as packed:
        tokenizer: dict[str, Any] = json.load(packed)
    return tokenizer


def test_probe_hash__of_the_r1_tokenizer_is_llama_cpps(r1: dict[str, Any]) -> None:
    assert probe_hash(r1) == "b3f499bb4255f8ca19fccd664443283318f2fd2414d5e0b040fbdd0cc195d6c5"
    assert recognize(Path("tokenizer.json"), r1) == "deepseek-r1-qwen"


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        # Encoded with the tokenizers library 0.22.2.
        ("Hello, world!", [151646, 9707, 11, 1879, 0]),
        ("<｜User｜>1234 我想<think>\n", [151646, 151644, 16, 17, 18, 19, 49434, 239, 99172, 151648, 198]),
        ("  tabs\tand 🚀", [151646, 220, 22398, 52477, 11162, 248, 222]),
    ],
)
def test_encode__agrees_with_the_tokenizers_library(text: str, ids: list[int], r1: dict[str, Any]) -> None:
    assert encode(r1, text) == ids


def test_recognize__changed_vocabulary_is_known_by_its_pattern(tiny: ModuleType) -> None:
    tokenizer = tiny.small_tokenizer()
    assert recognize(Path("tokenizer.json"), tokenizer) == "qwen2"
    split = tokenizer["pre_tokenizer"]["pretokenizers"][0]
    split["pattern"]["Regex"] = split["pattern"]["Regex"].replace(r"|\p{N}|", r"|\p{N}{1,3}|")
    tokenizer["model"]["ignore_merges"] = True
    assert recognize(Path("tokenizer.json"), tokenizer) == "llama-bpe"


def test_recognize__unknown_pattern_is_refused(tiny: ModuleType) -> None:
    tokenizer = tiny.small_tokenizer()
    tokenizer["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = r"\s+|\S+"
    with pytest.raises(
        ModelFileError, match=r"not known \(hash [0-9a-f]{64}\); known are .*deepseek-r1-qwen"
    ):
        recognize(Path("tokenizer.json"), tokenizer)


def _change(path: Path, change: Any) -> None:
    tokenizer = json.loads((path / "tokenizer.json").read_text())
    change(tokenizer)
    (path / "tokenizer.json").write_text(json.dumps(tokenizer))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t["model"].update(type="WordPiece"), "kind 'WordPiece'; known is byte-level BPE"),
        (lambda t: t["model"].update(byte_fallback=True), "kind 'SentencePiece BPE'"),
        (lambda t: t["model"].update(merges=[]), "no merges"),
        (lambda t: t.pop("model"), "no 'model'"),
        (
            lambda t: t["model"]["vocab"].update(extra=272),
            "'extra' has id 272; config.json's vocab_size is 272",
        ),
        (lambda t: t["model"]["vocab"].update({"[PAD270]": 271}), "two ids"),
        (lambda t: t["pre_tokenizer"].update(type="Metaspace"), "pre-tokenizer 'Metaspace' is not known"),
        (lambda t: t.update(normalizer={"type": "Lowercase"}), "normalizer 'Lowercase' is not known"),
        (lambda t: t["added_tokens"].append({"id": 3}), "malformed: KeyError"),
    ],
)
def test_read_tokenizer__what_cannot_be_converted_is_refused(change: Any, message: str, small: Path) -> None:
    _change(small, change)
    with pytest.raises(ModelFileError, match=message):
        read_tokenizer(small, vocabulary=272, config={})


def test_read_tokenizer__missing_and_sentencepiece_files_are_told_apart(small: Path) -> None:
    (small / "tokenizer.json").unlink()
    with pytest.raises(ModelFileError, match=r"tokenizer\.json is missing"):
        read_tokenizer(small, vocabulary=272, config={})
    (small / "tokenizer.model").touch()
    with pytest.raises(ModelFileError, match="SentencePiece"):
        read_tokenizer(small, vocabulary=272, config={})


def test_read_tokenizer__rows_without_a_token_are_padded(small: Path) -> None:
    tokenizer = read_tokenizer(small, vocabulary=300, config={})
    assert tokenizer.tokens[266] == "[PAD266]" and len(tokenizer.tokens) == 300
    assert tokenizer.types[260:267] == (3, 3, 3, 3, 4, 4, 5)


def test_read_tokenizer__template_file_is_used_where_the_config_has_none(small: Path) -> None:
    (small / "chat_template.jinja").write_text("{{ messages }}")
    assert read_tokenizer(small, vocabulary=272, config={}).chat_template != "{{ messages }}"
    config = json.loads((small / "tokenizer_config.json").read_text())
    del config["chat_template"]
    (small / "tokenizer_config.json").write_text(json.dumps(config))
    assert read_tokenizer(small, vocabulary=272, config={}).chat_template == "{{ messages }}"


def test_read_special_tokens__template_wins_over_add_bos_token() -> None:
    template = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<s>"}}, {"Sequence": {"id": "A"}}],
        "pair": [],
    }
    tokenizer = {"added_tokens": [{"id": 1, "content": "<s>"}], "post_processor": template}
    special = read_special_tokens(
        tokenizer,
        {"bos_token": "<s>", "add_bos_token": False},
        {"eos_token_id": 2, "pad_token_id": 99},
        count=10,
    )
    assert dict(special.added) == {"bos": True}
    assert dict(special.ids) == {"bos": 1, "eos": 2}


def test_probe_hash__of_smollms_tokenizer_is_llama_cpps(student: Path) -> None:
    # Rebuilt from the GGUF; the parts are those of HuggingFaceTB/SmolLM2-135M-Instruct's tokenizer.json.
    metadata = read_gguf_header(student).metadata
    tokens, types = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"]
    merges = metadata["tokenizer.ggml.merges"]
    assert isinstance(tokens, tuple) and isinstance(types, tuple) and isinstance(merges, tuple)
    tokenizer = {
        "added_tokens": [{"id": i, "content": t} for i, t in enumerate(tokens) if types[i] == 3],
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Digits", "individual_digits": True},
                {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True},
            ],
        },
        "model": {"type": "BPE", "vocab": {t: i for i, t in enumerate(tokens)}, "merges": list(merges)},
    }
    assert recognize(Path("tokenizer.json"), tokenizer) == metadata["tokenizer.ggml.pre"] == "smollm"
