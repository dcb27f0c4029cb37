from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from edgekit.engine.onnx.tokenizer import BundleTokenizer
from edgekit.errors import ModelFileError

TEXTS = (
    "The capital of France is Paris.",
    "  two spaces\tand\r\nlines\n\n",
    "naïve façade — “quoted” 北京 👩‍🚀 e\u0301",
    "def f(x):\n    return x ** 2  # 1,234.5",
    "a\0b",
)


@pytest.fixture(scope="module")
def tokenizer(student_onnx: Path) -> BundleTokenizer:
    return BundleTokenizer(student_onnx / "tokenizer.json")


@pytest.mark.parametrize("text", TEXTS)
def test_piece__pieces_of_a_text_are_its_bytes(text: str, tokenizer: BundleTokenizer) -> None:
    tokens = tokenizer.tokenize(text, add_special=False, parse_special=True)
    assert b"".join(map(tokenizer.piece, tokens)) == text.encode()


def test_piece__control_tokens_are_no_text_but_special_ones_have_one(tokenizer: BundleTokenizer) -> None:
    (token,) = tokenizer.tokenize("<|im_end|>", add_special=False, parse_special=True)
    assert tokenizer.piece(token) == b""
    assert tokenizer.special(token) == "<|im_end|>"
    (plain,) = tokenizer.tokenize("the", add_special=False, parse_special=True)
    assert tokenizer.special(plain) == ""


def test_piece__id_without_a_token_is_empty(tokenizer: BundleTokenizer) -> None:
    assert tokenizer.piece(10**6) == b""


def test_tokenize__special_tokens_are_characters_when_not_parsed(tokenizer: BundleTokenizer) -> None:
    tokens = tokenizer.tokenize("<|im_end|>", add_special=False, parse_special=False)
    assert len(tokens) > 1
    assert b"".join(map(tokenizer.piece, tokens)) == b"<|im_end|>"


def test_tokenize__half_of_a_surrogate_pair_is_no_error(tokenizer: BundleTokenizer) -> None:
    assert tokenizer.tokenize("a\ud83d", add_special=False, parse_special=True)


def test_tokenizer__reasoning_tags_are_spoken_and_bos_is_added(tiny_onnx: Path) -> None:
    tokenizer = BundleTokenizer(tiny_onnx / "tokenizer.json")
    (begin,) = tokenizer.tokenize("", add_special=True, parse_special=True)
    assert tokenizer.special(begin) == "<｜begin▁of▁sentence｜>"
    (think,) = tokenizer.tokenize("<think>", add_special=False, parse_special=True)
    assert tokenizer.piece(think) == b"<think>"
    assert tokenizer.special(think) == "<think>"


def test_tokenizer__neither_cuts_nor_fills(tiny_onnx: Path, tmp_path: Path) -> None:
    settings = json.loads((tiny_onnx / "tokenizer.json").read_text())
    settings["truncation"] = {
        "direction": "Right",
        "max_length": 4,
        "strategy": "LongestFirst",
        "stride": 0,
    }
    (tmp_path / "tokenizer.json").write_text(json.dumps(settings))
    tokenizer = BundleTokenizer(tmp_path / "tokenizer.json")
    assert len(tokenizer.tokenize("0123456789", add_special=False, parse_special=True)) == 10


def test_piece__sentencepiece_spaces_and_bytes(tmp_path: Path) -> None:
    model: dict[str, Any] = {
        "type": "BPE",
        "vocab": {"<unk>": 0, "<0xE2>": 1, "▁the": 2, "a": 3},
        "merges": [],
        "unk_token": "<unk>",
        "byte_fallback": True,
    }
    decoder = {"type": "Sequence", "decoders": [{"type": "ByteFallback"}, {"type": "Fuse"}]}
    (tmp_path / "tokenizer.json").write_text(
        json.dumps({"version": "1.0", "added_tokens": [], "model": model, "decoder": decoder})
    )
    tokenizer = BundleTokenizer(tmp_path / "tokenizer.json")
    assert [tokenizer.piece(token) for token in (1, 2, 3)] == [b"\xe2", b" the", b"a"]


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"model": {"type": "BPE"}}'])
def test_tokenizer__damaged_file_is_refused_by_name(content: str, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(ModelFileError, match=r"tokenizer\.json"):
        BundleTokenizer(tmp_path / "tokenizer.json")
