"""A checkpoint's tokenizer files as GGUF's tokenizer metadata.

Follows convert_hf_to_gguf.py of llama.cpp 0c1e57098 key for key, without transformers: the vocabulary from
tokenizer.json, special tokens and the chat template from tokenizer_config.json, config.json and
chat_template.jinja.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from edgekit.errors import ModelFileError
from export.student.byte_level_bpe import split_merge
from export.student.config import read_json
from export.student.pretokenizer import recognize
from export.student.special_tokens import SpecialTokens, read_special_tokens

__all__ = ["NORMAL", "UNUSED", "CheckpointTokenizer", "read_tokenizer"]

# llama.h, enum llama_token_type.
NORMAL: Final = 1
CONTROL: Final = 3
USER_DEFINED: Final = 4
UNUSED: Final = 5


@dataclass(frozen=True, slots=True)
class CheckpointTokenizer:
    """A byte-level BPE tokenizer.

    `tokens` and `types` have one entry per row of the embedding; rows that no token uses are called
    "[PAD<id>]". `chat_template` is one template, or several with names.
    """

    pre: str
    tokens: tuple[str, ...]
    types: tuple[int, ...]
    merges: tuple[str, ...]
    special: SpecialTokens
    chat_template: str | tuple[Mapping[str, str], ...] | None
    add_space_prefix: bool | None


def read_tokenizer(directory: Path, *, vocabulary: int, config: Mapping[str, Any]) -> CheckpointTokenizer:
    """Read the tokenizer of a checkpoint directory.

    Args:
        vocabulary: rows of the embedding; may exceed the number of tokens.
        config: the checkpoint's config.json.

    Raises:
        ModelFileError: a file is missing or malformed, or the tokenizer is of a kind that is not known.
    """
    path = directory / "tokenizer.json"
    if not path.is_file():
        if (directory / "tokenizer.model").is_file():
            raise ModelFileError(
                f"{directory}: the tokenizer is SentencePiece (tokenizer.model); known is byte-level BPE",
                hint="convert the checkpoint with llama.cpp's convert_hf_to_gguf.py and export the GGUF",
            )
        raise ModelFileError(
            f"{directory}: tokenizer.json is missing", hint="download it with the checkpoint"
        )
    tokenizer = read_json(path)
    _check_kind(path, tokenizer)
    tokenizer_config = _optional_json(directory / "tokenizer_config.json")
    tokens, types = _vocabulary(path, tokenizer, vocabulary)
    try:
        pre = recognize(path, tokenizer)
    except (KeyError, TypeError, AttributeError) as error:
        raise ModelFileError(f"{path}: malformed: {error!r}") from error
    prefix = tokenizer_config.get("add_prefix_space") if tokenizer_config else None
    return CheckpointTokenizer(
        pre=pre,
        tokens=tokens,
        types=types,
        merges=tuple(_joined(merge) for merge in tokenizer["model"]["merges"]),
        special=read_special_tokens(tokenizer, tokenizer_config, config, count=len(tokens)),
        chat_template=_chat_template(directory, tokenizer_config),
        add_space_prefix=prefix if isinstance(prefix, bool) else None,
    )


def _check_kind(path: Path, tokenizer: Mapping[str, Any]) -> None:
    model = tokenizer.get("model")
    if not isinstance(model, dict) or not isinstance(model.get("vocab"), dict):
        raise ModelFileError(f"{path}: no 'model' with a 'vocab'")
    if model.get("type", "BPE") != "BPE" or model.get("byte_fallback"):
        kind = "SentencePiece BPE" if model.get("byte_fallback") else model.get("type")
        raise ModelFileError(
            f"{path}: the tokenizer is of kind {kind!r}; known is byte-level BPE",
            hint="convert the checkpoint with llama.cpp's convert_hf_to_gguf.py and export the GGUF",
        )
    if not isinstance(model.get("merges"), list) or not model["merges"]:
        raise ModelFileError(f"{path}: the BPE model has no merges")


def _vocabulary(
    path: Path, tokenizer: Mapping[str, Any], count: int
) -> tuple[tuple[str, ...], tuple[int, ...]]:
    tokens = [f"[PAD{index}]" for index in range(count)]
    types = [UNUSED] * count
    try:
        entries = [(index, text, NORMAL) for text, index in tokenizer["model"]["vocab"].items()]
        entries += [_added(token) for token in tokenizer.get("added_tokens", ())]
        for index, text, kind in entries:
            if not 0 <= index < count:
                raise ModelFileError(
                    f"{path}: token {text!r} has id {index}; config.json's vocab_size is {count}"
                )
            tokens[index], types[index] = text, kind
    except (KeyError, TypeError) as error:
        raise ModelFileError(f"{path}: malformed: {error!r}") from error
    if len(set(tokens)) != count:
        raise ModelFileError(f"{path}: a token's text appears under two ids, which llama.cpp cannot load")
    return tuple(tokens), tuple(types)


def _added(token: Mapping[str, Any]) -> tuple[int, str, int]:
    text = token["content"]
    if token.get("special") or _looks_special(text):
        return token["id"], text, CONTROL
    # llama.cpp takes user-defined tokens as they appear in text, with real spaces.
    return token["id"], text.replace("\u2581", " "), USER_DEFINED


def _looks_special(text: str) -> bool:
    """Whether a token that was not marked special must not be typed by users all the same."""
    pairs = (("<|", "|>"), ("<\uff5c", "\uff5c>"), ("<unused", ">"))
    return text in ("<pad>", "<mask>", "<2mass>", "[@BOS@]") or any(
        text.startswith(start) and text.endswith(end) for start, end in pairs
    )


def _joined(merge: str | list[str]) -> str:
    left, right = split_merge(merge)
    return f"{left.replace(' ', 'Ġ')} {right.replace(' ', 'Ġ')}"


def _chat_template(
    directory: Path, tokenizer_config: Mapping[str, Any] | None
) -> str | tuple[Mapping[str, str], ...] | None:
    """tokenizer_config.json's own template goes before chat_template.jinja, as in the converter."""
    if tokenizer_config is None:
        return None
    template = tokenizer_config.get("chat_template")
    if template is None:
        file = directory / "chat_template.jinja"
        if file.is_file():
            template = file.read_text(encoding="utf-8")
        else:
            template = (_optional_json(directory / "chat_template.json") or {}).get("chat_template")
    if isinstance(template, list):
        return tuple(template)
    return template if isinstance(template, str) else None


def _optional_json(path: Path) -> dict[str, Any] | None:
    return read_json(path) if path.is_file() else None
