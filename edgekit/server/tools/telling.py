"""Tells a model in words what tools there are and whether it must call one."""

from __future__ import annotations

import json
from typing import Any

from edgekit.server.tools.parts import NamedTool, ToolChoice

__all__ = ["demand", "tool_lines"]


def tool_lines(tools: list[dict[str, Any]]) -> str:
    """The tools as JSON, one a line, as models have seen them in training."""
    return "\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools)


def demand(choice: ToolChoice) -> str:
    """What is wanted of the next answer."""
    if isinstance(choice, NamedTool):
        return f"Answer with a call of the function {choice.name} and nothing else."
    if choice == "required":
        return "Answer with a call and nothing else."
    return "When no function is of use, answer in plain text."
