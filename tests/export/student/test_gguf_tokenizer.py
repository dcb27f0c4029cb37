"""tokenizer.json rebuilt from GGUFs: by the tokenizers library, against llama.cpp and the original file."""

from __future__ import annotations

import ctypes
import json
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import gguf
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from edgekit.engine.llama_library import load_library
from edgekit.errors import ModelFileError
from edgekit.gguf_header import read_gguf_header
from export.student.byte_level_bpe import encode
from export.student.gguf_pretokenizers import PRETOKENIZERS
from export.student.gguf_tokenizer import tokenizer_files, tokenizer_from_gguf
from export.student.safetensors_dir import open_checkpoint
from export.student.tokenizer import read_tokenizer
from export.targets.gguf import write_float_gguf
from export.tokenizer_guard.hard_text import HARD_TEXTS, UNNORMALIZED_TEXTS

SPECIALS = "<|im_start|>user\n您好<|im_end|>\n<think> </think><｜User｜>x<｜end▁of▁sentence｜><|endoftext|>"
UNMERGED = "one zyxwv two"  # "\u0120zyxwv" is a token that no merge leads to
TEXTS = (*HARD_TEXTS.values(), SPECIALS, SPECIALS.join(HARD_TEXTS.values()))

Encode = Callable[[str, bool], list[int]]


def _llama_cpp(path: Path) -> Encode:
    """Tokenization by llama.cpp: of a text, and whether to put around it what the model wants."""
    api = load_library()
    parameters = api.llama_model_default_params()
    parameters.vocab_only = True
    model = api.llama_model_load_from_file(str(path).encode(), parameters)
    assert model
    vocabulary = api.llama_model_get_vocab(model)

    def tokens(text: str, add_special: bool) -> list[int]:
        data = text.encode()
        ids = (ctypes.c_int32 * (len(data) + 2))()
        count = api.llama_tokenize(vocabulary, data, len(data), ids, len(data) + 2, add_special, True)
        assert count >= 0
        return list(ids[:count])

    return tokens


def _files(path: Path) -> dict[str, bytes]:
    return tokenizer_files(path, tokenizer_from_gguf(read_gguf_header(path)), context_tokens=4096)


def _rebuilt(path: Path) -> Encode:
    tokenizer = Tokenizer.from_str(_files(path)["tokenizer.json"].decode())
    return lambda text, add_special: tokenizer.encode(text, add_special_tokens=add_special).ids


@pytest.fixture(scope="module")
def r1_gguf(r1_family: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The checkpoint with the R1 tokenizer, and its GGUF."""
    checkpoint = r1_family("R1-Tiny-Qwen2")
    path = tmp_path_factory.mktemp("gguf") / "r1.gguf"
    write_float_gguf(open_checkpoint(checkpoint), path)
    return checkpoint, path


def test_tokenizer_files__of_smollm2_tokenize_as_llama_cpp_does(student: Path) -> None:
    wanted, got = _llama_cpp(student), _rebuilt(student)
    for text in TEXTS:
        assert got(text, False) == wanted(text, False), text
    assert got("Hello", True) == wanted("Hello", True)
    # By the project's own encoder as well, which shares no code with the library.
    tokenizer = json.loads(_files(student)["tokenizer.json"])
    assert encode(tokenizer, TEXTS[-1]) == wanted(TEXTS[-1], False)


def test_tokenizer_files__of_r1_tokenize_as_the_original_file_does(r1_gguf: tuple[Path, Path]) -> None:
    checkpoint, path = r1_gguf
    original, got = Tokenizer.from_file(str(checkpoint / "tokenizer.json")), _rebuilt(path)
    for text in (*TEXTS, *UNNORMALIZED_TEXTS.values()):
        for add_special in (False, True):
            wanted = original.encode(text, add_special_tokens=add_special).ids
            assert got(text, add_special) == wanted, text


def test_tokenizer_files__of_r1_read_as_the_original_files_do(
    r1_gguf: tuple[Path, Path], tmp_path: Path
) -> None:
    checkpoint, path = r1_gguf
    for name, content in _files(path).items():
        (tmp_path / name).write_bytes(content)
    config = json.loads((checkpoint / "config.json").read_text())
    wanted = read_tokenizer(checkpoint, vocabulary=151936, config=config)
    assert read_tokenizer(tmp_path, vocabulary=151936, config=config) == wanted
    assert tokenizer_from_gguf(read_gguf_header(path)) == replace(
        wanted, special=tokenizer_from_gguf(read_gguf_header(path)).special
    )
    assert tokenizer_from_gguf(read_gguf_header(path)).special.ids == dict(wanted.special.ids)


def _vocabulary(texts: Iterable[str]) -> tuple[list[str], list[str]]:
    """Tokens and merges learned without any splitting: they cross every boundary that a splitter sets."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=3000, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([*texts, *texts], trainer)
    model = json.loads(tokenizer.to_str())["model"]
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    return [*sorted(model["vocab"], key=model["vocab"].get), "\u0120zyxwv"], merges


def _write_vocabulary(path: Path, pre: str, texts: list[str], **keys: Any) -> Path:
    tokens, merges = _vocabulary(texts)
    writer = gguf.GGUFWriter(path, "llama")
    for name in ("block_count", "context_length", "embedding_length", "feed_forward_length", "head_count"):
        getattr(writer, f"add_{name}")(64)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list([*tokens, "<|im_start|>", "<think>"])
    writer.add_token_types([1] * len(tokens) + [3, 4])
    writer.add_token_merges(merges)
    writer.add_bos_token_id(len(tokens))
    writer.add_eos_token_id(len(tokens))
    for name, value in keys.items():
        getattr(writer, name)(value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("pre", PRETOKENIZERS)
def test_tokenizer_files__split_as_llama_cpp_does(pre: str, tmp_path: Path) -> None:
    texts = list(HARD_TEXTS.values())
    if pre in ("deepseek-llm", "deepseek-coder"):
        # \s of llama.cpp has the separators of lines and paragraphs, that of the library's regular
        # expressions has not. The library is what these models were trained with.
        texts = [text.replace("\u2028", "").replace("\u2029", "") for text in texts]
    path = _write_vocabulary(tmp_path / "vocabulary.gguf", pre, texts)
    wanted, got = _llama_cpp(path), _rebuilt(path)
    for text in (*texts, SPECIALS, UNMERGED):
        assert got(text, False) == wanted(text, False), text
    assert got("Hello", True) == wanted("Hello", True)


def test_pretokenizers__are_told_apart_by_the_hard_texts(tmp_path: Path) -> None:
    # That the test above can tell them apart.
    path = _write_vocabulary(tmp_path / "vocabulary.gguf", "qwen2", list(HARD_TEXTS.values()))
    header, ids = read_gguf_header(path), {}
    for pre in PRETOKENIZERS:
        tokenizer = tokenizer_from_gguf(
            replace(header, metadata={**header.metadata, "tokenizer.ggml.pre": pre})
        )
        content = tokenizer_files(path, tokenizer, context_tokens=1)["tokenizer.json"].decode()
        library = Tokenizer.from_str(content)
        ids[pre] = str([library.encode(text).ids[-200:] for text in (*HARD_TEXTS.values(), UNMERGED)])
    assert ids["qwen2"] == ids["deepseek-r1-qwen"]
    assert len(set(ids.values())) == len(PRETOKENIZERS) - 1


@pytest.mark.parametrize(
    ("keys", "around"),
    [
        ({"add_add_bos_token": True}, (1, 0)),
        ({"add_add_bos_token": False}, (0, 0)),
        ({"add_add_bos_token": True, "add_add_eos_token": True}, (1, 1)),
        ({}, (0, 0)),
    ],
)
def test_tokenizer_files__put_the_same_tokens_around_a_text(
    keys: dict[str, bool], around: tuple[int, int], tmp_path: Path
) -> None:
    path = _write_vocabulary(tmp_path / "v.gguf", "qwen2", list(HARD_TEXTS.values()), **keys)
    got, special = _rebuilt(path)("Hello", True), tokenizer_from_gguf(read_gguf_header(path)).special
    assert got == _llama_cpp(path)("Hello", True)
    begin, end = [special.ids["bos"]] * around[0], [special.ids["eos"]] * around[1]
    assert got == [*begin, *_rebuilt(path)("Hello", False), *end]


def test_tokenizer_from_gguf__named_templates_are_kept(tmp_path: Path) -> None:
    templates = [{"name": "default", "template": "{{ a }}"}, {"name": "tool_use", "template": "{{ b }}"}]
    path = _write_vocabulary(tmp_path / "v.gguf", "qwen2", ["a b"], add_chat_template=templates)
    assert tokenizer_from_gguf(read_gguf_header(path)).chat_template == tuple(templates)
    assert json.loads(_files(path)["tokenizer_config.json"])["chat_template"] == templates


def test_tokenizer_from_gguf__what_cannot_be_rebuilt_is_refused(tmp_path: Path, tiny: ModuleType) -> None:
    path = _write_vocabulary(tmp_path / "v.gguf", "qwen2", ["a b"])
    header = read_gguf_header(path)
    for changes, message in (
        ({"tokenizer.ggml.model": "llama"}, "the tokenizer is of kind 'llama'; known is 'gpt2'"),
        ({"tokenizer.ggml.pre": "default"}, r"tokenizer\.ggml\.pre is 'default'"),
    ):
        with pytest.raises(ModelFileError, match=message):
            tokenizer_from_gguf(replace(header, metadata={**header.metadata, **changes}))
    viking = replace(header, metadata={**header.metadata, "tokenizer.ggml.pre": "viking"})
    with pytest.raises(ModelFileError, match="for the pre-tokenizer 'viking'; known are smollm, qwen2"):
        tokenizer_files(path, tokenizer_from_gguf(viking), context_tokens=1)
