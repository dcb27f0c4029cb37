"""Splits a reasoning model's thoughts (R1: `<think>…</think>`) from its answer, while the text streams."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from edgekit.engine.base import ReasoningTags
from edgekit.engine.text import longest_overlap

__all__ = ["FAMILIES", "Part", "ReasoningSplitter", "reasoning_tags", "template_opens_reasoning"]

FAMILIES: Final = (
    ReasoningTags(),  # DeepSeek-R1 and its students, Qwen3, QwQ, Phi-4 and most others
    ReasoningTags("[THINK]", "[/THINK]"),  # Magistral
    ReasoningTags("<seed:think>", "</seed:think>"),  # Seed-OSS
    ReasoningTags("<|START_THINKING|>", "<|END_THINKING|>"),  # Command A Reasoning
)
"""Told apart by what their chat templates write."""


@dataclass(frozen=True, slots=True)
class Part:
    """A piece of a stream: reasoning or answer. One of the two is empty, or both."""

    reasoning: str = ""
    content: str = ""


class ReasoningSplitter:
    """Sorts streamed text into reasoning and answer.

    Reasoning counts only at the beginning of an answer: a `<think>` later on is text like any other. White
    space around the tags belongs to neither part.

    Args:
        tags: what stands around the reasoning.
        opened: the prompt ended in the opening tag already, so the stream begins inside the reasoning.
    """

    def __init__(self, tags: ReasoningTags = FAMILIES[0], *, opened: bool = False) -> None:
        self._opening, self._closing = tags.opening, tags.closing
        self._state = "reasoning" if opened else "start"
        self._held = ""
        self._trim = opened

    @property
    def thinking(self) -> bool:
        """Whether the text so far ends inside the reasoning."""
        return self._state == "reasoning"

    def push(self, text: str) -> Part:
        """Add text; returns what can be told apart by now."""
        if self._state == "content" and not self._trim:
            return Part(content=text)
        self._held += text
        reasoning: list[str] = []
        content: list[str] = []
        while self._advance(reasoning, content):
            pass
        return Part("".join(reasoning), "".join(content))

    def finish(self) -> Part:
        """What was held back, once no more text comes."""
        held, self._held = self._held, ""
        if self._state == "reasoning":
            return Part(reasoning="" if self._trim else held.rstrip())
        if self._state == "start":
            return Part(content=held)
        return Part(content=held.lstrip() if self._trim else held)

    def _advance(self, reasoning: list[str], content: list[str]) -> bool:
        """One step of the machine; True when the state changed and held text may go further."""
        if self._state == "start":
            return self._look_for_opening()
        if self._trim:
            self._held = self._held.lstrip()
            if not self._held:
                return False
            self._trim = False
        if self._state == "content":
            content.append(self._held)
            self._held = ""
            return False
        return self._take_reasoning(reasoning)

    def _look_for_opening(self) -> bool:
        stripped = self._held.lstrip()
        if stripped.startswith(self._opening):
            self._state, self._held, self._trim = "reasoning", stripped[len(self._opening) :], True
            return True
        if self._opening.startswith(stripped):
            return False
        self._state = "content"
        return True

    def _take_reasoning(self, reasoning: list[str]) -> bool:
        before, closed, after = self._held.partition(self._closing)
        if closed:
            reasoning.append(before.rstrip())
            self._state, self._held, self._trim = "content", after, True
            return True
        # White space before the closing tag is not reasoning either: keep it until more comes.
        certain = before[: len(before) - longest_overlap(before, self._closing)].rstrip()
        reasoning.append(certain)
        self._held = before[len(certain) :]
        return False


def reasoning_tags(template: str) -> ReasoningTags | None:
    """The tags of the family that a chat template (its Jinja text) belongs to, None when it knows of none."""
    for tags in FAMILIES:
        if tags.opening in template or tags.closing in template:
            return tags
    return None


def template_opens_reasoning(prompt: str, tags: ReasoningTags = FAMILIES[0]) -> bool:
    """Whether a rendered prompt ends in an opening tag, so that the model's text begins inside it."""
    return prompt.rstrip().endswith(tags.opening)
