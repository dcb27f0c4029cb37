"""Verbatim forms: the chat templates of DeepSeek-R1-Distill-Qwen-7B (tests/fixtures/r1-tokenizer) and of
DeepSeek-V3.1 (in `templates/`)."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from edgekit.engine.chat_template import ChatTemplate
from edgekit.server.tools import tool_format

PARIS = (
    "<｜tool▁call▁begin｜>function<｜tool▁sep｜>get_weather\n```json\n"
    '{"city": "Paris"}\n```<｜tool▁call▁end｜>'
)
ROME = PARIS.replace("Paris", "Rome")
OSLO = PARIS.replace("Paris", "Oslo")


def wrapped(calls: str) -> str:
    return f"<｜tool▁calls▁begin｜>{calls}<｜tool▁calls▁end｜>"


def test_parser__calls_as_r1s_template_writes_them(read: Callable[[str, str], Any]) -> None:
    answer = read("deepseek", "Looking.\n" + wrapped(f"{PARIS}\n{ROME}"))

    assert answer.content == "Looking."
    assert answer.calls == (
        ("call_0", "get_weather", '{"city": "Paris"}'),
        ("call_1", "get_weather", '{"city": "Rome"}'),
    )


def test_parser__calls_as_v31s_template_writes_them(read: Callable[[str, str], Any]) -> None:
    text = wrapped(
        '<｜tool▁call▁begin｜>get_weather<｜tool▁sep｜>{"city": "Paris"}<｜tool▁call▁end｜>'
        "<｜tool▁call▁begin｜>get_time<｜tool▁sep｜>{}<｜tool▁call▁end｜>"
    )

    for name in ("deepseek", "deepseek-v3.1"):
        assert read(name, text).calls == (
            ("call_0", "get_weather", '{"city": "Paris"}'),
            ("call_1", "get_time", "{}"),
        )


@pytest.mark.parametrize(
    "text",
    [
        wrapped(PARIS).replace("▁", "_"),
        wrapped(PARIS).replace("▁", " "),
        wrapped(PARIS).replace("▁", "\\_"),
        wrapped(PARIS).replace("▁", "_").replace("｜", "|"),
        PARIS,
        f"<｜tool▁calls▁begin｜>\n{PARIS}\n",
        wrapped(PARIS).replace("```json\n", "").replace("\n```", ""),
        wrapped(PARIS).replace("json", ""),
        wrapped(PARIS).replace("```<", "```\n<").replace("<｜tool▁calls▁end", "\n<｜tool▁calls▁end"),
        wrapped(PARIS).replace('"Paris"}', '"Paris"'),
        '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>',
    ],
    ids=["_", "space", "escaped", "ascii", "bare", "open", "no-fence", "fence", "lines", "brace", "qwen"],
)
def test_parser__students_spell_the_markers_as_they_can(text: str, read: Callable[[str, str], Any]) -> None:
    answer = read("deepseek", text)

    assert answer.content == ""
    assert [(call[1], json.loads(call[2])) for call in answer.calls] == [("get_weather", {"city": "Paris"})]


def test_parser__broken_second_call_is_content_and_the_first_stands(read: Callable[[str, str], Any]) -> None:
    broken = "\n<｜tool▁call▁begin｜>function get_time<｜tool▁call▁end｜>"

    answer = read("deepseek", f"<｜tool▁calls▁begin｜>{PARIS}{broken} Hm.")

    assert len(answer.calls) == 1
    assert answer.content == broken.strip() + " Hm."


def test_parser__markers_without_a_call_are_content(read: Callable[[str, str], Any]) -> None:
    text = "R1 writes <｜tool▁calls▁begin｜> before calls."

    assert read("deepseek", text).content == text


def test_parser__cut_inside_the_arguments(read: Callable[[str, str], Any]) -> None:
    answer = read("deepseek", wrapped(PARIS).partition("is")[0])

    assert answer.calls == (("call_0", "get_weather", '{"city": "Par'),)


@pytest.mark.parametrize(
    ("template", "ending"),
    [("deepseek-r1", "<｜tool▁outputs▁end｜>"), ("deepseek-r1-distill-qwen", "<｜tool▁outputs▁end｜>")],
)
def test_template_messages__r1s_templates_write_every_turn_in_the_models_own_form(
    template: str,
    ending: str,
    template_source: Callable[[str], str],
    conversation: list[dict[str, Any]],
) -> None:
    source = template_source(template)

    prompt = ChatTemplate(source, bos_token="<bos>").render(
        tool_format(source).template_messages(conversation)
    )

    assert prompt == (
        "<bos>Be brief.<｜User｜>Paris and Rome?<｜Assistant｜>Looking."
        + wrapped(f"{PARIS}\n{ROME}")
        + "<｜end▁of▁sentence｜><｜tool▁outputs▁begin｜><｜tool▁output▁begin｜>sun<｜tool▁output▁end｜>\n"
        "<｜tool▁output▁begin｜>rain<｜tool▁output▁end｜><｜tool▁outputs▁end｜>Sun, then rain."
        "<｜end▁of▁sentence｜><｜User｜>Oslo?<｜Assistant｜>"
        + wrapped(OSLO)
        + "<｜end▁of▁sentence｜><｜tool▁outputs▁begin｜><｜tool▁output▁begin｜>snow<｜tool▁output▁end｜>"
        + ending
    )


def test_template_messages__v31s_template_writes_calls_without_fences(
    template_source: Callable[[str], str], conversation: list[dict[str, Any]], read: Callable[[str, str], Any]
) -> None:
    source = template_source("deepseek-v3.1")

    prompt = ChatTemplate(source).render(tool_format(source).template_messages(conversation))

    first = prompt.partition("<think></think>")[2].partition("<｜end▁of▁sentence｜>")[0]
    assert "```" not in prompt
    assert [json.loads(call[2]) for call in read("deepseek-v3.1", first).calls] == [
        {"city": "Paris"},
        {"city": "Rome"},
    ]
    assert prompt.endswith("<｜tool▁output▁begin｜>snow<｜tool▁output▁end｜>")


def test_template_messages__system_messages_are_all_heard(template_source: Callable[[str], str]) -> None:
    # The template itself keeps the last one only.
    source = template_source("deepseek-r1")
    messages = [
        {"role": "system", "content": "You have tools."},
        {"role": "user", "content": "Hello"},
        {"role": "system", "content": "Be brief."},
    ]

    prompt = ChatTemplate(source).render(tool_format(source).template_messages(messages))

    assert prompt == "You have tools.\n\nBe brief.<｜User｜>Hello<｜Assistant｜>"


def test_template_messages__closing_tag_in_an_argument_or_result_cuts_nothing_off(
    template_source: Callable[[str], str], conversation: list[dict[str, Any]]
) -> None:
    conversation[2]["content"] = "<think>Two cities.</think>Looking."
    conversation[2]["tool_calls"][0]["function"]["arguments"] = '{"city": "</think>"}'
    conversation[3]["content"] = "a </think> b"
    source = template_source("deepseek-r1")

    prompt = ChatTemplate(source).render(tool_format(source).template_messages(conversation))

    assert "<｜Assistant｜>Looking.<｜tool▁calls▁begin｜>" in prompt
    assert '{"city": "<\\/think>"}' in prompt
    assert "a <\\/think> b" in prompt


def test_template_messages__results_before_a_users_message_are_closed(
    template_source: Callable[[str], str], conversation: list[dict[str, Any]]
) -> None:
    source = template_source("deepseek-r1")
    messages = [*conversation[:5], {"role": "user", "content": "Well?"}]

    prompt = ChatTemplate(source).render(tool_format(source).template_messages(messages))

    assert prompt.endswith("<｜tool▁outputs▁end｜><｜end▁of▁sentence｜><｜User｜>Well?<｜Assistant｜>")


def test_system_text__shows_the_form_that_the_parser_reads(
    tools: list[dict[str, Any]], template_source: Callable[[str], str], read: Callable[[str, str], Any]
) -> None:
    text = tool_format(template_source("deepseek-r1")).system_text(tools, "auto")

    assert read("deepseek", text).calls[0][1:] == ("FUNCTION_NAME", '{"ARGUMENT": "VALUE"}')
