"""`<tool_call>` around JSON: Hermes, Qwen2.5, Qwen3, QwQ, Granite 4, and models that are told to do so.

    <tool_call>
    {"name": "get_weather", "arguments": {"city": "Paris"}}
    </tool_call>

Source: the chat templates of Qwen2.5, Qwen3 and Hermes 2 Pro.
"""

from __future__ import annotations

from typing import Any, Final

from edgekit.server.tools.cursor import Reading
from edgekit.server.tools.parts import MakeId
from edgekit.server.tools.stream import StreamParser
from edgekit.server.tools.syntax import JsonSyntax
from edgekit.server.tools.xml_call import FUNCTION, read_function

__all__ = ["SYNTAX", "HermesParser"]

_OPENING: Final = "<tool_call>"
_CLOSING: Final = "</tool_call>"

SYNTAX: Final = JsonSyntax(
    head=f'{_OPENING}\n{{"name": "NAME", "arguments": ', tail=f"}}\n{_CLOSING}", between="\n"
)


class HermesParser(StreamParser):
    """Reads calls in `<tool_call>`, whether they are JSON or Qwen3-Coder's XML."""

    openings: tuple[str, ...] = (_OPENING, FUNCTION)

    def __init__(self, tools: list[dict[str, Any]], make_id: MakeId) -> None:
        super().__init__(tools, make_id)
        self._tools = tools

    def _read_marked(self, opening: str) -> Reading[None]:
        cursor = self._cursor
        if opening == FUNCTION:
            yield from read_function(cursor, self._call(), self._tools)
        else:
            yield from self._read_one()
        yield from self._read_closing()
        # Some write all of their calls into one pair of tags.
        while (yield from cursor.skip_space()) == "{":
            yield from self._read_one()
            yield from self._read_closing()
        cursor.position = self._mark

    def _read_one(self) -> Reading[None]:
        yield from self._cursor.skip_space()
        if (yield from self._cursor.take(FUNCTION)) is not None:
            yield from read_function(self._cursor, self._call(), self._tools)
        else:
            yield from self._read_objects(closings=(_CLOSING,))

    def _read_closing(self) -> Reading[None]:
        self._mark_end()
        # A brace too many is a common slip.
        while (yield from self._drop(_CLOSING, "}")) == "}":
            pass
