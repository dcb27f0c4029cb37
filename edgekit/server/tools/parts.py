"""What finding tool calls in a model's text gives."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias

__all__ = [
    "MakeId",
    "NamedTool",
    "ToolCallDelta",
    "ToolCallParser",
    "ToolChoice",
    "ToolParts",
    "random_id",
]


@dataclass(frozen=True, slots=True)
class NamedTool:
    """The one tool that must be called."""

    name: str


ToolChoice: TypeAlias = Literal["auto", "required"] | NamedTool
"""Whether tools may be called, whether one must be, or which."""

MakeId: TypeAlias = Callable[[], str]


def random_id() -> str:
    """A fresh id for a call, as OpenAI's look: `call_` and 24 letters and digits."""
    return f"call_{secrets.token_hex(12)}"


@dataclass(frozen=True, slots=True)
class ToolCallDelta:
    """A piece of a call. The first of a call has its id and name; `arguments` of all pieces make up JSON."""

    index: int
    """Which call of the answer, from 0."""
    id: str | None
    name: str | None
    arguments: str


@dataclass(frozen=True, slots=True)
class ToolParts:
    """What an answer has gained: text, and pieces of calls."""

    content: str = ""
    calls: tuple[ToolCallDelta, ...] = ()


class ToolCallParser(Protocol):
    """Tells calls from text while an answer streams. How the text is cut into pieces makes no difference."""

    def push(self, text: str) -> ToolParts:
        """Add text; returns what is certain by now."""

    def finish(self) -> ToolParts:
        """What was held back, once no more text comes."""
