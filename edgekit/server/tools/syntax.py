"""How a family writes calls: as text for a prompt, and as a grammar that makes a model write them.

Source of the grammars' language: llguidance's docs/syntax.md and docs/json_schema.md (1.9).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

from edgekit.engine.base import Constraint

__all__ = ["CallSyntax", "JsonSyntax", "arguments_schema", "constraint", "guided", "literal"]

_GUIDANCE: Final = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""JSON as Python writes it, which is what models are trained on. With white space left free a small model may
write nothing else until it runs out of tokens."""


class CallSyntax(Protocol):
    """How calls are written."""

    def text(self, calls: Sequence[tuple[str, str]]) -> str:
        """Calls, given as names and JSON of the arguments."""

    def grammar(self, functions: Sequence[dict[str, Any]], *, several: bool) -> Constraint:
        """Makes an answer one call of one of these functions, or `several`, if the family can."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JsonSyntax:
    """Calls whose arguments are JSON with fixed texts around them.

    NAME in `head` stands for the function's name.
    """

    head: str
    tail: str
    opening: str = ""
    """Stands before all calls."""
    closing: str = ""
    between: str | None = None
    """Stands between two calls; None where there can only be one."""
    call_id: str | None = None
    """What ID in `head` stands for, as a regular expression."""

    def text(self, calls: Sequence[tuple[str, str]]) -> str:
        """Calls, given as names and JSON of the arguments."""
        written = [f"{self._head(name)}{arguments}{self.tail}" for name, arguments in calls]
        return self.opening + ("\n" if self.between is None else self.between).join(written) + self.closing

    def grammar(self, functions: Sequence[dict[str, Any]], *, several: bool) -> Constraint:
        """Makes an answer one call of one of these functions, or `several`, if the family can."""
        calls = [
            f"{self._head_rule(function['name'])} {guided(arguments_schema(function), function)}"
            f" {literal(self.tail)}"
            for function in functions
        ]
        return constraint(
            calls, before=self.opening, between=self.between if several else None, after=self.closing
        )

    def _head(self, name: str) -> str:
        return self.head.replace("NAME", json.dumps(name, ensure_ascii=False)[1:-1])

    def _head_rule(self, name: str) -> str:
        head = self._head(name)
        if self.call_id is None:
            return literal(head)
        before, _, after = head.rpartition("ID")
        return f"{literal(before)} /{self.call_id}/ {literal(after)}"


def constraint(
    calls: Sequence[str],
    *,
    before: str = "",
    between: str | None = None,
    after: str = "",
    rules: Sequence[str] = (),
) -> Constraint:
    """A grammar for an answer that is calls.

    Args:
        calls: for each function a call of it, in Lark.
        before, after: the texts around all calls.
        between: the text between two calls; None allows one only.
        rules: more rules, which `calls` refer to.
    """
    body = "call" if between is None else f"call ({literal(between)} call)*"
    start = " ".join(part for part in (literal(before), body, literal(after)) if part)
    lines = [
        f"start: {start}",
        f"call: {' | '.join(f'call_{index}' for index in range(len(calls)))}",
        *(f"call_{index}: {call}" for index, call in enumerate(calls)),
        *rules,
    ]
    return Constraint("lark", "\n".join(lines) + "\n")


def literal(text: str) -> str:
    """A text as Lark's string; nothing for an empty one."""
    return json.dumps(text, ensure_ascii=False) if text else ""


def arguments_schema(function: dict[str, Any]) -> dict[str, Any]:
    """The JSON Schema of a function's arguments.

    Arguments that it does not name are not allowed, unless it says that they are: small models make them up.
    """
    schema = dict(function.get("parameters") or {"properties": {}})
    schema.setdefault("type", "object")
    if "properties" in schema and not schema.keys() & {"anyOf", "allOf", "oneOf", "$ref"}:
        schema.setdefault("additionalProperties", False)
    return schema


def guided(schema: dict[str, Any], function: dict[str, Any]) -> str:
    """JSON by a schema, in Lark.

    What llguidance cannot express is passed over, unless the function is `strict`.
    """
    guidance = {**_GUIDANCE, "lenient": not function.get("strict")}
    return f"%json {json.dumps({**schema, 'x-guidance': guidance})}"
