from __future__ import annotations

import random

import pytest

from edgekit.engine.answer import AnswerText
from edgekit.engine.base import ReasoningRules, ReasoningTags


def test_push__character_over_several_tokens_comes_out_whole() -> None:
    text = AnswerText(None)
    encoded = "日🙂".encode()
    pieces = [text.push(encoded[i : i + 1]).content for i in range(len(encoded))]
    assert pieces == ["", "", "日", "", "", "", "🙂"]


def test_finish__unfinished_character_becomes_replacement() -> None:
    text = AnswerText(None)
    assert text.push(b"ok\xf0\x9f").content == "ok"
    assert text.finish().content == "\ufffd"


def test_finish__held_beginning_of_a_stop_string_comes_out() -> None:
    text = AnswerText(None, ["STOP"])
    assert text.push(b"go STO").content == "go "
    assert text.finish().content == "STO"


def test_push__stop_string_in_the_reasoning_does_not_end_the_answer() -> None:
    text = AnswerText(ReasoningRules(opened=True), ["END"])
    assert text.push(b"the END is near").reasoning == "the END is near"
    assert not text.stopped
    part = text.push(b"</think>\n\n42 END 43")
    assert (part.reasoning, part.content) == ("", "42 ")
    assert text.stopped
    assert text.finish().content == ""


def test_thinking__from_the_opening_tag_to_the_closing_one() -> None:
    text = AnswerText(ReasoningRules())
    assert not text.thinking
    text.push(b"<think>")
    assert text.thinking
    text.push(b"hm</think>")
    assert not text.thinking


@pytest.mark.parametrize("seed", range(20))
def test_push__same_text_however_bytes_arrive(seed: int) -> None:
    draw = random.Random(seed)
    rules = ReasoningRules(ReasoningTags("[THINK]", "[/THINK]"))
    data = "[THINK]\n日本 [/THI é[/THINK]\n\nanswer 🙂 is 42 STOP never".encode()
    text, reasoning, content = AnswerText(rules, ["STOP"]), "", ""
    while data:
        size = draw.randint(1, 6)
        part = text.push(data[:size])
        reasoning, content, data = reasoning + part.reasoning, content + part.content, data[size:]
    part = text.finish()
    assert reasoning + part.reasoning == "日本 [/THI é"
    assert content + part.content == "answer 🙂 is 42 "
