"""A GGUF's tokenizer as a checkpoint's: tokenizer.json and tokenizer_config.json, rebuilt.

A GGUF holds tokens, merges and the name of a pre-tokenizer. What the name stands for is in llama.cpp's
source (llama-vocab.cpp, 0c1e57098) and in the tokenizer.json files that the names were given for; llama.cpp
spells some patterns in another way, for want of "(?i:". Two things come from the original files alone:
whether text is brought into Unicode's NFC first (llama.cpp never does), and `ignore_merges`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from edgekit.errors import ModelFileError
from edgekit.gguf_header import GgufHeader
from export.student.gguf_config import SPECIAL_ID_KEYS
from export.student.gguf_pretokenizers import PRETOKENIZERS, PreTokenizer
from export.student.special_tokens import SpecialTokens
from export.student.tokenizer import CONTROL, NORMAL, UNUSED, USER_DEFINED, CheckpointTokenizer

__all__ = ["tokenizer_files", "tokenizer_from_gguf"]

_UNKNOWN: Final = 2  # llama.h, LLAMA_TOKEN_TYPE_UNKNOWN
_KINDS_NAMED: Final = ("bos", "eos", "unk", "sep", "pad", "mask")
_CONVERT: Final = "export it as a GGUF: its own tokenizer is then kept as it is"


def tokenizer_from_gguf(header: GgufHeader) -> CheckpointTokenizer:
    """The tokenizer of a GGUF, with llama.cpp's defaults for what the file leaves out.

    Raises:
        ModelFileError: it is not byte-level BPE, or does not name its pre-tokenizer.
    """
    metadata = header.metadata
    model, pre = metadata.get("tokenizer.ggml.model"), metadata.get("tokenizer.ggml.pre")
    if model != "gpt2":
        raise ModelFileError(
            f"{header.path}: the tokenizer is of kind {model!r}; known is 'gpt2', byte-level BPE",
            hint=_CONVERT,
        )
    if not isinstance(pre, str) or pre in ("", "default"):
        raise ModelFileError(
            f"{header.path}: tokenizer.ggml.pre is {pre!r}: how the tokenizer splits text is not known",
            hint="convert the model to GGUF again with a newer llama.cpp",
        )
    tokens = _strings(metadata.get("tokenizer.ggml.tokens"))
    types = metadata.get("tokenizer.ggml.token_type", (NORMAL,) * len(tokens))
    assert isinstance(types, tuple)  # validated with the header
    ids = {kind: metadata.get(key) for kind, key in SPECIAL_ID_KEYS.items()}
    added = {kind: metadata.get(f"tokenizer.ggml.add_{kind}_token") for kind in ("bos", "eos", "sep")}
    known = PRETOKENIZERS.get(pre)
    if added["bos"] is None and known is not None and known.adds_bos:
        added["bos"] = True
    prefix = metadata.get("tokenizer.ggml.add_space_prefix")
    return CheckpointTokenizer(
        pre=pre,
        tokens=tokens,
        types=tuple(int(kind) for kind in types),
        merges=_strings(metadata.get("tokenizer.ggml.merges")),
        special=SpecialTokens(
            ids=MappingProxyType({kind: index for kind, index in ids.items() if isinstance(index, int)}),
            added=MappingProxyType({kind: flag for kind, flag in added.items() if isinstance(flag, bool)}),
        ),
        chat_template=_chat_template(metadata),
        add_space_prefix=prefix if isinstance(prefix, bool) else None,
    )


def tokenizer_files(path: Path, tokenizer: CheckpointTokenizer, *, context_tokens: int) -> dict[str, bytes]:
    """tokenizer.json and tokenizer_config.json of a tokenizer that came from the GGUF at `path`.

    Raises:
        ModelFileError: the pre-tokenizer is not one that is known here.
    """
    known = PRETOKENIZERS.get(tokenizer.pre)
    if known is None:
        names = ", ".join(PRETOKENIZERS)
        raise ModelFileError(
            f"{path}: tokenizer.json cannot be rebuilt for the pre-tokenizer '{tokenizer.pre}'; "
            f"known are {names}",
            hint=_CONVERT,
        )
    files = {
        "tokenizer.json": _tokenizer_json(tokenizer, known),
        "tokenizer_config.json": _tokenizer_config(tokenizer, context_tokens),
    }
    return {
        name: (json.dumps(content, ensure_ascii=False, indent=1) + "\n").encode()
        for name, content in files.items()
    }


def _tokenizer_json(tokenizer: CheckpointTokenizer, known: PreTokenizer) -> dict[str, Any]:
    added = [
        {
            "id": index,
            "content": text,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": kind != USER_DEFINED,
        }
        for index, (text, kind) in enumerate(zip(tokenizer.tokens, tokenizer.types, strict=True))
        if kind in (CONTROL, USER_DEFINED, _UNKNOWN)
    ]
    # Added tokens are in the vocabulary as well: that alone pins their ids where there are gaps.
    vocabulary = {
        text: index
        for index, (text, kind) in enumerate(zip(tokenizer.tokens, tokenizer.types, strict=True))
        if kind != UNUSED
    }
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": {"type": "NFC"} if known.composes else None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [dict(stage) for stage in known.stages]},
        "post_processor": _post_processor(tokenizer),
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": known.ignores_merges,
            "vocab": vocabulary,
            "merges": list(tokenizer.merges),
        },
    }


def _post_processor(tokenizer: CheckpointTokenizer) -> dict[str, Any]:
    """Puts the tokens around a text that the model wants there."""
    special = tokenizer.special
    begin = special.ids.get("bos") if special.added.get("bos") else None
    end = special.ids.get("eos") if special.added.get("eos") else None
    if begin is None and end is None:
        return {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": True}

    def around(name: str, type_id: int) -> list[dict[str, Any]]:
        sequence = [{"Sequence": {"id": name, "type_id": type_id}}]
        before = [] if begin is None else [_special_item(tokenizer, begin, type_id)]
        after = [] if end is None else [_special_item(tokenizer, end, type_id)]
        return [*before, *sequence, *after]

    texts = {tokenizer.tokens[index]: index for index in (begin, end) if index is not None}
    return {
        "type": "TemplateProcessing",
        "single": around("A", 0),
        "pair": [*around("A", 0), *around("B", 1)],
        "special_tokens": {
            text: {"id": text, "ids": [index], "tokens": [text]} for text, index in texts.items()
        },
    }


def _special_item(tokenizer: CheckpointTokenizer, index: int, type_id: int) -> dict[str, Any]:
    return {"SpecialToken": {"id": tokenizer.tokens[index], "type_id": type_id}}


def _tokenizer_config(tokenizer: CheckpointTokenizer, context_tokens: int) -> dict[str, Any]:
    special = tokenizer.special
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": context_tokens,
        "clean_up_tokenization_spaces": False,
    }
    for kind in _KINDS_NAMED:
        index = special.ids.get(kind)
        config[f"{kind}_token"] = tokenizer.tokens[index] if index is not None else None
    for kind in ("bos", "eos"):
        config[f"add_{kind}_token"] = special.added.get(kind, False)
    if tokenizer.add_space_prefix is not None:
        config["add_prefix_space"] = tokenizer.add_space_prefix
    template = tokenizer.chat_template
    if template is not None:
        config["chat_template"] = (
            template if isinstance(template, str) else [dict(named) for named in template]
        )
    return config


def _chat_template(metadata: Mapping[str, object]) -> str | tuple[Mapping[str, str], ...] | None:
    """One template, or with names those that tokenizer.chat_templates lists beside the default."""
    default = metadata.get("tokenizer.chat_template")
    names = _strings(metadata.get("tokenizer.chat_templates"))
    templates = {name: metadata.get(f"tokenizer.chat_template.{name}") for name in names}
    named = [{"name": name, "template": text} for name, text in templates.items() if isinstance(text, str)]
    if named and isinstance(default, str):
        return ({"name": "default", "template": default}, *named)
    return tuple(named) if named else default if isinstance(default, str) else None


def _strings(values: object) -> tuple[str, ...]:
    return tuple(str(value) for value in values) if isinstance(values, tuple) else ()
