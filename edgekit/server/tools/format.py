"""A family's tool format: all that a server needs to know of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from edgekit.engine.base import Constraint
from edgekit.errors import ConstraintError
from edgekit.server.tools.parts import MakeId, NamedTool, ToolCallParser, ToolChoice, random_id
from edgekit.server.tools.stream import StreamParser
from edgekit.server.tools.syntax import CallSyntax

__all__ = ["ToolFormat"]

Adapt: TypeAlias = Callable[[list[dict[str, Any]]], list[dict[str, Any]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolFormat:
    """How a family of models is told of tools and calls them.

    Tools are as in OpenAI's API: `{"type": "function", "function": {"name", "description", "parameters"}}`.
    """

    name: str
    syntax: CallSyntax
    parser_type: type[StreamParser]
    adapt: Adapt
    """Puts messages into the form that the family's templates take."""
    template_takes_tools: bool = False
    """Whether the chat template itself tells the model of tools, as its variable `tools`."""
    make_id: MakeId = random_id
    """Makes the calls' ids."""

    def system_text(self, tools: list[dict[str, Any]], choice: ToolChoice) -> str:
        """What to tell a model of its tools, for the system message; for templates that do not."""
        schemas = "\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools)
        example = self.syntax.text([("FUNCTION_NAME", '{"ARGUMENT": "VALUE"}')])
        return (
            "You can call functions to help the user. These are the functions, each with a JSON Schema of "
            f"its parameters:\n<tools>\n{schemas}\n</tools>\n\n"
            f"To call a function, write its name and its arguments in exactly this form:\n{example}\n\n"
            f"{_demand(choice)}"
        )

    def parser(self, tools: list[dict[str, Any]]) -> ToolCallParser:
        """A parser for one answer."""
        return self.parser_type(tools, self.make_id)

    def constraint(
        self, tools: list[dict[str, Any]], choice: Literal["required"] | NamedTool, parallel: bool
    ) -> Constraint:
        """Makes the whole answer calls: of any tools, or one call of the tool that is named.

        Arguments follow each tool's JSON Schema. `parallel` allows more than one call, where the family
        knows of such.

        Raises:
            ConstraintError: there is no such tool.
        """
        functions = [tool["function"] for tool in tools]
        if isinstance(choice, NamedTool):
            functions = [function for function in functions if function["name"] == choice.name]
            if not functions:
                raise ConstraintError(
                    f"there is no tool of the name '{choice.name}'", hint="name one of 'tools'"
                )
        if not functions:
            raise ConstraintError("a call is required, and there are no tools", hint="add some to 'tools'")
        return self.syntax.grammar(functions, several=parallel and choice == "required")

    def template_messages(self, messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """OpenAI's messages as the template wants them: calls and results in the family's own form."""
        return self.adapt(messages)


def _demand(choice: ToolChoice) -> str:
    if isinstance(choice, NamedTool):
        return f"Answer with a call of the function {choice.name} and nothing else."
    if choice == "required":
        return "Answer with a call and nothing else."
    return "When no function is of use, answer in plain text."
