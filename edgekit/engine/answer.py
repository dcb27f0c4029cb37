"""Turns the bytes of one stream's tokens into what its client reads: reasoning and answer."""

from __future__ import annotations

import codecs
from collections.abc import Sequence

from edgekit.engine.base import ReasoningRules
from edgekit.engine.reasoning import Part, ReasoningSplitter
from edgekit.engine.text import StopFilter

__all__ = ["AnswerText"]


class AnswerText:
    """The text of one stream as it grows.

    A character may be spread over several tokens: it comes out once it is whole. Bytes that are not UTF-8
    come out as U+FFFD.

    Args:
        reasoning: how reasoning is told from the answer; None: all text is answer.
        stop: strings that end the answer. What stands in the reasoning does not end it: it is not what the
            client asked for, and an answer would be missing.
    """

    def __init__(self, reasoning: ReasoningRules | None, stop: Sequence[str] = ()) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._splitter = (
            None if reasoning is None else ReasoningSplitter(reasoning.tags, opened=reasoning.opened)
        )
        self._stops = StopFilter(stop)

    @property
    def thinking(self) -> bool:
        """Whether the stream stands inside its reasoning."""
        return self._splitter is not None and self._splitter.thinking

    @property
    def stopped(self) -> bool:
        """Whether a stop string has appeared."""
        return self._stops.stopped

    def push(self, piece: bytes) -> Part:
        """Add a token's bytes; returns the text that is now certain."""
        text = self._decoder.decode(piece)
        if self._splitter is None:
            return Part(content=self._stops.push(text))
        part = self._splitter.push(text)
        return Part(part.reasoning, self._stops.push(part.content))

    def finish(self) -> Part:
        """The text still held back, once no more tokens come."""
        text = self._decoder.decode(b"", final=True)
        if self._splitter is None:
            return Part(content=self._stops.push(text) + self._stops.finish())
        part, rest = self._splitter.push(text), self._splitter.finish()
        content = self._stops.push(part.content + rest.content) + self._stops.finish()
        return Part(part.reasoning + rest.reasoning, content)
