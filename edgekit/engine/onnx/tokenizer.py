"""tokenizer.json, by Hugging Face's own library: text to token ids, token ids to bytes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import tokenizers

from edgekit.engine.onnx.json_files import read_json
from edgekit.engine.text import SPOKEN_TOKENS
from edgekit.errors import ModelFileError

__all__ = ["BundleTokenizer"]

_BYTE: Final = re.compile(r"<0x([0-9A-F]{2})>")
"""SentencePiece's way to write a byte that no piece has."""
_SPACE: Final = "▁"


class BundleTokenizer:
    """A bundle's tokenizer.

    Args:
        path: tokenizer.json.

    Raises:
        ModelFileError: the file is missing or damaged.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._json = read_json(path)
        self._tokenizer = self._load()
        self._byte_level = _mentions(self._json.get("decoder"), "ByteLevel")
        self._added = self._tokenizer.get_added_tokens_decoder()

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        """Token ids of a text. Callable from any thread.

        Args:
            add_special: add what the model wants around a prompt.
            parse_special: take special tokens in the text for what they stand for, not for characters.
        """
        tokenizer = self._tokenizer if parse_special else self._literal
        # The library takes no text that is not valid UTF-8.
        valid = text.encode("utf-8", "replace").decode()
        ids: list[int] = tokenizer.encode(valid, add_special_tokens=add_special).ids
        return ids

    def piece(self, token: int) -> bytes:
        """The bytes that a token stands for; empty for control tokens, and for ids that no token has."""
        added = self._added.get(token)
        if added is not None:
            hidden = _is_control(added) and added.content not in SPOKEN_TOKENS
            return b"" if hidden else str(added.content).encode()
        text: str | None = self._tokenizer.id_to_token(token)
        if text is None:
            return b""
        if self._byte_level and all(character in _BYTES for character in text):
            return bytes(_BYTES[character] for character in text)
        if byte := _BYTE.fullmatch(text):
            return bytes([int(byte[1], 16)])
        return text.replace(_SPACE, " ").encode()

    def special(self, token: int) -> str:
        """The text of a token that is more than text, for the model or for us; empty for all others."""
        added = self._added.get(token)
        if added is None or not (_is_control(added) or added.content in SPOKEN_TOKENS):
            return ""
        return str(added.content)

    def id_of(self, text: str) -> int | None:
        """The token of exactly this text."""
        token: int | None = self._tokenizer.token_to_id(text)
        return token

    @cached_property
    def _literal(self) -> Any:
        """The tokenizer that finds no special tokens in text."""
        tokenizer = self._load()
        tokenizer.encode_special_tokens = True
        return tokenizer

    def _load(self) -> Any:
        try:
            tokenizer = tokenizers.Tokenizer.from_file(str(self._path))
        except Exception as error:  # the library raises nothing more exact
            raise ModelFileError(f"{self._path}: not a tokenizer: {error}") from error
        # What training wanted; a prompt is neither cut nor filled up.
        tokenizer.no_truncation()
        tokenizer.no_padding()
        return tokenizer


def _is_control(token: Any) -> bool:
    """Whether an added token is no text: marked so, or looking like it, as llama.cpp's converter has it."""
    text = token.content
    pairs = (("<|", "|>"), ("<\uff5c", "\uff5c>"))
    return token.special or any(text.startswith(start) and text.endswith(end) for start, end in pairs)


def _mentions(part: Any, kind: str) -> bool:
    """Whether a part of tokenizer.json is of a kind, or is a sequence that has one of it."""
    if not isinstance(part, Mapping):
        return False
    steps = part.get("decoders") or part.get("pretokenizers") or ()
    return part.get("type") == kind or any(_mentions(step, kind) for step in steps)


def _byte_alphabet() -> dict[str, int]:
    """The characters that stand for bytes in byte-level vocabularies (GPT-2, encoder.py)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {
        chr(0x100 + index): byte for index, byte in enumerate(others)
    }


_BYTES: Final = _byte_alphabet()
