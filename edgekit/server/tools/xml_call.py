"""Calls in XML: Qwen3-Coder, Qwen3.5, Nemotron 3.

    <tool_call>
    <function=get_weather>
    <parameter=city>
    Paris
    </parameter>
    </function>
    </tool_call>

Values are not quoted: the tool's schema says what they are. Source: the chat template of Qwen3-Coder.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any, Final

from edgekit.engine.base import Constraint
from edgekit.server.tools.calls import CallReader, NotACallError
from edgekit.server.tools.cursor import Cursor, Reading
from edgekit.server.tools.syntax import arguments_schema, constraint, guided, literal

__all__ = ["FUNCTION", "XmlSyntax", "read_function"]

FUNCTION: Final = "<function="
_PARAMETER: Final = "<parameter="
_PARAMETER_END: Final = "</parameter>"
_FUNCTION_END: Final = "</function>"
_CALL_END: Final = "</tool_call>"
_NAME: Final = re.compile(r"[^<>\s=]*")
_MAX_NAME: Final = 256


class XmlSyntax:
    """How these families write calls."""

    def text(self, calls: Sequence[tuple[str, str]]) -> str:
        """Calls, given as names and JSON of the arguments."""
        return "\n".join(
            f"<tool_call>\n{FUNCTION}{name}>\n{_parameters(arguments)}{_FUNCTION_END}\n</tool_call>"
            for name, arguments in calls
        )

    def grammar(self, functions: Sequence[dict[str, Any]], *, several: bool) -> Constraint:
        """Makes an answer one call of one of these functions, or `several`."""
        calls = []
        for function in functions:
            head = f"<tool_call>\n{FUNCTION}{function['name']}>\n"
            tail = f"{_FUNCTION_END}\n{_CALL_END}"
            calls.append(f"{literal(head)} {_parameter_rules(function)} {literal(tail)}")
        text = r"text[lazy]: /(.|\n)*\n<\/parameter>\n/"
        return constraint(calls, between="\n" if several else None, rules=[text])


def read_function(cursor: Cursor, call: CallReader, tools: list[dict[str, Any]]) -> Reading[None]:
    """Read a call; the cursor stands after `<function=`. A parameter is told when it is there in full.

    Llama 3.1 is documented to write JSON in place of parameters, which is read as well.

    Raises:
        NotACallError: it cannot be read.
    """
    name = yield from _name(cursor)
    call.named(name)
    if (yield from cursor.skip_space()) == "{":
        yield from call.read_arguments()
        yield from cursor.skip_space()
        yield from cursor.take(_FUNCTION_END)
        return
    properties = _properties(name, tools)
    joint = "{"
    while True:
        start = cursor.position
        if (yield from cursor.take(_PARAMETER)) is None:
            break
        try:
            key = yield from _name(cursor)
        except NotACallError:
            cursor.position = start
            raise
        head = f"{joint}{json.dumps(key, ensure_ascii=False)}: "
        value = yield from _until_end(cursor)
        if value is None:
            call.cut_off(head + json.dumps(cursor.rest.removeprefix("\n"), ensure_ascii=False)[:-1])
        call.take_arguments(head + _as_json(value, properties.get(key)))
        joint = ", "
        yield from cursor.skip_space()
    end = cursor.position
    closing = yield from cursor.take(_FUNCTION_END, _CALL_END)
    if closing is None:
        if cursor.ended and _FUNCTION_END.startswith(cursor.rest):
            call.cut_off("")
        raise NotACallError
    if closing == _CALL_END:
        cursor.position = end
    call.take_arguments("{}" if joint == "{" else "}")


def _name(cursor: Cursor) -> Reading[str]:
    name = yield from cursor.run(_NAME, _MAX_NAME)
    if not name or (yield from cursor.take(">")) is None:
        raise NotACallError
    return name


def _until_end(cursor: Cursor) -> Reading[str | None]:
    """A parameter's value; None, and nothing read, where the text ends before it does."""
    start = cursor.position
    while (end := cursor.text.find(_PARAMETER_END, start)) < 0:
        if cursor.ended:
            return None
        yield
    cursor.position = end + len(_PARAMETER_END)
    return cursor.text[start:end].removeprefix("\n").removesuffix("\n")


def _properties(name: str, tools: list[dict[str, Any]]) -> dict[str, Any]:
    for tool in tools:
        if tool["function"]["name"] == name:
            properties = (tool["function"].get("parameters") or {}).get("properties")
            return properties if isinstance(properties, dict) else {}
    return {}


def _as_json(value: str, schema: Any) -> str:
    """A value as JSON: a string where the schema wants one or where it can be nothing else."""
    if not isinstance(schema, dict) or schema.get("type") != "string":
        word = {"True": "true", "False": "false", "None": "null"}.get(value.strip(), value.strip())
        try:
            json.loads(word, parse_constant=_refuse)
            return word
        except (ValueError, RecursionError):
            pass
    return json.dumps(value, ensure_ascii=False)


def _refuse(word: str) -> None:
    raise ValueError(word)


def _parameters(arguments: str) -> str:
    return "".join(
        f"{_PARAMETER}{key}>\n{value if isinstance(value, str) else json.dumps(value)}\n{_PARAMETER_END}\n"
        for key, value in json.loads(arguments).items()
    )


def _parameter_rules(function: dict[str, Any]) -> str:
    schema = arguments_schema(function)
    required = schema.get("required") or []
    shared: dict[str, Any] = {key: schema[key] for key in ("$defs", "definitions") if key in schema}
    rules = []
    for key, wanted in (schema.get("properties") or {}).items():
        head = literal(f"{_PARAMETER}{key}>\n")
        rule = f"{head} {_value_rule(wanted, shared, function)}"
        rules.append(rule if key in required else f"({rule})?")
    return " ".join(rules)


def _value_rule(wanted: Any, shared: dict[str, Any], function: dict[str, Any]) -> str:
    end = f"\n{_PARAMETER_END}\n"
    if not isinstance(wanted, dict):
        return "text"
    options = wanted.get("enum") or ([wanted["const"]] if "const" in wanted else [])
    if options:
        return "(" + " | ".join(literal(_plain(option) + end) for option in options) + ")"
    if wanted.get("type") == "string":
        return "text"
    return f"{guided({**shared, **wanted}, function)} {literal(end)}"


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
