"""From what a client sends to the tokens that an engine reads."""

from __future__ import annotations

import asyncio
import unicodedata
from collections.abc import Sequence

from edgekit.engine.text import adds_special
from edgekit.server.errors import ApiError
from edgekit.server.model import LoadedModel
from edgekit.server.schemas.base import GenerationBody
from edgekit.server.schemas.embeddings import EmbeddingRequest

__all__ = ["check_model", "check_tokens", "prepare_text", "text_prompt", "tokenize"]

_TOKENIZE_INLINE_CHARACTERS = 16_384
"""A longer text is tokenized on another thread, so that it does not hold up the event loop."""


def check_model(body: GenerationBody | EmbeddingRequest, model: LoadedModel) -> None:
    """Raise ApiError when a request names another model than the one that is served."""
    if body.model is not None and body.model != model.name:
        raise ApiError(
            404,
            f"the model '{body.model}' does not exist here; this server has '{model.name}'",
            param="model",
            code="model_not_found",
        )


def check_tokens(tokens: Sequence[int], model: LoadedModel, *, field: str) -> tuple[int, ...]:
    """Token ids from a client, once they are known to be the model's.

    Raises:
        ApiError: they are not.
    """
    count = model.facts.vocabulary
    for token in tokens:
        if not 0 <= token < count:
            raise ApiError(
                400, f"'{field}': the model has {count} tokens, and {token} is none of them", param=field
            )
    return tuple(tokens)


def prepare_text(text: str, model: LoadedModel) -> str:
    """The text as the model's tokenizer wants it.

    Halves of surrogate pairs become U+FFFD: JSON can write them alone, tokenizers take UTF-8. They come from
    clients that cut a text in the middle of an emoji.
    """
    if text.isascii():
        return text
    text = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return unicodedata.normalize("NFC", text) if model.composes else text


async def tokenize(
    text: str, model: LoadedModel, *, add_special: bool, parse_special: bool = True
) -> list[int]:
    """Token ids of a text as `prepare_text` gives it."""

    def work() -> list[int]:
        return model.engine.tokenize(text, add_special=add_special, parse_special=parse_special)

    if len(text) <= _TOKENIZE_INLINE_CHARACTERS:
        return work()
    return await asyncio.to_thread(work)


async def text_prompt(prompt: str | Sequence[int], model: LoadedModel, *, field: str) -> tuple[int, ...]:
    """The tokens of a prompt that is a text or tokens already.

    Raises:
        ApiError: it has no tokens, or some that the model lacks.
    """
    if not isinstance(prompt, str):
        return check_tokens(prompt, model, field=field)
    text = prepare_text(prompt, model)
    tokens = tuple(await tokenize(text, model, add_special=adds_special(text, model.bos_text)))
    if not tokens:
        raise ApiError(400, f"'{field}' has no tokens", param=field, code="empty_prompt")
    return tokens
