"""Encodes a text with a tokenizer.json of the byte-level BPE kind, in plain Python.

Slow, and meant for one use: to recognise a tokenizer by what it makes of a known text. Knows the parts that
Llama 3, Qwen and DeepSeek tokenizers are made of, and refuses others.

Source: the tokenizers library's components and their JSON (https://huggingface.co/docs/tokenizers).
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from itertools import pairwise
from typing import Any, Final

from edgekit.errors import ModelFileError

__all__ = ["encode", "split_merge"]

# GPT-2's pattern, which the ByteLevel pre-tokenizer uses when use_regex is on.
GPT2_PATTERN: Final = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


def encode(tokenizer: Mapping[str, Any], text: str) -> list[int]:
    """Token ids of a text, special tokens around it included.

    Raises:
        ModelFileError: the tokenizer has a part that is not known here. The message names it.
    """
    model = tokenizer["model"]
    vocabulary: Mapping[str, int] = model["vocab"]
    ranks = {split_merge(merge): rank for rank, merge in enumerate(model["merges"])}
    added = {token["content"]: token["id"] for token in tokenizer.get("added_tokens", ())}
    split = _pre_tokenizer(tokenizer.get("pre_tokenizer"))
    ids = []
    for part, is_added in _split_added(text, added):
        if is_added:
            ids.append(added[part])
            continue
        for piece in split(_normalized(tokenizer.get("normalizer"), part)):
            if model.get("ignore_merges") and piece in vocabulary:
                ids.append(vocabulary[piece])
            else:
                ids.extend(vocabulary[symbol] for symbol in _merge(piece, ranks))
    return _post_processed(tokenizer.get("post_processor"), ids)


def split_merge(merge: str | list[str]) -> tuple[str, str]:
    """A merge as a pair. Older files write "a b", newer ones ["a", "b"]."""
    left, right = merge.split(" ", 1) if isinstance(merge, str) else merge
    return left, right


def _merge(piece: str, ranks: Mapping[tuple[str, str], int]) -> list[str]:
    symbols = list(piece)
    while len(symbols) > 1:
        pairs = [(ranks.get(pair), index) for index, pair in enumerate(pairwise(symbols))]
        known = [(rank, index) for rank, index in pairs if rank is not None]
        if not known:
            break
        _, index = min(known)
        symbols[index : index + 2] = [symbols[index] + symbols[index + 1]]
    return symbols


def _split_added(text: str, added: Iterable[str]) -> list[tuple[str, bool]]:
    """The text cut at added tokens, the longest first."""
    tokens = sorted((token for token in added if token), key=len, reverse=True)
    if not tokens:
        return [(text, False)]
    parts = re.split(f"({'|'.join(map(re.escape, tokens))})", text)
    return [(part, index % 2 == 1) for index, part in enumerate(parts) if part]


def _normalized(normalizer: Mapping[str, Any] | None, text: str) -> str:
    kind = normalizer["type"] if normalizer else None
    if kind is None:
        return text
    if kind in ("NFC", "NFD", "NFKC", "NFKD"):
        return unicodedata.normalize(kind, text)
    if kind == "Sequence" and normalizer:
        for part in normalizer["normalizers"]:
            text = _normalized(part, text)
        return text
    raise ModelFileError(f"tokenizer.json: normalizer {kind!r} is not known")


def _pre_tokenizer(part: Mapping[str, Any] | None) -> Callable[[str], list[str]]:
    kind = part["type"] if part else None
    if part is None or kind is None:
        return lambda text: [text]
    if kind == "Sequence":
        steps = [_pre_tokenizer(step) for step in part["pretokenizers"]]

        def in_sequence(text: str) -> list[str]:
            pieces = [text]
            for step in steps:
                pieces = [cut for piece in pieces for cut in step(piece)]
            return pieces

        return in_sequence
    if kind == "Split" and part.get("behavior") == "Isolated" and not part.get("invert"):
        pattern = part["pattern"].get("Regex") or re.escape(part["pattern"]["String"])
        return lambda text: _cut(text, pattern)
    if kind == "Digits":
        pattern = r"\p{N}" if part.get("individual_digits") else r"\p{N}+"
        return lambda text: _cut(text, pattern)
    if kind == "ByteLevel":
        return lambda text: _byte_level(text, part)
    raise ModelFileError(f"tokenizer.json: pre-tokenizer {kind!r} is not known")


def _byte_level(text: str, part: Mapping[str, Any]) -> list[str]:
    if part.get("add_prefix_space") and not text.startswith(" "):
        text = " " + text
    pieces = _cut(text, GPT2_PATTERN) if part.get("use_regex", True) else [text]
    return ["".join(_BYTE_TO_CHARACTER[byte] for byte in piece.encode()) for piece in pieces]


def _cut(text: str, pattern: str) -> list[str]:
    r"""The text cut into matches and what lies between them.

    Python's re knows no \p{…}. Each is replaced by the characters of this very text that belong to it.
    """
    spelled = re.sub(r"\\p\{(\w+)\}", lambda match: _members(text, match[1]), pattern)
    pieces, position = [], 0
    for match in re.finditer(_bracketed(spelled), text):
        if match.start() > position:
            pieces.append(text[position : match.start()])
        if match.group():
            pieces.append(match.group())
        position = match.end()
    if position < len(text):
        pieces.append(text[position:])
    return pieces


_OPEN, _CLOSE = "\ue000", "\ue001"


def _members(text: str, category: str) -> str:
    found = {character for character in text if unicodedata.category(character).startswith(category)}
    # U+10FFFE stands in where nothing belongs: an empty class would not compile.
    return _OPEN + "".join(re.escape(character) for character in sorted(found) or ["\U0010fffe"]) + _CLOSE


def _bracketed(pattern: str) -> str:
    """Give spelled-out categories brackets of their own, unless they already stand inside some."""
    result, inside, escaped = [], False, False
    for character in pattern:
        if character in (_OPEN, _CLOSE):
            if not inside:
                result.append("[" if character == _OPEN else "]")
            continue
        result.append(character)
        if not escaped and character in "[]":
            inside = character == "["
        escaped = character == "\\" and not escaped
    return "".join(result)


def _post_processed(part: Mapping[str, Any] | None, ids: list[int]) -> list[int]:
    kind = part["type"] if part else None
    if part is None or kind == "ByteLevel":
        return ids
    if kind == "Sequence":
        for step in part["processors"]:
            ids = _post_processed(step, ids)
        return ids
    if kind == "TemplateProcessing":
        result = []
        for item in part["single"]:
            if "Sequence" in item:
                result.extend(ids)
            else:
                result.extend(part["special_tokens"][item["SpecialToken"]["id"]]["ids"])
        return result
    raise ModelFileError(f"tokenizer.json: post-processor {kind!r} is not known")


def _byte_alphabet() -> dict[int, str]:
    """GPT-2's printable stand-ins: a byte that prints stands for itself, others for U+0100 and on."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return {byte: chr(byte if byte in printable else next(others)) for byte in range(256)}


_BYTE_TO_CHARACTER: Final = _byte_alphabet()
