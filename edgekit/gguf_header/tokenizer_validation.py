"""Checks of a GGUF's tokenizer metadata, where llama.cpp has most of its ways to abort."""

from __future__ import annotations

from typing import Final, NoReturn

from edgekit.errors import ModelFileError
from edgekit.gguf_header.reader import GgufHeader

__all__ = ["validate_tokenizer"]

KNOWN_MODELS: Final = ("gpt2", "llama")
"""`tokenizer.ggml.model`: byte-level BPE, and SentencePiece."""

_SPECIAL_IDS: Final = ("bos", "eos", "eot", "eom", "unknown", "seperator", "padding", "mask")


def validate_tokenizer(header: GgufHeader) -> int:
    """Check the vocabulary and return its length.

    Raises:
        ModelFileError: what is wrong, with the metadata key.
    """
    model = header.metadata.get("tokenizer.ggml.model")
    if model not in KNOWN_MODELS:
        _fail(header, f"tokenizer.ggml.model is {model!r}; known are {', '.join(KNOWN_MODELS)}")
    tokens = _array(header, "tokenizer.ggml.tokens", "STRING")
    if tokens is None or not tokens:
        _fail(header, "the vocabulary tokenizer.ggml.tokens is missing or empty")
    for key, kinds in (("scores", ("FLOAT32", "INT32")), ("token_type", ("INT32",))):
        values = _array(header, f"tokenizer.ggml.{key}", *kinds)
        if values is not None and len(values) != len(tokens):
            _fail(header, f"tokenizer.ggml.{key} has {len(values)} entries for {len(tokens)} tokens")
    _validate_unique(header, tokens)
    if _array(header, "tokenizer.ggml.merges", "STRING") is None and model == "gpt2":
        _fail(header, "tokenizer.ggml.merges is missing; a gpt2 (BPE) tokenizer needs it")
    _validate_special_ids(header, len(tokens))
    return len(tokens)


def _validate_unique(header: GgufHeader, tokens: tuple[object, ...]) -> None:
    if len(set(tokens)) == len(tokens):
        return
    seen: dict[object, int] = {}
    for index, token in enumerate(tokens):
        if token in seen and token:
            _fail(header, f"tokenizer.ggml.tokens: {token!r} is at {seen[token]} and at {index}")
        seen[token] = index


def _validate_special_ids(header: GgufHeader, count: int) -> None:
    for name in _SPECIAL_IDS:
        key = f"tokenizer.ggml.{name}_token_id"
        value = header.metadata.get(key)
        if value is None:
            continue
        if not isinstance(value, int) or header.value_types[key] != "UINT32":
            _fail(header, f"metadata key '{key}' is of type {header.value_types[key]}, not UINT32")
        if value >= count:
            _fail(header, f"{key} is {value}; the vocabulary has {count} tokens")


def _array(header: GgufHeader, key: str, *kinds: str) -> tuple[object, ...] | None:
    value = header.metadata.get(key)
    if value is None:
        return None
    if not isinstance(value, tuple) or header.value_types[key] not in {f"ARRAY[{kind}]" for kind in kinds}:
        _fail(header, f"metadata key '{key}' is of type {header.value_types[key]}, not ARRAY[{kinds[0]}]")
    return value


def _fail(header: GgufHeader, problem: str) -> NoReturn:
    raise ModelFileError(f"{header.path}: {problem}")
