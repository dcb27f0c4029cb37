"""What finding tool calls in a model's text gives, and what a family of tool formats must be able to do."""

from __future__ import annotations

import secrets
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeAlias

from edgekit.engine.base import Constraint

__all__ = [
    "MakeId",
    "NamedTool",
    "ToolCallDelta",
    "ToolCallParser",
    "ToolChoice",
    "ToolFormat",
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


class ToolFormat(ABC):
    """How a family of models is told of tools and calls them.

    Tools are as in OpenAI's API: `{"type": "function", "function": {"name", "description", "parameters"}}`.
    """

    name: str
    markers: tuple[str, ...] = ()
    """What the family writes around calls. Where a vocabulary has these as control tokens, their text must
    reach the parser all the same."""

    def __init__(self, *, template_takes_tools: bool = False, make_id: MakeId = random_id) -> None:
        self.template_takes_tools = template_takes_tools
        """Whether the chat template itself tells the model of tools, as its variable `tools`."""
        self._make_id = make_id

    @abstractmethod
    def system_text(self, tools: list[dict[str, Any]], choice: ToolChoice) -> str:
        """What to tell a model of its tools, for the system message; for templates that do not."""

    @abstractmethod
    def parser(self, tools: list[dict[str, Any]]) -> ToolCallParser:
        """A parser for one answer."""

    @abstractmethod
    def constraint(
        self, tools: list[dict[str, Any]], choice: Literal["required"] | NamedTool, parallel: bool
    ) -> Constraint:
        """Makes the whole answer calls: of any tools, or one call of the tool that is named.

        Arguments follow each tool's JSON Schema. `parallel` allows more than one call, where the family
        knows of such.

        Raises:
            ConstraintError: there is no such tool.
        """

    @abstractmethod
    def template_messages(self, messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """OpenAI's messages as the template wants them: calls and results in the family's own form."""
