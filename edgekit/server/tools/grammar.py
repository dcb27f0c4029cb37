"""Grammars that make a model call tools, in llguidance's variant of Lark.

Source: llguidance's docs/syntax.md and docs/json_schema.md (1.9).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Final, Literal

from edgekit.engine.base import Constraint
from edgekit.errors import ConstraintError
from edgekit.server.tools.parts import NamedTool

__all__ = ["call_grammar", "literal", "schemas_of"]

_GUIDANCE: Final = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""JSON as Python writes it, which is what models are trained on. With white space left free a small model may
write nothing else until it runs out of tokens."""


def schemas_of(
    tools: list[dict[str, Any]], choice: Literal["required"] | NamedTool
) -> list[tuple[str, dict[str, Any]]]:
    """The tools that may be called, as name and JSON Schema of the arguments.

    Arguments that a schema does not name are not allowed, unless it says that they are: small models make
    them up. Keywords that the grammar cannot express are passed over, but not in a tool that is `strict`.

    Raises:
        ConstraintError: there is no such tool.
    """
    functions = [tool["function"] for tool in tools]
    if isinstance(choice, NamedTool):
        functions = [function for function in functions if function["name"] == choice.name]
        if not functions:
            raise ConstraintError(
                f"there is no tool of the name '{choice.name}'", hint="add it to 'tools', or name another"
            )
    if not functions:
        raise ConstraintError("a call is required, and there are no tools", hint="add some to 'tools'")
    return [(str(function["name"]), _arguments_schema(function)) for function in functions]


def call_grammar(
    calls: Sequence[tuple[str, dict[str, Any], str]],
    *,
    before: str = "",
    between: str | None = None,
    after: str = "",
) -> Constraint:
    """A grammar for an answer that is calls.

    Args:
        calls: for each tool the text before its arguments, their schema, the text after them.
        before, after: what stands around all calls.
        between: what stands between two calls; None allows one only.
    """
    rules = [
        f"call_{index}: {literal(head)} %json {json.dumps(schema)} {literal(tail)}"
        for index, (head, schema, tail) in enumerate(calls)
    ]
    body = "call" if between is None else f"call ({literal(between)} call)*"
    parts = [literal(before), body, literal(after)]
    return Constraint(
        "lark",
        "\n".join(
            [
                f"start: {' '.join(part for part in parts if part)}",
                f"call: {' | '.join(f'call_{index}' for index in range(len(calls)))}",
                *rules,
                "",
            ]
        ),
    )


def literal(text: str) -> str:
    """A text as Lark's string; nothing for an empty one."""
    return json.dumps(text, ensure_ascii=False) if text else ""


def _arguments_schema(function: dict[str, Any]) -> dict[str, Any]:
    schema = dict(function.get("parameters") or {"properties": {}})
    if not schema.keys() & {"type", "anyOf", "allOf", "oneOf", "$ref", "const", "enum"}:
        schema["type"] = "object"
    if "properties" in schema:
        schema.setdefault("additionalProperties", False)
    return {**schema, "x-guidance": {**_GUIDANCE, "lenient": not function.get("strict")}}
