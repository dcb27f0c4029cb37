"""For models whose chat templates know nothing of tools: they are told to call them as Hermes does."""

from __future__ import annotations

import json
from typing import Any

from edgekit.server.tools.hermes import HermesFormat
from edgekit.server.tools.messages import arguments_text, calls_of

__all__ = ["GenericFormat"]


class GenericFormat(HermesFormat):
    """Calls as JSON in `<tool_call>`; calls and results of earlier turns go into the messages' text."""

    name = "generic"

    def template_messages(self, messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
        told: list[dict[str, Any]] = []
        after_result = False
        for message in messages:
            if message["role"] == "tool":
                text = f"<tool_response>\n{message['content']}\n</tool_response>"
                if after_result:
                    # One message for all results: templates may insist that roles take turns.
                    text = f"{told.pop()['content']}\n{text}"
                told.append({"role": "user", "content": text})
            else:
                told.append(_as_text(message))
            after_result = message["role"] == "tool"
        return told


def _as_text(message: dict[str, Any]) -> dict[str, Any]:
    rest = {key: value for key, value in message.items() if key != "tool_calls"}
    calls = [
        f'<tool_call>\n{{"name": {json.dumps(name)}, "arguments": {arguments_text(call)}}}\n</tool_call>'
        for call in calls_of(message)
        if (name := call["function"]["name"])
    ]
    if not calls:
        return rest
    return {**rest, "content": "\n".join([text for text in [message.get("content") or ""] if text] + calls)}
