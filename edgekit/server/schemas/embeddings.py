"""Body of POST /v1/embeddings."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from pydantic import Field

from edgekit.server.schemas.base import Body
from edgekit.server.schemas.completions import TokenIds

__all__ = ["EmbeddingRequest"]

_MAX_INPUTS = 2048
"""OpenAI's."""

Input: TypeAlias = (
    str
    | TokenIds
    | Annotated[list[str], Field(min_length=1, max_length=_MAX_INPUTS)]
    | Annotated[list[TokenIds], Field(min_length=1, max_length=_MAX_INPUTS)]
)


class EmbeddingRequest(Body):
    """Body of POST /v1/embeddings."""

    input: Input
    model: str | None = None
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, Field(ge=1)] | None = Field(
        None, description="Refused unless it is what the model has."
    )
    user: Annotated[str, Field(max_length=256)] | None = None
    timeout: Annotated[float, Field(ge=0.001, le=3600)] | None = Field(
        None, description="Seconds after which the request fails with 504. Not OpenAI's."
    )

    @property
    def inputs(self) -> list[str | list[int]]:
        """The texts, however they were given."""
        given = self.input
        if isinstance(given, str):
            return [given]
        if isinstance(given[0], int):
            return [[token for token in given if isinstance(token, int)]]
        return [part for part in given if not isinstance(part, int)]
