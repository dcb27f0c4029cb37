"""Which of llama.cpp's pre-tokenizers a tokenizer.json needs.

llama.cpp does not read the pattern that a tokenizer splits text with: it knows a list of names. Its
converter recognises a tokenizer by encoding a fixed text and hashing the ids. The same is done here, without
transformers. Fine-tunes that changed the vocabulary have other hashes: they are recognised by their pattern.

Source: conversion/base.py (get_vocab_base_pre) and llama-vocab.cpp of llama.cpp 0c1e57098.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from edgekit.errors import ModelFileError
from export.student.byte_level_bpe import encode

__all__ = ["PROBE_TEXT", "probe_hash", "recognize"]

PROBE_TEXT: Final = (
    "\n \n\n \n\n\n \t \t\t \t\n  \n   \n    \n     \n🚀 (normal) 😶\u200d🌫️ (multiple emojis concatenated) "
    "✅ 🦙🦙 3 33 333 3333 33333 333333 3333333 33333333 3.3 3..3 3...3 "
    "កាន់តែពិសេសអាច😁 ?我想在apple工作1314151天～ "  # noqa: RUF001
    "------======= нещо на Български ''''''```````\"\"\"\"......!!!!!!?????? "
    "I've been 'told he's there, 'RE you sure? 'M not sure I'll make it, 'D you like some tea? We'Ve a'lL"
)
"""The text whose encoding names a tokenizer. It must not change: the hashes are of it."""

_NAMES: Final = MappingProxyType(
    {
        "b3f499bb4255f8ca19fccd664443283318f2fd2414d5e0b040fbdd0cc195d6c5": "deepseek-r1-qwen",
        "e636dc30a262dcc0d8c323492e32ae2b70728f4df7dfe9737d9f920a282b8aea": "qwen2",
        "d4540891389ea895b53b399da6ac824becc30f2fba0e9ddbb98f92e55ca0e97c": "qwen2",
        "0ef9807a4087ebef797fc749390439009c3b9eda9ad1a097abbe738f486c01e5": "llama-bpe",
        "c136ed14d01c2745d4f60a9596ae66800e2b61fa45643e72436041855ad4089d": "smaug-bpe",
        "855059429035d75a914d1eda9f10a876752e281a054a7a3d421ef0533e5b6249": "smollm",
        "049ecf7629871e3041641907f3de7c733e4dbfdc736f57d882ba0b0845599754": "deepseek-llm",
        "347715f544604f9118bb75ed199f68779f423cabb20db6de6f31b908d04d7821": "deepseek-coder",
        "63b97e4253352e6f357cc59ea5b583e3a680eaeaf2632188c2b952de2588485e": "tekken",
        "9d032fcbd5501f4a38150912590928bfb36091efb5df11b8e2124b0390e3fb1e": "falcon3",
    }
)

_QWEN_PATTERN: Final = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_LLAMA3_PATTERN: Final = _QWEN_PATTERN.replace(r"|\p{N}|", r"|\p{N}{1,3}|")

# (pattern, ignore_merges) to name: llama.cpp ties both to the name.
_PATTERNS: Final = MappingProxyType({(_QWEN_PATTERN, False): "qwen2", (_LLAMA3_PATTERN, True): "llama-bpe"})


def recognize(path: Path, tokenizer: Mapping[str, Any]) -> str:
    """The name for `tokenizer.ggml.pre`.

    Raises:
        ModelFileError: llama.cpp has no such pre-tokenizer, or none that is known here.
    """
    digest = probe_hash(tokenizer)
    name = _NAMES.get(digest) or _PATTERNS.get(_pattern(tokenizer))
    if name is None:
        known = ", ".join(sorted(set(_NAMES.values())))
        raise ModelFileError(
            f"{path}: the way this tokenizer splits text is not known (hash {digest}); known are {known}",
            hint="convert the checkpoint with llama.cpp's convert_hf_to_gguf.py and export the GGUF",
        )
    return name


def probe_hash(tokenizer: Mapping[str, Any]) -> str:
    """sha256 of the probe text's token ids, written as a Python list."""
    return hashlib.sha256(str(encode(tokenizer, PROBE_TEXT)).encode()).hexdigest()


def _pattern(tokenizer: Mapping[str, Any]) -> tuple[str, bool]:
    text = ""
    stages = tokenizer.get("pre_tokenizer") or {}
    for stage in stages.get("pretokenizers", [stages]):
        if stage.get("type") == "Split":
            text += stage["pattern"].get("Regex", json.dumps(stage))
        elif stage.get("type") != "ByteLevel" or stage.get("use_regex", True):
            text += json.dumps(stage)
    return text, bool(tokenizer["model"].get("ignore_merges"))
