"""Body of POST /v1/completions."""

from __future__ import annotations

from typing import Annotated, Final, TypeAlias

from pydantic import Field, model_validator

from edgekit.server.schemas.base import MAX_CHOICES, GenerationBody, NotSupported

__all__ = ["DEFAULT_MAX_TOKENS", "MAX_STREAMS", "CompletionRequest", "TokenId", "TokenIds"]

DEFAULT_MAX_TOKENS: Final = 16
"""OpenAI's, for this route."""
MAX_STREAMS: Final = 32
"""Prompts times `n`."""

TokenId: TypeAlias = Annotated[int, Field(ge=0, lt=2**31)]
TokenIds: TypeAlias = Annotated[list[TokenId], Field(min_length=1)]
Prompt: TypeAlias = (
    str
    | TokenIds
    | Annotated[list[str], Field(min_length=1, max_length=MAX_STREAMS)]
    | Annotated[list[TokenIds], Field(min_length=1, max_length=MAX_STREAMS)]
)


class CompletionRequest(GenerationBody):
    """Body of POST /v1/completions."""

    prompt: Prompt | None = Field(description="Texts or token ids. Null begins a new text.")
    echo: bool | None = None
    logprobs: Annotated[int, Field(ge=0, le=5)] | None = None
    best_of: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None
    suffix: NotSupported = None

    @model_validator(mode="after")
    def _supported_only(self) -> CompletionRequest:
        if self.best_of not in (None, self.choices):
            raise ValueError(f"'best_of' is supported where it equals 'n' ({self.choices}) only")
        if self.echo and self.logprobs is not None:
            raise ValueError("'echo' is not supported with 'logprobs': those of a prompt are not computed")
        if len(self.prompts) * self.choices > MAX_STREAMS:
            raise ValueError(f"'prompt' times 'n' asks for more than {MAX_STREAMS} answers")
        return self

    @property
    def prompts(self) -> list[str | list[int]]:
        """The prompts, however they were given."""
        prompt = self.prompt
        if prompt is None:
            return [""]
        if isinstance(prompt, str):
            return [prompt]
        if isinstance(prompt[0], int):
            return [[token for token in prompt if isinstance(token, int)]]
        return [part for part in prompt if not isinstance(part, int)]
