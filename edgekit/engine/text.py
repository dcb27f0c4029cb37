"""Text into the model and out of it: how a prompt begins, nothing past a stop string."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

__all__ = ["SPOKEN_TOKENS", "StopFilter", "adds_special", "longest_overlap"]

SPOKEN_TOKENS: Final = frozenset(
    {
        # Around reasoning.
        *("<think>", "</think>", "[THINK]", "[/THINK]", "<seed:think>", "</seed:think>"),
        *("<|START_THINKING|>", "<|END_THINKING|>"),
        # Around tool calls.
        *("<tool_call>", "</tool_call>", "[TOOL_CALLS]", "[ARGS]", "[CALL_ID]", "<|python_tag|>"),
        *("<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>", "<｜tool▁sep｜>"),
        *("<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>"),
    }
)
"""Control tokens that are part of what a model says: they come out as text, where others come out as none."""


class StopFilter:
    """Ends a stream's text where a stop string begins.

    A stop string may be spread over several tokens: text is held back until it is certain.

    Args:
        stop: strings that end the text. The first to appear wins; it is not part of the text.
    """

    def __init__(self, stop: Sequence[str] = ()) -> None:
        self._stop = tuple(text for text in stop if text)
        self._held = ""
        self.stopped = False
        """Whether a stop string has appeared."""

    def push(self, new: str) -> str:
        """Add text; returns what is now certain, possibly empty."""
        if self.stopped:
            return ""
        if not self._stop:
            return new
        text = self._held + new
        cuts = [position for stop in self._stop if (position := text.find(stop)) >= 0]
        if cuts:
            self.stopped = True
            self._held = ""
            return text[: min(cuts)]
        hold = max(longest_overlap(text, stop) for stop in self._stop)
        self._held = text[len(text) - hold :]
        return text[: len(text) - hold]

    def finish(self) -> str:
        """The text still held back, once no more comes."""
        held, self._held = self._held, ""
        return held


def adds_special(prompt: str, bos_text: str) -> bool:
    """Whether the tokenizer is to put around a prompt what the model wants there, BOS above all.

    Chat templates write special tokens as text, BOS among them where the model wants one: not to be doubled.

    Args:
        bos_text: the text of BOS; empty where the model has none.
    """
    return not (bos_text and prompt.startswith(bos_text))


def longest_overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that is a beginning of `stop`, and shorter than it."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
