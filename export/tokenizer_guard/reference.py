"""A checkpoint's tokenizer as its authors meant it: tokenizer.json by Hugging Face's own library.

Rust's `tokenizers` is what transformers runs; nothing of edgekit's reading of the files is used here.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any

from edgekit.engine.chat_template import ChatTemplate
from edgekit.errors import MissingExtraError, ModelFileError

try:
    import tokenizers
except ImportError as error:
    raise MissingExtraError("tokenizers", extra="export", feature="checking a tokenizer") from error

__all__ = ["TokenizerReference"]


class TokenizerReference:
    """What tokenizer.json, tokenizer_config.json and chat_template.jinja say.

    Args:
        name: what errors call the place, e.g. the checkpoint's path.
        files: file name to content.

    Raises:
        ModelFileError: tokenizer.json is missing or damaged, or the template is none.
    """

    def __init__(self, name: str, files: Mapping[str, bytes]) -> None:
        self.name = name
        if "tokenizer.json" not in files:
            raise ModelFileError(f"{name}: tokenizer.json is missing, so there is nothing to compare with")
        self._json = files["tokenizer.json"]
        self._tokenizer = self._load(self._json)
        self._config = self._mapping(files, "tokenizer_config.json")
        source = self._template_source(files)
        self.template = (
            ChatTemplate(source, bos_token=self.bos_text, eos_token=self._token_text("eos_token"))
            if source
            else None
        )

    @property
    def bos_text(self) -> str:
        """The token that begins a text; empty where there is none."""
        return self._token_text("bos_token")

    @property
    def may_add_bos(self) -> bool:
        """Whether tokenizer_config.json asks for BOS before a text: old tokenizers follow it."""
        return self._config.get("add_bos_token") is True

    @cached_property
    def added_tokens(self) -> Mapping[int, str]:
        """Tokens that are found in text before it is split: special ones and others. Id to text."""
        return {index: token.content for index, token in self._tokenizer.get_added_tokens_decoder().items()}

    def has_the_vocabulary_of(self, other: TokenizerReference) -> bool:
        """Whether the tokenizer.json of both is the same, byte for byte."""
        return self._json == other._json

    def encode(self, text: str, *, add_special: bool = False) -> list[int]:
        """Token ids; special tokens in the text are recognised."""
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=add_special).ids
        return ids

    def encode_all(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` of many texts, on all processors."""
        batch = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [encoding.ids for encoding in batch]

    def starts(self, text: str) -> list[int]:
        """Where in the text each of its tokens starts, in characters."""
        return [start for start, _ in self._tokenizer.encode(text, add_special_tokens=False).offsets]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of token ids, special ones included."""
        text: str = self._tokenizer.decode(list(ids), skip_special_tokens=False)
        return text

    def token_texts(self) -> dict[int, str]:
        """Every token that is valid text by itself: id to text."""
        ids = sorted(self._tokenizer.get_vocab(with_added_tokens=True).values())
        texts = self._tokenizer.decode_batch([[index] for index in ids], skip_special_tokens=False)
        return {index: text for index, text in zip(ids, texts, strict=True) if text and "\ufffd" not in text}

    def normalized(self, text: str) -> str:
        """The text as the tokenizer's normalizer changes it before it is split."""
        normalizer = self._tokenizer.normalizer
        return text if normalizer is None else str(normalizer.normalize_str(text))

    def encode_unnormalized(self, text: str) -> list[int]:
        """Token ids of the text as it stands."""
        ids: list[int] = self._unnormalizing.encode(text, add_special_tokens=False).ids
        return ids

    @cached_property
    def _unnormalizing(self) -> Any:
        return self._load(json.dumps({**json.loads(self._json), "normalizer": None}).encode())

    def _load(self, content: bytes) -> Any:
        try:
            tokenizer: Any = tokenizers.Tokenizer.from_buffer(content)  # type: ignore[no-untyped-call, unused-ignore]
        except Exception as error:  # the library raises bare Exception
            raise ModelFileError(f"{self.name}: tokenizer.json does not load: {error}") from error
        # A file may carry the limits of the training run; callers of transformers do not get them.
        tokenizer.no_truncation()
        tokenizer.no_padding()
        return tokenizer

    def _mapping(self, files: Mapping[str, bytes], name: str) -> Mapping[str, Any]:
        try:
            value = json.loads(files.get(name, b"{}"))
        except ValueError as error:
            raise ModelFileError(f"{self.name}: {name} is no JSON: {error}") from error
        return value if isinstance(value, dict) else {}

    def _token_text(self, kind: str) -> str:
        token = self._config.get(kind)
        text = token.get("content") if isinstance(token, dict) else token
        return text if isinstance(text, str) else ""

    def _template_source(self, files: Mapping[str, bytes]) -> str | None:
        """As transformers chooses: the file of its own goes before the entry in tokenizer_config.json."""
        if "chat_template.jinja" in files:
            return files["chat_template.jinja"].decode("utf-8", "replace")
        source = self._config.get("chat_template")
        if isinstance(source, list):
            named = {entry.get("name"): entry.get("template") for entry in source if isinstance(entry, dict)}
            source = named.get("default")
        if source is None:
            source = self._mapping(files, "chat_template.json").get("chat_template")
        return source if isinstance(source, str) else None
