"""Llama 3.1, 3.2 and 3.3: a JSON object as the whole answer.

    {"name": "get_weather", "parameters": {"city": "Paris"}}

`<|python_tag|>` may stand before it. Source: the chat templates of Llama 3.1 and 3.2, and Meta's description
of the prompt format.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Final

from edgekit.server.tools.cursor import Reading
from edgekit.server.tools.hermes import HermesParser
from edgekit.server.tools.messages import calls_of, with_object_arguments
from edgekit.server.tools.syntax import JsonSyntax

__all__ = ["SYNTAX", "LlamaParser", "with_one_call_each"]

SYNTAX: Final = JsonSyntax(head='{"name": "NAME", "parameters": ', tail="}")

_PYTHON_TAG: Final = "<|python_tag|>"


class LlamaParser(HermesParser):
    """Reads an answer that is calls, separated by semicolons if there are several; also `<tool_call>`."""

    openings: tuple[str, ...] = (_PYTHON_TAG, *HermesParser.openings)

    def _read_marked(self, opening: str) -> Reading[None]:
        if opening == _PYTHON_TAG:
            yield from self._read_sequence(known=None)
        else:
            yield from super()._read_marked(opening)

    def _read_bare(self) -> Reading[None]:
        yield from self._read_sequence(known=self._names)

    def _read_sequence(self, *, known: Collection[str] | None) -> Reading[None]:
        cursor = self._cursor
        yield from cursor.skip_space()
        yield from self._read_objects(known=known)
        while True:
            if (yield from cursor.skip_space()) in (";", ","):
                cursor.position += 1
                yield from cursor.skip_space()
            if (yield from cursor.peek()) != "{":
                break
            yield from self._read_objects(known=known)
        cursor.position = self._mark


def with_one_call_each(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The messages with no more than one call in each, and each call's result after it.

    The templates refuse several calls in a message, and pass over its text.
    """
    told: list[dict[str, Any]] = []
    results = {str(message.get("tool_call_id")): message for message in messages if message["role"] == "tool"}
    placed: set[str] = set()
    for message in with_object_arguments(messages):
        calls = calls_of(message)
        if not calls:
            if message["role"] != "tool" or str(message.get("tool_call_id")) not in placed:
                told.append(message)
            continue
        if message.get("content"):
            told.append({"role": "assistant", "content": message["content"]})
        for call in calls:
            told.append({"role": "assistant", "content": "", "tool_calls": [call]})
            identity = str(call.get("id"))
            if len(calls) > 1 and identity in results and identity not in placed:
                told.append(results[identity])
                placed.add(identity)
    return told
