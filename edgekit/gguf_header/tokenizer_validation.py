"""Checks of a GGUF's tokenizer metadata, where llama.cpp has most of its ways to abort."""

from __future__ import annotations

from typing import Final, NoReturn

from edgekit.errors import ModelFileError
from edgekit.gguf_header.reader import GgufHeader

__all__ = ["validate_tokenizer"]

KNOWN_MODELS: Final = ("gpt2", "llama")
"""`tokenizer.ggml.model`: byte-level BPE, and SentencePiece."""

_TURN_IDS: Final = ("bos", "eos", "eot", "eom")


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
    if model == "llama":
        _validate_bytes(header, tokens)
    _validate_special(header, len(tokens))
    return len(tokens)


def _validate_unique(header: GgufHeader, tokens: tuple[object, ...]) -> None:
    # llama.cpp asserts that no two tokens have the same text. It reads them as C strings, up to a zero byte,
    # and gives empty ones a name.
    texts = [_as_read(index, str(token)) for index, token in enumerate(tokens)]
    if len(set(texts)) == len(texts):
        return
    seen: dict[str, int] = {}
    for index, text in enumerate(texts):
        if text in seen:
            _fail(header, f"tokenizer.ggml.tokens: {text!r} is at {seen[text]} and at {index}")
        seen[text] = index


def _as_read(index: int, token: str) -> str:
    return token.partition("\0")[0] or f"[EMPTY_{index}]"


def _validate_bytes(header: GgufHeader, tokens: tuple[object, ...]) -> None:
    """A SentencePiece vocabulary falls back to single bytes; llama.cpp dies where one is missing."""
    present = set(tokens)
    for byte in range(256):
        if f"<0x{byte:02X}>" not in present and (byte >= 0x80 or chr(byte) not in present):
            _fail(header, f"tokenizer.ggml.tokens has no token for byte <0x{byte:02X}>")


def _validate_special(header: GgufHeader, count: int) -> None:
    for key, kind in header.value_types.items():
        if key.startswith("tokenizer.ggml.add_") and kind != "BOOL":
            _fail(header, f"metadata key '{key}' is of type {kind}, not BOOL")
        if key.startswith("tokenizer.ggml.") and key.endswith("_token_id") and kind != "UINT32":
            _fail(header, f"metadata key '{key}' is of type {kind}, not UINT32")
    for name in _TURN_IDS:
        # llama.cpp would take its default instead: a token that has nothing to do with this model.
        value = header.metadata.get(f"tokenizer.ggml.{name}_token_id", 0)
        if isinstance(value, int) and value >= count:
            _fail(header, f"tokenizer.ggml.{name}_token_id is {value}; the vocabulary has {count} tokens")
    _array(header, "tokenizer.ggml.suppress_tokens", "INT32")


def _array(header: GgufHeader, key: str, *kinds: str) -> tuple[object, ...] | None:
    value = header.metadata.get(key)
    if value is None:
        return None
    if not isinstance(value, tuple) or header.value_types[key] not in {f"ARRAY[{kind}]" for kind in kinds}:
        _fail(header, f"metadata key '{key}' is of type {header.value_types[key]}, not ARRAY[{kinds[0]}]")
    return value


def _fail(header: GgufHeader, problem: str) -> NoReturn:
    raise ModelFileError(f"{header.path}: {problem}")
