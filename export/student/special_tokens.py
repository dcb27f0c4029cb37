"""Special tokens of a checkpoint: their ids, and which of them go around a prompt.

Three files have a say: tokenizer_config.json names tokens, tokenizer.json's post-processor shows which are
added, config.json gives ids. The order of precedence is that of gguf's SpecialVocab (llama.cpp 0c1e57098).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

__all__ = ["SpecialTokens", "read_special_tokens"]

_KINDS: Final = ("bos", "eos", "unk", "sep", "pad", "mask")


@dataclass(frozen=True, slots=True)
class SpecialTokens:
    """`ids` by kind ("bos", "eos", "pad", …); `added`: whether prompts get "bos", "eos", "sep"."""

    ids: Mapping[str, int]
    added: Mapping[str, bool]


def read_special_tokens(
    tokenizer: Mapping[str, Any],
    tokenizer_config: Mapping[str, Any] | None,
    config: Mapping[str, Any],
    *,
    count: int,
) -> SpecialTokens:
    """Collect the special tokens from the three files. Ids at or above `count` are left out."""
    named = _named(tokenizer_config or {})
    added = _added_by_template(tokenizer, named, has_config=bool(tokenizer_config))
    ids: dict[str, int] = {}
    kinds = (*_KINDS, *(kind for kind in ("eot", "eom") if kind in named))
    if tokenizer_config:
        by_text = {token.get("content"): token.get("id") for token in tokenizer.get("added_tokens", ())}
        for kind in kinds:
            flag = tokenizer_config.get(f"add_{kind}_token")
            if isinstance(flag, bool):
                added.setdefault(kind, flag)
            _set(ids, kind, by_text.get(_text(named.get(kind))), count)
    for kind in kinds:
        _set(ids, kind, config.get(f"{kind}_token_id"), count)
    return SpecialTokens(ids=MappingProxyType(ids), added=MappingProxyType(added))


def _set(ids: dict[str, int], kind: str, value: object, count: int) -> None:
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < count:
        ids.setdefault(kind, value)


# A token is named by its text or by an object with its text as "content". The converter compares the entries
# as they stand, so that a text never equals an object; what follows from that is kept.
_Named = dict[str, Any]


def _text(entry: object) -> str | None:
    text = entry.get("content") if isinstance(entry, dict) else entry
    return text if isinstance(text, str) else None


def _named(tokenizer_config: Mapping[str, Any]) -> _Named:
    """Kind to entry. Classifier tokens stand in for missing sentence tokens."""
    entries = {kind: tokenizer_config.get(f"{kind}_token") for kind in (*_KINDS, "cls")}
    named = {kind: entry for kind, entry in entries.items() if entry}
    for kind, stand_in in (("bos", "cls"), ("eos", "sep")):
        if kind not in named and stand_in in named:
            named[kind] = named[stand_in]
    return named


def _added_by_template(tokenizer: Mapping[str, Any], named: _Named, *, has_config: bool) -> dict[str, bool]:
    """What the post-processor adds. May rename tokens in `named`: what it adds last is the real EOS."""
    added: dict[str, bool] = {}
    post_processor = tokenizer.get("post_processor") or {}
    for processor in post_processor.get("processors", [post_processor]):
        if processor.get("type") == "ByteLevel":
            added.setdefault("bos", False)
            added.setdefault("eos", False)
        elif processor.get("type") == "TemplateProcessing":
            _read_template(processor, named, added, has_config=has_config)
    return added


def _read_template(
    processor: Mapping[str, Any], named: _Named, added: dict[str, bool], *, has_config: bool
) -> None:
    single, pair = processor.get("single", []), processor.get("pair", [])
    first = last = None
    if len(single) > 1:
        first, last = _special(single[0]), _special(single[-1])
    if first:
        if not has_config:
            named["bos"] = first
        elif first not in (named.get("bos"), named.get("cls")):
            named.setdefault("bos", first)
            named.setdefault("cls", first)
        added["bos"] = first in (named.get("bos"), named.get("cls"))
    if last:
        if has_config and last != named.get("eos"):
            # The declared EOS ends a turn; the template's ends the text.
            named["eom" if "eot" in named else "eot"] = named.get("eos")
        named["eos"] = last
        added["eos"] = True
    _read_pair(pair, first, last, named, added)


def _read_pair(
    pair: list[Mapping[str, Any]],
    first: str | None,
    last: str | None,
    named: _Named,
    added: dict[str, bool],
) -> None:
    """A separator between two texts: "A [sep] B" without a closing token after A alone."""
    if pair and first and _special(pair[0]) == first:
        pair = pair[1:]
    if pair and last and _special(pair[-1]) == last:
        pair = pair[:-1]
    if len(pair) < 3 or _sequence(pair[0]) != "A" or _sequence(pair[-1]) != "B":
        return
    between = [_special(item) for item in pair[1:-1]]
    separators = (named.get("sep"), named.get("eos"))
    added["sep"] = (between[0] is not None and between[0] in separators and not last) or (
        len(between) == 2 and between[1] is not None and between[1] in separators
    )
    if added["sep"] and "sep" not in named:
        named["sep"] = named.get("eos")


def _special(item: Mapping[str, Any]) -> str | None:
    text = item.get("SpecialToken", {}).get("id")
    return text if isinstance(text, str) else None


def _sequence(item: Mapping[str, Any]) -> str | None:
    name = item.get("Sequence", {}).get("id")
    return name if isinstance(name, str) else None
