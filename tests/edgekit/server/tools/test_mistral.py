"""Verbatim forms: the chat templates of Mistral-Nemo-Instruct-2407 (in `templates/`), Mistral-Small-3.2 and
Devstral-Small-2507."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from edgekit.engine.chat_template import ChatTemplate
from edgekit.server.tools import tool_format


@pytest.mark.parametrize(
    "text",
    [
        '[TOOL_CALLS][{"name": "get_weather", "arguments": {"city": "Paris"}, "id": "a1b2c3d4e"}, '
        '{"name": "get_time", "arguments": {}, "id": "a1b2c3d4f"}]',
        '[TOOL_CALLS] [{"name": "get_weather", "arguments": {"city": "Paris"}},'
        '{"name": "get_time", "arguments": "{}"}]',
        '[TOOL_CALLS]get_weather[CALL_ID]a1b2c3d4e[ARGS]{"city": "Paris"}'
        "[TOOL_CALLS]get_time[CALL_ID]a1b2c3d4f[ARGS]{}",
        '[TOOL_CALLS]get_weather[ARGS]{"city": "Paris"}[TOOL_CALLS]get_time[ARGS]{}',
        '[{"name": "get_weather", "arguments": {"city": "Paris"}}, {"name": "get_time", "arguments": {}}]',
    ],
    ids=["nemo", "v3", "small-3.2", "devstral", "no-marker"],
)
def test_parser__all_forms(text: str, read: Callable[[str, str], Any]) -> None:
    answer = read("mistral", text)

    assert answer.content == ""
    assert answer.calls == (
        ("call_0", "get_weather", '{"city": "Paris"}'),
        ("call_1", "get_time", "{}"),
    )


def test_parser__broken_call_in_a_list_is_content_and_the_first_stands(
    read: Callable[[str, str], Any],
) -> None:
    answer = read("mistral", '[TOOL_CALLS][{"name": "get_time", "arguments": {}}, {broken}] Hm.')

    assert answer.calls == (("call_0", "get_time", "{}"),)
    assert answer.content == ", {broken}] Hm."


@pytest.mark.parametrize(
    "text", ["[TOOL_CALLS]", "[TOOL_CALLS][]", "[TOOL_CALLS] Hello", "[TOOL_CALLS]f[ARGS]x"]
)
def test_parser__marker_without_a_call_is_content(text: str, read: Callable[[str, str], Any]) -> None:
    answer = read("mistral", text)

    assert (answer.content, answer.calls) == (text, ())


def test_template_messages__ids_are_what_nemos_template_insists_on(
    template_source: Callable[[str], str], conversation: list[dict[str, Any]], read: Callable[[str, str], Any]
) -> None:
    source = template_source("mistral-nemo")
    messages = tool_format(source).template_messages(conversation)

    prompt = ChatTemplate(source, eos_token="</s>").render(messages)

    ids = [call["id"] for message in messages for call in message.get("tool_calls", [])]
    assert [message["tool_call_id"] for message in messages if message["role"] == "tool"] == ids
    assert len(set(ids)) == 3
    turn = prompt.partition("[/INST]")[2].partition("</s>")[0]
    assert [call[2] for call in read("mistral", turn).calls] == ['{"city": "Paris"}', '{"city": "Rome"}']


def test_template_messages__ids_of_nine_letters_stay(conversation: list[dict[str, Any]]) -> None:
    conversation[7]["tool_calls"][0]["id"] = "abcdefghi"

    told = tool_format("[TOOL_CALLS]").template_messages(conversation)

    assert told[7]["tool_calls"][0]["id"] == "abcdefghi"
