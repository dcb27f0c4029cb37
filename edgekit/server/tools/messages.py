"""Puts OpenAI's messages into a form that chat templates take."""

from __future__ import annotations

import contextlib
import json
from typing import Any

from edgekit.server.tools.syntax import CallSyntax

__all__ = ["calls_of", "named_calls", "with_object_arguments", "without_tools"]


def calls_of(message: dict[str, Any]) -> list[dict[str, Any]]:
    """The calls that a message makes."""
    return list(message.get("tool_calls") or [])


def named_calls(message: dict[str, Any]) -> list[tuple[str, str]]:
    """The calls that a message makes: names, and arguments as JSON."""
    return [
        (call["function"]["name"], json.dumps(_arguments(call), ensure_ascii=False))
        for call in calls_of(message)
    ]


def with_object_arguments(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The messages with every call's arguments as an object, which most templates write as JSON themselves.

    Messages without calls have no `tool_calls`: some templates ask only whether the key is there.
    """
    return [
        {**message, "tool_calls": [_with_object(call) for call in calls]}
        if (calls := calls_of(message))
        else _without_calls(message)
        for message in messages
    ]


def without_tools(messages: list[dict[str, Any]], syntax: CallSyntax) -> list[dict[str, Any]]:
    """The messages for a template that knows nothing of tools: calls and results become text.

    Results come from the user, all of one turn in one message: templates may insist that roles take turns.
    """
    told: list[dict[str, Any]] = []
    after_result = False
    for message in messages:
        if message["role"] == "tool":
            message = {
                "role": "user",
                "content": f"<tool_response>\n{message['content']}\n</tool_response>",
            }
            is_result = True
        else:
            is_result = False
            if calls_of(message):
                calls = syntax.text(named_calls(message))
                content = "\n".join(filter(None, [message.get("content"), calls]))
                message = {**_without_calls(message), "content": content}
        if after_result and message["role"] == "user":
            message = {**message, "content": f"{told.pop()['content']}\n{message['content']}"}
        told.append(message)
        after_result = is_result
    return told


def _without_calls(message: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in message.items() if key != "tool_calls"}


def _with_object(call: dict[str, Any]) -> dict[str, Any]:
    return {**call, "type": "function", "function": {**call["function"], "arguments": _arguments(call)}}


def _arguments(call: dict[str, Any]) -> dict[str, Any]:
    """A call's arguments. What a model once wrote may not be JSON: it is an argument then."""
    arguments = call["function"].get("arguments") or {}
    if isinstance(arguments, str):
        with contextlib.suppress(ValueError, RecursionError):
            arguments = json.loads(arguments)
    return arguments if isinstance(arguments, dict) else {"arguments": arguments}
