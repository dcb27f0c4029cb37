"""`<tool_call>` around JSON: Hermes, Qwen2.5, Qwen3, QwQ, Granite 4, and models that are told to do so.

    <tool_call>
    {"name": "get_weather", "arguments": {"city": "Paris"}}
    </tool_call>

Source: the chat templates of Qwen2.5, Qwen3 and Hermes 2 Pro.
"""

from __future__ import annotations

import json
from typing import Any, Literal

from edgekit.engine.base import Constraint
from edgekit.server.tools.coder_arguments import read_function
from edgekit.server.tools.cursor import Reading
from edgekit.server.tools.grammar import call_grammar, schemas_of
from edgekit.server.tools.messages import with_object_arguments
from edgekit.server.tools.parts import MakeId, NamedTool, ToolCallParser, ToolChoice, ToolFormat
from edgekit.server.tools.stream import StreamParser
from edgekit.server.tools.telling import demand, tool_lines

__all__ = ["HermesFormat", "HermesParser"]

_OPENING = "<tool_call>"
_CLOSING = "</tool_call>"
_FUNCTION = "<function="


class HermesParser(StreamParser):
    """Reads calls in `<tool_call>`, whether they are JSON or Qwen3-Coder's XML."""

    openings = (_OPENING, _FUNCTION)

    def __init__(self, tools: list[dict[str, Any]], make_id: MakeId) -> None:
        super().__init__(tools, make_id)
        self._tools = tools

    def _read_marked(self, opening: str) -> Reading[None]:
        cursor = self._cursor
        if opening == _FUNCTION:
            cursor.position -= len(_FUNCTION)
        yield from self._one()
        while (yield from self._drop(_CLOSING, "}")) == "}":
            pass
        # Some write all of their calls into one pair of tags.
        while (yield from cursor.skip_space()) == "{":
            yield from self._one()
            while (yield from self._drop(_CLOSING, "}")) == "}":
                pass
        cursor.position = self._mark

    def _one(self) -> Reading[None]:
        yield from self._cursor.skip_space()
        if (yield from self._cursor.take(_FUNCTION)) is not None:
            yield from read_function(self._cursor, self._call(), self._tools)
        else:
            yield from self._call(closings=(_CLOSING,)).read_object()
        self._mark_end()


class HermesFormat(ToolFormat):
    """Calls as JSON in `<tool_call>`; tool results in `<tool_response>`."""

    name = "hermes"
    markers = (_OPENING, _CLOSING)

    def system_text(self, tools: list[dict[str, Any]], choice: ToolChoice) -> str:
        return (
            "You may call functions to help the user. These are the functions, each with a JSON Schema of "
            f"its arguments:\n<tools>\n{tool_lines(tools)}\n</tools>\n\n"
            "To call a function, write a JSON object with its name and its arguments between <tool_call> "
            'tags, like this:\n<tool_call>\n{"name": "<function name>", "arguments": <JSON object>}\n'
            "</tool_call>\nTo call several, write one such block after the other. The results come back to "
            f"you between <tool_response> tags. {demand(choice)}"
        )

    def parser(self, tools: list[dict[str, Any]]) -> ToolCallParser:
        return HermesParser(tools, self._make_id)

    def constraint(
        self, tools: list[dict[str, Any]], choice: Literal["required"] | NamedTool, parallel: bool
    ) -> Constraint:
        calls = [
            (f'{_OPENING}\n{{"name": {json.dumps(name)}, "arguments": ', schema, f"}}\n{_CLOSING}")
            for name, schema in schemas_of(tools, choice)
        ]
        return call_grammar(calls, between="\n" if parallel and choice == "required" else None)

    def template_messages(self, messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
        # Qwen2.5's template writes arguments as JSON once more; Qwen3's takes them as text too.
        return with_object_arguments(messages)
