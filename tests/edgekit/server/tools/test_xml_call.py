"""Verbatim forms: the chat template of Qwen3-Coder-30B-A3B-Instruct (in `templates/`)."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from edgekit.engine.chat_template import ChatTemplate
from edgekit.server.tools import tool_format

CALL = (
    "<tool_call>\n<function=get_weather>\n<parameter=city>\nParis\n</parameter>\n"
    "<parameter=days>\n3\n</parameter>\n</function>\n</tool_call>"
)


@pytest.mark.parametrize(
    "text",
    [
        CALL,
        CALL.removeprefix("<tool_call>\n").removesuffix("\n</tool_call>"),
        CALL.replace("\n</function>", ""),
        CALL.replace("\n", ""),
    ],
    ids=["verbatim", "untagged", "unclosed", "one-line"],
)
def test_parser__values_take_their_types_from_the_schema(text: str, read: Callable[[str, str], Any]) -> None:
    answer = read("qwen3-coder", text)

    assert (answer.content, answer.calls) == (
        "",
        (("call_0", "get_weather", '{"city": "Paris", "days": 3}'),),
    )


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("city", "12", "12"),
        ("city", "line one\n\n  line <two>", "line one\n\n  line <two>"),
        ("days", "many", "many"),
        ("days", "NaN", "NaN"),
        ("other", '{"a": [1]}', {"a": [1]}),
        ("other", "True", True),
        ("other", "word", "word"),
    ],
)
def test_parser__value(key: str, value: str, expected: Any, read: Callable[[str, str], Any]) -> None:
    text = f"<function=get_weather>\n<parameter={key}>\n{value}\n</parameter>\n</function>"

    assert json.loads(read("qwen3-coder", text).calls[0][2]) == {key: expected}


def test_parser__no_parameters_are_an_empty_object(read: Callable[[str, str], Any]) -> None:
    answer = read("qwen3-coder", "<tool_call>\n<function=get_time>\n</function>\n</tool_call>")

    assert answer.calls == (("call_0", "get_time", "{}"),)


@pytest.mark.parametrize(
    "cut", ["Par", "Paris\n</para", "Paris\n</parameter>\n", "Paris\n</parameter>\n</func"]
)
def test_parser__cut_call_has_arguments_that_do_not_end(cut: str, read: Callable[[str, str], Any]) -> None:
    answer = read("qwen3-coder", CALL.partition("Paris")[0] + cut)

    assert answer.content == ""
    assert answer.calls[0][2].startswith('{"city": "Par')
    with pytest.raises(ValueError, match=r"."):
        json.loads(answer.calls[0][2])


def test_parser__broken_parameter_is_content_to_the_letter(read: Callable[[str, str], Any]) -> None:
    answer = read("qwen3-coder", CALL.replace("<parameter=days>", "<parameter days>"))

    assert answer.calls == (("call_0", "get_weather", '{"city": "Paris"'),)
    assert answer.content == "<parameter days>\n3\n</parameter>\n</function>\n</tool_call>"


def test_template_messages__published_template_writes_what_the_parser_reads(
    template_source: Callable[[str], str], conversation: list[dict[str, Any]], read: Callable[[str, str], Any]
) -> None:
    source = template_source("qwen3-coder")

    prompt = ChatTemplate(source).render(tool_format(source).template_messages(conversation))

    turn = prompt.partition("<|im_start|>assistant\n")[2].partition("<|im_end|>")[0]
    answer = read("qwen3-coder", turn)
    assert answer.content == "Looking."
    assert [json.loads(call[2]) for call in answer.calls] == [{"city": "Paris"}, {"city": "Rome"}]
