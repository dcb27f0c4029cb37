"""Text into the model and out of it: how a prompt begins, whole characters, nothing past a stop string."""

from __future__ import annotations

import codecs
from collections.abc import Sequence

__all__ = ["TextStream", "adds_special", "longest_overlap"]


class TextStream:
    """Turns the bytes of one stream's tokens into text.

    A character may be spread over several tokens, and a stop string over several more: text is held back
    until it is certain. Bytes that are not UTF-8 come out as U+FFFD.

    Args:
        stop: strings that end the stream. The first to appear wins; it is not part of the text.
    """

    def __init__(self, stop: Sequence[str] = ()) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._stop = tuple(text for text in stop if text)
        self._held = ""
        self.stopped = False
        """Whether a stop string has appeared."""

    def push(self, piece: bytes) -> str:
        """Add a token's bytes; returns the text that is now certain, possibly empty."""
        return self._release(self._decoder.decode(piece))

    def finish(self) -> str:
        """The text still held back, once no more tokens come."""
        if self.stopped:
            return ""
        rest = self._release(self._decoder.decode(b"", final=True))
        held, self._held = self._held, ""
        return rest + held

    def _release(self, new: str) -> str:
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
