"""The tools that a model may call."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import Field

from edgekit.server.schemas.base import Body

__all__ = ["Tool", "ToolChoice", "ToolRules"]

ToolName: TypeAlias = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")]


class FunctionDefinition(Body):
    """A function. Its parameters are described by a JSON Schema."""

    name: ToolName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Body):
    """A tool. There are functions only."""

    type: Literal["function"]
    function: FunctionDefinition


class FunctionName(Body):
    """Names a function."""

    name: ToolName


class NamedToolChoice(Body):
    """This tool must be called."""

    type: Literal["function"]
    function: FunctionName


class AllowedTool(Body):
    """One of the tools that may be called."""

    type: Literal["function"]
    function: FunctionName


class AllowedTools(Body):
    """The tools that may be called, and whether one must be."""

    mode: Literal["auto", "required"]
    tools: Annotated[list[AllowedTool], Field(min_length=1, max_length=128)]


class AllowedToolChoice(Body):
    """Some of the tools."""

    type: Literal["allowed_tools"]
    allowed_tools: AllowedTools


ToolChoice: TypeAlias = (
    Literal["none", "auto", "required"]
    | Annotated[NamedToolChoice | AllowedToolChoice, Field(discriminator="type")]
)


@dataclass(frozen=True, slots=True)
class ToolRules:
    """Which tools may be called, and whether one must be.

    `tools` are as the client sent them. `forced` names the tool that must be called.
    """

    tools: tuple[dict[str, Any], ...]
    required: bool
    forced: str | None
    parallel: bool
    unknown: str | None = None
    """A tool that is chosen and not there."""
    orphan: bool = False
    """A call is required, and there are no tools."""

    @classmethod
    def of(cls, tools: list[Tool], choice: ToolChoice | None, *, parallel: bool) -> ToolRules:
        """The rules that a request's fields make together."""
        given = {tool.function.name: tool.model_dump(exclude_unset=True) for tool in tools}
        names = list(given)
        if len(names) < len(tools):
            twice = next(name for name in names if sum(tool.function.name == name for tool in tools) > 1)
            raise ValueError(f"'tools' has two functions of the name {twice!r}")
        required, forced = choice == "required", None
        if choice == "none":
            names = []
        elif isinstance(choice, NamedToolChoice):
            names, required, forced = [choice.function.name], True, choice.function.name
        elif isinstance(choice, AllowedToolChoice):
            names = [tool.function.name for tool in choice.allowed_tools.tools]
            required = choice.allowed_tools.mode == "required"
        return cls(
            tools=tuple(given[name] for name in names if name in given),
            required=required,
            forced=forced,
            parallel=parallel,
            unknown=next((name for name in names if name not in given), None),
            orphan=required and not given,
        )

    def check(self) -> None:
        """Raise ValueError on a choice that cannot be met."""
        if self.orphan:
            raise ValueError("'tool_choice' asks for a call, and 'tools' is empty")
        if self.unknown is not None:
            raise ValueError(f"'tool_choice' names {self.unknown!r}, which is not in 'tools'")
