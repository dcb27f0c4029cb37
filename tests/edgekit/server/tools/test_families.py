from __future__ import annotations

from collections.abc import Callable

import pytest

from edgekit.engine.text import SPOKEN_TOKENS
from edgekit.server.tools import tool_format


@pytest.mark.parametrize(
    ("template", "name", "takes_tools"),
    [
        ("deepseek-r1", "deepseek", False),
        ("deepseek-r1-distill-qwen", "deepseek", False),
        ("deepseek-v3.1", "deepseek-v3.1", False),
        ("mistral-nemo", "mistral", True),
        ("qwen2.5", "hermes", True),
        ("qwen3", "hermes", True),
        ("qwen3-coder", "qwen3-coder", True),
    ],
)
def test_tool_format__published_template_is_told_by_its_text(
    template: str, name: str, takes_tools: bool, template_source: Callable[[str], str]
) -> None:
    found = tool_format(template_source(template))

    assert (found.name, found.template_takes_tools) == (name, takes_tools)


@pytest.mark.parametrize("source", [None, "", "{{ messages }}", "{% if", "{% break %}"])
def test_tool_format__unknown_or_broken_template_is_generic(source: str | None) -> None:
    found = tool_format(source)

    assert (found.name, found.template_takes_tools) == ("generic", False)


@pytest.mark.parametrize("sign", ["<arg_key>", '<invoke name="'])
def test_tool_format__other_forms_inside_the_same_tag_are_not_taken_for_hermes(sign: str) -> None:
    # GLM-4.5 and MiniMax write these between <tool_call> tags; their templates are not given tools.
    found = tool_format("{{ tools }}<tool_call>" + sign)

    assert (found.name, found.template_takes_tools) == ("generic", False)


def test_tool_format__only_a_variable_of_the_name_tools_counts() -> None:
    mentions = "{% for tool in message.tool_calls %}{{ tool }}tools{% endfor %}<tool_call>"
    reads = "{% if tools is defined and tools %}{{ tools | tojson }}{% endif %}<tool_call>"

    assert not tool_format(mentions).template_takes_tools
    assert tool_format(reads).template_takes_tools


def test_tool_format__ids_are_openais_and_fresh() -> None:
    make_id = tool_format(None).make_id

    assert make_id().startswith("call_")
    assert len({make_id() for _ in range(100)}) == 100


def test_markers__engine_lets_them_out_where_they_are_control_tokens() -> None:
    # A parser cannot find what the engine keeps to itself.
    assert {
        *("<tool_call>", "</tool_call>", "[TOOL_CALLS]", "[ARGS]", "[CALL_ID]", "<|python_tag|>"),
        *("<｜tool▁calls▁begin｜>", "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>"),
        *("<｜tool▁call▁end｜>", "<｜tool▁calls▁end｜>"),
    } <= SPOKEN_TOKENS
