"""Verbatim forms: the chat templates of Qwen2.5-7B-Instruct and Qwen3-0.6B (in `templates/`)."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from edgekit.engine.chat_template import ChatTemplate
from edgekit.server.tools import ToolFormat, tool_format

CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>'


def test_parser__call_as_the_template_writes_it(read: Callable[[str, str], Any]) -> None:
    answer = read("hermes", CALL)

    assert answer.content == ""
    assert answer.calls == (("call_0", "get_weather", '{"city": "Paris"}'),)


def test_parser__text_around_parallel_calls_is_content(read: Callable[[str, str], Any]) -> None:
    answer = read("hermes", f"Let me see.\n\n{CALL}\n{CALL}\n\nDone.\n")

    assert answer.content == "Let me see.\n\nDone.\n"
    assert [call[0] for call in answer.calls] == ["call_0", "call_1"]


def test_parser__arguments_as_a_string_of_json(read: Callable[[str, str], Any]) -> None:
    inner = json.dumps('{"city": "São Paulo"}')

    answer = read("hermes", f'<tool_call>{{"name": "get_weather", "arguments": {inner}}}</tool_call>')

    assert answer.calls == (("call_0", "get_weather", '{"city": "São Paulo"}'),)


@pytest.mark.parametrize(
    "body",
    [
        '{"arguments": {"city": "Paris"}, "name": "get_weather"}',
        '{"name": "get_weather", "parameters": {"city": "Paris"}}',
        '{"id": 7, "type": "function", "function": {"name": "get_weather", "arguments": {"city": "Paris"}}}',
        "{'name': 'get_weather', 'arguments': {'city': 'Paris'}}",
        '{"name": "get_weather", "arguments": {"city": "Paris",}}',
        '{"name": "get_weather", "arguments": {"city": "Paris"}',
        '{"name": "get_weather", "arguments": {"city": "Paris"',
        '{"name": "get_weather", "arguments": {"city": "Paris"}}}',
        '[{"name": "get_weather", "arguments": {"city": "Paris"}}]',
    ],
    ids=["order", "parameters", "nested", "python", "comma", "brace", "braces", "brace-too-many", "list"],
)
def test_parser__slips_that_leave_no_doubt_are_put_right(body: str, read: Callable[[str, str], Any]) -> None:
    answer = read("hermes", f"<tool_call>\n{body}\n</tool_call>")

    assert answer.content == ""
    assert [json.loads(call[2]) for call in answer.calls] == [{"city": "Paris"}]


@pytest.mark.parametrize("rest", ["", ', "arguments": {}', ', "arguments": null', ', "arguments": ""'])
def test_parser__no_arguments_are_an_empty_object(rest: str, read: Callable[[str, str], Any]) -> None:
    text = f'<tool_call>\n{{"name": "get_time"{rest}}}\n</tool_call>'

    assert read("hermes", text).calls == (("call_0", "get_time", "{}"),)


@pytest.mark.parametrize(
    "text",
    [
        "<tool_call>\n{oops}\n</tool_call>",
        '<tool_call>\n{"name": "get_weather", "arguments": {oops}}\n</tool_call> What now?',
        '<tool_call>{"name": "get_weather", "arguments": [1]}</tool_call>',
        '<tool_call>{"name": "get_weather", "arguments": "Paris"}</tool_call>',
        '<tool_call>{"name": "", "arguments": {}}</tool_call>',
        '<tool_call>{"arguments": {}}</tool_call>',
        "The tag <tool_call> starts a call.",
        '<tool_call>\n{"name": "get_wea',
        "<tool_call>",
        "a < b, and <tool",
        "  spaces are kept \n",
    ],
)
def test_parser__what_is_no_call_is_content_to_the_letter(text: str, read: Callable[[str, str], Any]) -> None:
    answer = read("hermes", text)

    assert (answer.content, answer.calls) == (text, ())


def test_parser__call_after_a_broken_one_is_still_found(read: Callable[[str, str], Any]) -> None:
    answer = read("hermes", f"<tool_call>\n{CALL}")

    assert answer.content == "<tool_call>"
    assert len(answer.calls) == 1


def test_parser__json_that_breaks_late_leaves_arguments_that_nobody_can_run(
    read: Callable[[str, str], Any],
) -> None:
    text = '<tool_call>\n{"name": "f", "arguments": {"path": "/", force: 1}}\n</tool_call> Sorry.'

    answer = read("hermes", text)

    assert answer.calls == (("call_0", "f", '{"path": "/", '),)
    assert answer.content == "force: 1}}\n</tool_call> Sorry."
    with pytest.raises(ValueError, match="Expecting property name"):
        json.loads(answer.calls[0][2])


@pytest.mark.parametrize("end", ['"Par', '"a\\', '"a\\u00', "12", "tr", "[1, ", '"Paris"'])
def test_parser__call_cut_by_max_tokens_gives_what_there_is(
    end: str, read: Callable[[str, str], Any]
) -> None:
    answer = read("hermes", f'<tool_call>\n{{"name": "get_weather", "arguments": {{"city": {end}')

    assert answer.calls == (("call_0", "get_weather", f'{{"city": {end}'),)
    assert answer.content == ""


@pytest.mark.parametrize("end", ["", "}", "}\n", "}\n</tool", "}\n</tool_call>"])
def test_parser__call_is_whole_when_its_arguments_are(end: str, read: Callable[[str, str], Any]) -> None:
    answer = read("hermes", f'<tool_call>\n{{"name": "get_weather", "arguments": {{"city": "Paris"}}{end}')

    assert answer.calls == (("call_0", "get_weather", '{"city": "Paris"}'),)
    assert answer.content == ""


def test_parser__marked_call_of_an_unknown_tool_is_passed_on(read: Callable[[str, str], Any]) -> None:
    assert read("hermes", '<tool_call>{"name": "nope", "arguments": {}}</tool_call>').calls == (
        ("call_0", "nope", "{}"),
    )


@pytest.mark.parametrize("fence", [("", ""), ("```json\n", "\n```"), ("\n\n```\n", "\n```\n")])
def test_parser__answer_that_begins_with_a_call_needs_no_marker(
    fence: tuple[str, str], read: Callable[[str, str], Any]
) -> None:
    text = fence[0] + '{"name": "get_weather", "arguments": {"city": "Paris"}}' + fence[1]

    answer = read("generic", text)

    assert (answer.content, len(answer.calls)) == ("", 1)


@pytest.mark.parametrize(
    "text",
    [
        '{"name": "nope", "arguments": {}}',
        '{"name": "get_weather", "population": 2}',
        '{"name": "get_time"}',
        '{"answer": {"name": "get_weather"}}',
        "[1, 2, 3]",
        "```json\n{}\n```",
        "```python\nprint()\n```",
        'Look: {"name": "get_weather", "arguments": {}}',
    ],
)
def test_parser__json_that_is_no_known_tools_call_is_content(
    text: str, read: Callable[[str, str], Any]
) -> None:
    answer = read("generic", text)

    assert (answer.content, answer.calls) == (text, ())


def test_parser__arguments_stream_while_they_are_written(
    family: Callable[[str], Any], tools: list[dict[str, Any]]
) -> None:
    parser = family("hermes").parser(tools)

    assert parser.push('<tool_call>\n{"name": "get_weather", "arguments": {"city": ').calls == ()
    first = parser.push('"New')
    second = parser.push(" York")
    third = parser.push('"}}\n</tool_call>')

    assert [(call.name, call.arguments) for call in first.calls] == [("get_weather", '{"city": "New')]
    assert [(call.name, call.id, call.arguments) for call in second.calls] == [(None, None, " York")]
    assert "".join(call.arguments for call in third.calls) == '"}'


@pytest.mark.parametrize("template", ["qwen2.5", "qwen3"])
def test_template_messages__published_template_writes_what_the_parser_reads(
    template: str,
    template_source: Callable[[str], str],
    conversation: list[dict[str, Any]],
    tools: list[dict[str, Any]],
    read: Callable[[str, str], Any],
) -> None:
    source = template_source(template)

    prompt = ChatTemplate(source).render(tool_format(source).template_messages(conversation), tools=tools)

    turn = prompt.partition("Paris and Rome?<|im_end|>\n<|im_start|>assistant\n")[2].partition("<|im_end|>")[
        0
    ]
    answer = read("hermes", turn)
    assert answer.content == "Looking."
    assert [json.loads(call[2]) for call in answer.calls] == [{"city": "Paris"}, {"city": "Rome"}]
    assert "<tool_response>\nsun\n</tool_response>\n<tool_response>\nrain\n</tool_response>" in prompt


def test_template_messages__arguments_that_are_not_json_do_not_stop_a_template(
    template_source: Callable[[str], str], conversation: list[dict[str, Any]]
) -> None:
    conversation[2]["tool_calls"][0]["function"]["arguments"] = '{"city": "Par'
    for name in ("qwen2.5", "qwen3", "qwen3-coder"):
        source = template_source(name)

        prompt = ChatTemplate(source).render(tool_format(source).template_messages(conversation))

        assert "Par" in prompt


def test_template_messages__template_without_tools_gets_text(conversation: list[dict[str, Any]]) -> None:
    told = tool_format(None).template_messages(conversation)

    assert [message["role"] for message in told] == [
        *("system", "user", "assistant", "user", "assistant", "user", "assistant", "user")
    ]
    assert told[2] == {
        "role": "assistant",
        "content": 'Looking.\n<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n'
        '</tool_call>\n<tool_call>\n{"name": "get_weather", "arguments": {"city": "Rome"}}\n</tool_call>',
    }
    assert told[3]["content"] == (
        "<tool_response>\nsun\n</tool_response>\n<tool_response>\nrain\n</tool_response>"
    )


def test_template_messages__nothing_is_changed_in_place(
    conversation: list[dict[str, Any]], family: Callable[[str], ToolFormat]
) -> None:
    before = json.dumps(conversation)

    for name in ("generic", "hermes", "mistral", "deepseek", "deepseek-v3.1", "llama3"):
        family(name).template_messages(conversation)

    assert json.dumps(conversation) == before


def test_system_text__tells_the_tools_and_how_to_call(tools: list[dict[str, Any]]) -> None:
    text = tool_format(None).system_text(tools, "auto")

    assert json.dumps(tools[0]) in text
    assert "<tool_call>\n{" in text
    assert "plain text" in text
    assert "nothing else" in tool_format(None).system_text(tools, "required")
