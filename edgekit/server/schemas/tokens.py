"""Bodies and answers of llama-server's routes about text and tokens."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, Field

from edgekit.server.schemas.base import Body
from edgekit.server.schemas.completions import TokenId

__all__ = ["DetokenizeRequest", "DetokenizedText", "RenderedPrompt", "TokenizeRequest", "TokenizedText"]

_MAX_TOKENS = 2**20


class TokenizeRequest(Body):
    """Body of POST /tokenize."""

    content: str
    add_special: bool | None = Field(False, description="Add what the model wants around a prompt (BOS).")
    parse_special: bool | None = Field(True, description="Read the texts of control tokens as these tokens.")
    with_pieces: bool | None = Field(False, description="Give each token's text beside its id.")


class Piece(BaseModel):
    """A token. `piece` is its text, or its bytes where they are no whole characters."""

    id: int
    piece: str | list[int]


class TokenizedText(BaseModel):
    """Answer of POST /tokenize."""

    tokens: list[int] | list[Piece]


class DetokenizeRequest(Body):
    """Body of POST /detokenize."""

    tokens: Annotated[list[TokenId], Field(max_length=_MAX_TOKENS)]


class DetokenizedText(BaseModel):
    """Answer of POST /detokenize."""

    content: str


class RenderedPrompt(BaseModel):
    """Answer of POST /apply-template."""

    prompt: str
