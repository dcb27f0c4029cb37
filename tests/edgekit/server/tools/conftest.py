"""Tools, templates and conversations that all families are tested with."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from edgekit.server.tools import ToolFormat, ToolParts, tool_format

TEMPLATES = Path(__file__).parent / "templates"
R1 = Path(__file__).parents[3] / "fixtures" / "r1-tokenizer" / "tokenizer_config.json"

# What detection goes by, where the whole template is not at hand or makes no difference.
SIGNS = {
    "generic": "{% for message in messages %}{{ message.content }}{% endfor %}",
    "hermes": "<tool_call>",
    "deepseek": "tool▁sep ```json",
    "deepseek-v3.1": "tool▁sep",
    "qwen3-coder": "<tool_call> <parameter=",
    "llama3": 'ipython "parameters": ',
    "mistral": "[TOOL_CALLS]",
    "mistral-id": "[TOOL_CALLS] [CALL_ID] [ARGS]",
    "mistral-args": "[TOOL_CALLS] [ARGS]",
}


@dataclass(frozen=True)
class Answer:
    """An answer put together again: its text, and its calls as id, name and arguments."""

    content: str
    calls: tuple[tuple[str, str, str], ...] = ()


@pytest.fixture(scope="session")
def family() -> Callable[[str], ToolFormat]:
    """A family's format, with ids call_0, call_1, …"""

    def make(name: str) -> ToolFormat:
        ids = (f"call_{number}" for number in itertools.count())
        return tool_format(SIGNS[name], make_id=lambda: next(ids))

    return make


@pytest.fixture(scope="session")
def template_source() -> Callable[[str], str]:
    """A published chat template. `deepseek-r1` is the one in the tokenizer's fixture."""

    def load(name: str) -> str:
        if name == "deepseek-r1":
            return str(json.loads(R1.read_text(encoding="utf-8"))["chat_template"])
        return (TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8")

    return load


@pytest.fixture(scope="session")
def tools() -> list[dict[str, Any]]:
    """Two functions, one of which takes nothing."""
    return [
        {
            "type": "function",
            "function": {
                "name": "get_weather",
                "description": "The weather of a city.",
                "parameters": {
                    "type": "object",
                    "properties": {
                        "city": {"type": "string"},
                        "days": {"type": "integer"},
                        "unit": {"type": "string", "enum": ["C", "F"]},
                    },
                    "required": ["city"],
                },
            },
        },
        {"type": "function", "function": {"name": "get_time"}},
    ]


@pytest.fixture(scope="session")
def read_pieces(
    family: Callable[[str], ToolFormat], tools: list[dict[str, Any]]
) -> Callable[[str, Iterable[str]], Answer]:
    """Parses an answer that comes in pieces, and holds every delta to OpenAI's rules."""

    def read(name: str, pieces: Iterable[str]) -> Answer:
        parser = family(name).parser(tools)
        parts: list[ToolParts] = [parser.push(piece) for piece in pieces]
        parts.append(parser.finish())
        calls: list[list[str]] = []
        for delta in (delta for part in parts for delta in part.calls):
            if delta.index == len(calls):
                assert delta.id is not None
                assert delta.name is not None
                calls.append([delta.id, delta.name, ""])
            else:
                assert delta.index == len(calls) - 1
                assert (delta.id, delta.name) == (None, None)
            calls[delta.index][2] += delta.arguments
        content = "".join(part.content for part in parts)
        return Answer(content, tuple((call[0], call[1], call[2]) for call in calls))

    return read


@pytest.fixture(scope="session")
def read(read_pieces: Callable[[str, Iterable[str]], Answer]) -> Callable[[str, str], Answer]:
    """Parses an answer that is there in full, a character at a time, and in two pieces cut anywhere: the
    same must come of all."""

    def run(name: str, text: str) -> Answer:
        whole = read_pieces(name, [text])
        assert read_pieces(name, text) == whole
        for cut in range(len(text) + 1):
            assert read_pieces(name, [text[:cut], text[cut:]]) == whole, f"cut at {cut}"
        return whole

    return run


@pytest.fixture
def conversation() -> list[dict[str, Any]]:
    """Two calls at once after some text, their results, an answer; then one call more and its result."""

    def call(number: int, city: str) -> dict[str, Any]:
        arguments = json.dumps({"city": city})
        return {
            "id": f"call_{number}",
            "type": "function",
            "function": {"name": "get_weather", "arguments": arguments},
        }

    return [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Paris and Rome?"},
        {"role": "assistant", "content": "Looking.", "tool_calls": [call(1, "Paris"), call(2, "Rome")]},
        {"role": "tool", "tool_call_id": "call_1", "content": "sun"},
        {"role": "tool", "tool_call_id": "call_2", "content": "rain"},
        {"role": "assistant", "content": "Sun, then rain."},
        {"role": "user", "content": "Oslo?"},
        {"role": "assistant", "content": "", "tool_calls": [call(3, "Oslo")]},
        {"role": "tool", "tool_call_id": "call_3", "content": "snow"},
    ]
