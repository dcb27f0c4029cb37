"""Verbatim forms: Llama 3.1's and 3.2's chat templates and Meta's description of the prompt format."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from edgekit.engine.chat_template import ChatTemplate
from edgekit.server.tools import tool_format

CALL = '{"name": "get_weather", "parameters": {"city": "Paris"}}'

# The rules of Llama 3.2's template that matter here, in fewer words.
TEMPLATE = """{%- for message in messages %}
{%- if 'tool_calls' in message %}
{%- if not message.tool_calls|length == 1 %}{{ raise_exception("only single tool-calls") }}{%- endif %}
{%- set call = message.tool_calls[0].function %}
{{- '{"name": "' + call.name + '", "parameters": ' }}{{ call.arguments | tojson }}{{ '}<|eot_id|>' }}
{%- elif message.role == 'tool' %}{{ 'ipython:' + message.content + '<|eot_id|>' }}
{%- else %}{{ message.role + ':' + message.content + '<|eot_id|>' }}{%- endif %}{%- endfor %}"""


@pytest.mark.parametrize("before", ["", "<|python_tag|>", "\n\n", "<|python_tag|> "])
def test_parser__answer_that_is_a_call(before: str, read: Callable[[str, str], Any]) -> None:
    answer = read("llama3", before + CALL)

    assert (answer.content, answer.calls) == ("", (("call_0", "get_weather", '{"city": "Paris"}'),))


@pytest.mark.parametrize("joint", ["; ", ";", "\n", ", "])
def test_parser__several_calls(joint: str, read: Callable[[str, str], Any]) -> None:
    assert len(read("llama3", f"{CALL}{joint}{CALL}").calls) == 2


def test_parser__type_of_function_is_passed_over(read: Callable[[str, str], Any]) -> None:
    answer = read("llama3", CALL.replace("{", '{"type": "function", ', 1))

    assert answer.calls == (("call_0", "get_weather", '{"city": "Paris"}'),)


def test_parser__function_tag_with_json(read: Callable[[str, str], Any]) -> None:
    answer = read("llama3", '<function=get_weather>{"city": "Paris"}</function>')

    assert (answer.content, answer.calls) == ("", (("call_0", "get_weather", '{"city": "Paris"}'),))


@pytest.mark.parametrize(
    "text",
    ['<|python_tag|>print("hi")', '<|python_tag|>brave_search.call(query="x")', '{"name": "Ann", "age": 3}'],
)
def test_parser__code_and_other_json_are_content(text: str, read: Callable[[str, str], Any]) -> None:
    answer = read("llama3", text)

    assert (answer.content, answer.calls) == (text, ())


def test_template_messages__calls_go_one_by_one_each_with_its_result(
    conversation: list[dict[str, Any]],
) -> None:
    found = tool_format(TEMPLATE)

    prompt = ChatTemplate(TEMPLATE).render(found.template_messages(conversation))

    assert found.name == "llama3"
    assert prompt.split("<|eot_id|>") == [
        "system:Be brief.",
        "user:Paris and Rome?",
        "assistant:Looking.",
        '{"name": "get_weather", "parameters": {"city": "Paris"}}',
        "ipython:sun",
        '{"name": "get_weather", "parameters": {"city": "Rome"}}',
        "ipython:rain",
        "assistant:Sun, then rain.",
        "user:Oslo?",
        '{"name": "get_weather", "parameters": {"city": "Oslo"}}',
        "ipython:snow",
        "",
    ]
