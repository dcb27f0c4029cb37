"""Reads a call in Qwen3-Coder's XML, which Qwen3.5 and Nemotron 3 write as well.

    <function=get_weather>
    <parameter=city>
    Paris
    </parameter>
    </function>

Values are not quoted: the tool's schema says what they are. Source: the chat template of Qwen3-Coder.
"""

from __future__ import annotations

import json
import re
from typing import Any

from edgekit.server.tools.calls import CallReader, NotACallError
from edgekit.server.tools.cursor import Cursor, Reading

__all__ = ["read_function"]

_NAME = re.compile(r"[^<>\s=]*")
_MAX_NAME = 256
_CLOSING = "</parameter>"


def read_function(cursor: Cursor, call: CallReader, tools: list[dict[str, Any]]) -> Reading[None]:
    """Read a call; the cursor stands after `<function=`. A parameter is told when it is there in full.

    Raises:
        NotACallError: it cannot be read.
    """
    name = yield from _name(cursor)
    call.named(name)
    properties = _properties(name, tools)
    joint = "{"
    while True:
        yield from cursor.skip_space()
        if (yield from cursor.take("<parameter=")) is None:
            break
        key = yield from _name(cursor)
        value = yield from _until_closing(cursor)
        call.take_arguments(
            f"{joint}{json.dumps(key, ensure_ascii=False)}: {_as_json(value, properties.get(key))}"
        )
        joint = ", "
    closing = yield from cursor.take("</function>")
    if closing is None and not call.told:
        raise NotACallError
    call.take_arguments("{}" if joint == "{" else "}")


def _name(cursor: Cursor) -> Reading[str]:
    name = yield from cursor.run(_NAME, _MAX_NAME)
    if not name or (yield from cursor.take(">")) is None:
        raise NotACallError
    return name


def _until_closing(cursor: Cursor) -> Reading[str]:
    start = cursor.position
    while (end := cursor.text.find(_CLOSING, start)) < 0:
        if cursor.ended:
            cursor.position = start
            raise NotACallError
        yield
    cursor.position = end + len(_CLOSING)
    return cursor.text[start:end].removeprefix("\n").removesuffix("\n")


def _properties(name: str, tools: list[dict[str, Any]]) -> dict[str, Any]:
    for tool in tools:
        if tool["function"]["name"] == name:
            properties = (tool["function"].get("parameters") or {}).get("properties")
            return properties if isinstance(properties, dict) else {}
    return {}


def _as_json(value: str, schema: Any) -> str:
    """A value as JSON: a string where the schema wants one or where it is nothing else."""
    wanted = schema.get("type") if isinstance(schema, dict) else None
    if wanted != "string":
        word = {"True": "true", "False": "false", "None": "null"}.get(value.strip(), value.strip())
        try:
            json.loads(word, parse_constant=_refuse)
            return word
        except (ValueError, RecursionError):
            pass
    return json.dumps(value, ensure_ascii=False)


def _refuse(word: str) -> None:
    raise ValueError(word)
