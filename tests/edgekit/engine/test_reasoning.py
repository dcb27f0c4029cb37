from __future__ import annotations

import pytest

from edgekit.engine.base import ReasoningTags
from edgekit.engine.reasoning import ReasoningSplitter, reasoning_tags, template_opens_reasoning


def split(text: str, *, opened: bool = False, size: int | None = None) -> tuple[str, str]:
    splitter = ReasoningSplitter(opened=opened)
    size = size or max(1, len(text))
    parts = [splitter.push(text[i : i + size]) for i in range(0, len(text), size)]
    parts.append(splitter.finish())
    return "".join(part.reasoning for part in parts), "".join(part.content for part in parts)


CASES = [
    ("<think>\nLet me see.\n</think>\n\n42", False, "Let me see.", "42"),
    ("Let me see.\n</think>\n\n42", True, "Let me see.", "42"),
    ("\nIt said <thin and </thin\n</think>ok", True, "It said <thin and </thin", "ok"),
    ("plain answer", False, "", "plain answer"),
    ("  plain answer", False, "", "  plain answer"),
    ("a <think>b</think>", False, "", "a <think>b</think>"),
    ("<think>\n\n</think>\n\nHi", False, "", "Hi"),
    ("<think>never closed  ", False, "never closed", ""),
    ("<thi", False, "", "<thi"),
    ("", False, "", ""),
    ("", True, "", ""),
    ("<think>a  b\n\n c</think> <think> stays", False, "a  b\n\n c", "<think> stays"),
]


@pytest.mark.parametrize(("text", "opened", "reasoning", "content"), CASES)
@pytest.mark.parametrize("size", [None, 1, 2, 3, 7])
def test_split__same_however_text_arrives(
    text: str, opened: bool, reasoning: str, content: str, size: int | None
) -> None:
    assert split(text, opened=opened, size=size) == (reasoning, content)


def test_push__reasoning_streams_before_its_end_is_seen() -> None:
    splitter = ReasoningSplitter()
    splitter.push("<think>")
    assert splitter.push("first thought, ").reasoning == "first thought,"
    assert splitter.push("second").reasoning == " second"


def test_template_opens_reasoning() -> None:
    assert template_opens_reasoning("<｜Assistant｜><think>\n")
    assert not template_opens_reasoning("<｜Assistant｜>")


@pytest.mark.parametrize(
    ("template", "tags"),
    [
        ("{{ '<think>\\n' if enable_thinking }}", ReasoningTags("<think>", "</think>")),
        ("{% set content = content.split('</think>')[-1] %}", ReasoningTags("<think>", "</think>")),
        ("[THINK]{{ thoughts }}[/THINK]", ReasoningTags("[THINK]", "[/THINK]")),
        ("{{ '<|im_start|>assistant' }}", None),
    ],
)
def test_reasoning_tags__family_is_known_by_its_template(template: str, tags: ReasoningTags | None) -> None:
    assert reasoning_tags(template) == tags


def test_split__tags_of_another_family() -> None:
    splitter = ReasoningSplitter(ReasoningTags("[THINK]", "[/THINK]"))
    part = splitter.push("[THINK]hm <think>[/THINK]ok")
    assert (part.reasoning, part.content) == ("hm <think>", "ok")


def test_template_opens_reasoning__tags_of_another_family() -> None:
    tags = ReasoningTags("[THINK]", "[/THINK]")
    assert template_opens_reasoning("assistant\n[THINK]\n", tags)
    assert not template_opens_reasoning("assistant\n<think>\n", tags)
