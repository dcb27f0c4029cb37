"""Puts OpenAI's messages into the form that a family's chat template expects."""

from __future__ import annotations

import json
from typing import Any

__all__ = ["arguments_text", "calls_of", "with_object_arguments"]


def calls_of(message: dict[str, Any]) -> list[dict[str, Any]]:
    """The calls that a message makes."""
    return list(message.get("tool_calls") or [])


def arguments_text(call: dict[str, Any]) -> str:
    """A call's arguments as JSON."""
    arguments = call["function"].get("arguments")
    return arguments if isinstance(arguments, str) else json.dumps(arguments or {}, ensure_ascii=False)


def with_object_arguments(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The messages with every call's arguments as an object: for templates that write them as JSON."""
    return [
        {**message, "tool_calls": [_with_object(call) for call in calls]}
        if (calls := calls_of(message))
        else {key: value for key, value in message.items() if key != "tool_calls"}
        for message in messages
    ]


def _with_object(call: dict[str, Any]) -> dict[str, Any]:
    function = call["function"]
    try:
        arguments = json.loads(arguments_text(call) or "{}")
    except (ValueError, RecursionError):
        # What the model once wrote; the template shows it as a string.
        arguments = function["arguments"]
    return {**call, "type": "function", "function": {**function, "arguments": arguments}}
