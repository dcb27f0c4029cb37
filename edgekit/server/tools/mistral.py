"""Mistral's calls, in three forms, which its tokenizers' versions are told apart by.

    [TOOL_CALLS][{"name": "get_weather", "arguments": {"city": "Paris"}, "id": "a1b2c3d4e"}]
    [TOOL_CALLS]get_weather[CALL_ID]a1b2c3d4e[ARGS]{"city": "Paris"}
    [TOOL_CALLS]get_weather[ARGS]{"city": "Paris"}

Source: the chat templates of Mistral-Nemo-Instruct-2407, Mistral-Small-3.2 and Devstral-Small-2507.
"""

from __future__ import annotations

import hashlib
import re
from typing import Any, Final

from edgekit.server.tools.cursor import Reading
from edgekit.server.tools.messages import calls_of, with_object_arguments
from edgekit.server.tools.stream import StreamParser
from edgekit.server.tools.syntax import JsonSyntax

__all__ = ["SYNTAX_ARGS", "SYNTAX_ID", "SYNTAX_LIST", "MistralParser", "with_short_ids"]

_OPENING: Final = "[TOOL_CALLS]"
_ID: Final = re.compile(r"[A-Za-z0-9]*")
_NAME: Final = re.compile(r"[A-Za-z0-9_.-]*")
_MAX_NAME: Final = 256

SYNTAX_LIST: Final = JsonSyntax(
    opening=f"{_OPENING}[", head='{"name": "NAME", "arguments": ', tail="}", between=", ", closing="]"
)
SYNTAX_ID: Final = JsonSyntax(
    head=f"{_OPENING}NAME[CALL_ID]ID[ARGS]", tail="", between="", call_id="[a-zA-Z0-9]{9}"
)
SYNTAX_ARGS: Final = JsonSyntax(head=f"{_OPENING}NAME[ARGS]", tail="", between="")


class MistralParser(StreamParser):
    """Reads calls after `[TOOL_CALLS]`, in all forms. The model's own ids are passed over."""

    openings: tuple[str, ...] = (_OPENING,)

    def _read_marked(self, opening: str) -> Reading[None]:
        cursor = self._cursor
        char = yield from cursor.skip_space()
        if char and char in "[{":
            yield from self._read_objects(closings=(_OPENING,))
            return
        call = self._call(closings=(_OPENING,))
        call.named((yield from cursor.run(_NAME, _MAX_NAME)))
        if (yield from cursor.take("[CALL_ID]")) is not None:
            yield from cursor.run(_ID, _MAX_NAME)
        yield from cursor.take("[ARGS]")
        yield from cursor.skip_space()
        yield from call.read_arguments()
        self._mark_end()


def with_short_ids(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The messages with ids as the templates insist on: nine letters and digits, the same for the same."""
    return [_with_short_id(message) for message in with_object_arguments(messages)]


def _with_short_id(message: dict[str, Any]) -> dict[str, Any]:
    if calls := calls_of(message):
        return {**message, "tool_calls": [{**call, "id": _short(call.get("id"))} for call in calls]}
    if message["role"] == "tool":
        return {**message, "tool_call_id": _short(message.get("tool_call_id"))}
    return message


def _short(identity: Any) -> str:
    text = str(identity)
    return text if re.fullmatch("[A-Za-z0-9]{9}", text) else hashlib.sha256(text.encode()).hexdigest()[:9]
