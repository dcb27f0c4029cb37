"""What the parsers of all families share: telling calls from the text around them."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Collection
from typing import Any, Final

from edgekit.server.tools.calls import CallReader, CutOffError, NotACallError, Outbox
from edgekit.server.tools.cursor import Cursor, Reading
from edgekit.server.tools.parts import MakeId, ToolParts

__all__ = ["StreamParser", "tool_names"]

_FENCES: Final = ("```json", "```JSON", "```")


class StreamParser(ABC):
    """Finds calls in an answer's text.

    A call starts with one of the family's markers. Small models forget them: an answer that begins with a
    call's JSON for a tool that there is (in a code fence, perhaps) is a call as well.

    What stands outside of calls is content, and so is what cannot be read as a call, markers and all. White
    space between content and calls belongs to neither.

    Args:
        tools: those that may be called. A call for another tool is passed on, if it is marked as a call:
            the client can tell the model of its mistake.
        make_id: makes the calls' ids.
    """

    openings: tuple[str, ...] = ()
    """The markers that calls start with."""

    def __init__(self, tools: list[dict[str, Any]], make_id: MakeId) -> None:
        self._names = tool_names(tools)
        self._cursor = Cursor()
        self._outbox = Outbox(make_id)
        self._pattern = re.compile("|".join(re.escape(opening) for opening in self.openings))
        self._firsts = frozenset(opening[0] for opening in self.openings)
        self._longest = max(len(opening) for opening in self.openings)
        self._gap = ""
        self._spoke = False
        self._after_call = False
        self._mark = 0
        self._reader: CallReader | None = None
        self._reading = self._read()
        self._done = False

    def push(self, text: str) -> ToolParts:
        """Add text; returns what is certain by now."""
        self._cursor.text += text
        self._go_on()
        return self._outbox.fetch()

    def finish(self) -> ToolParts:
        """What was held back, once no more text comes."""
        self._cursor.ended = True
        self._go_on()
        if self._gap and not self._after_call:
            self._outbox.content(self._gap)
            self._gap = ""
        return self._outbox.fetch()

    @abstractmethod
    def _read_marked(self, opening: str) -> Reading[None]:
        """Read the calls that an opening marker starts; the cursor stands after it.

        Raises:
            NotACallError, CutOffError: as CallReader has them.
        """

    def _read_bare(self) -> Reading[None]:
        """Read a call without markers, at the answer's beginning."""
        yield from self._read_objects(known=self._names)

    def _read_objects(
        self, *, known: Collection[str] | None = None, closings: tuple[str, ...] = ()
    ) -> Reading[None]:
        """Read a call's object, or a list of such."""
        cursor = self._cursor
        if (yield from cursor.take("[")) is None:
            yield from self._call(known=known, closings=closings).read_object()
            self._mark_end()
            return
        while True:
            yield from cursor.skip_space()
            yield from self._call(known=known, closings=closings).read_object()
            self._mark_end()
            separator = yield from cursor.skip_space()
            if separator not in ("]", ","):
                cursor.position = self._mark
                return
            cursor.position += 1
            if separator == "]":
                self._mark_end()
                return

    def _call(self, *, known: Collection[str] | None = None, closings: tuple[str, ...] = ()) -> CallReader:
        """A reader for the next call. Should it fail, the text is content from the last mark on."""
        self._reader = CallReader(self._cursor, self._outbox, known=known, closings=closings)
        return self._reader

    def _mark_end(self) -> None:
        """Mark where a call has ended: what follows is no part of it."""
        self._mark = self._cursor.position
        self._reader = None

    def _go_on(self) -> None:
        if not self._done:
            try:
                next(self._reading)
            except StopIteration:
                self._done = True

    def _read(self) -> Reading[None]:
        if (yield from self._begins_bare()):
            yield from self._attempt("", self._read_unmarked())
        while (opening := (yield from self._text())) is not None:
            self._cursor.forget()
            yield from self._attempt(opening, self._read_marked(opening))

    def _begins_bare(self) -> Reading[bool]:
        char = yield from self._cursor.skip_space()
        self._cursor.position = 0
        return char != "" and char in "{[`" and bool(self._names)

    def _read_unmarked(self) -> Reading[None]:
        cursor = self._cursor
        yield from cursor.skip_space()
        fence = yield from cursor.take(*_FENCES)
        yield from cursor.skip_space()
        yield from self._read_bare()
        if fence is not None:
            yield from self._drop("```")

    def _attempt(self, opening: str, reading: Reading[None]) -> Reading[None]:
        """Read calls; go back to where text begins if that fails."""
        cursor, before = self._cursor, self._outbox.told
        self._mark, self._reader = cursor.position, None
        try:
            yield from reading
        except CutOffError:
            pass
        except NotACallError:
            if self._reader is None or not self._reader.told:
                cursor.position = self._mark
        self._reader = None
        if self._outbox.told > before:
            self._after_call = True
            self._gap = (self._gap or "\n") if self._spoke else ""
        else:
            self._say(opening)

    def _text(self) -> Reading[str | None]:
        """Pass on content up to the next opening marker and read that; None at the end."""
        cursor = self._cursor
        while True:
            found = self._pattern.search(cursor.text, cursor.position)
            end = found.start() if found else len(cursor.text)
            if found is None and not cursor.ended:
                end -= self._held_back()
            self._say(cursor.text[cursor.position : end])
            cursor.position = end if found is None else found.end()
            cursor.forget()
            if found is not None:
                return found.group()
            if cursor.ended:
                return None
            yield

    def _held_back(self) -> int:
        """How many of the last characters may be the beginning of a marker."""
        tail = self._cursor.rest[-self._longest + 1 :]
        for start, char in enumerate(tail):
            if char in self._firsts and any(opening.startswith(tail[start:]) for opening in self.openings):
                return len(tail) - start
        return 0

    def _say(self, text: str) -> None:
        """Pass on content, but white space at its end only when more follows."""
        if self._after_call:
            text = text.lstrip()
            if not text:
                return
            self._after_call = False
        text = self._gap + text
        kept = text.rstrip()
        self._gap = text[len(kept) :]
        if kept:
            self._spoke = True
            self._outbox.content(kept)

    def _drop(self, *markers: str) -> Reading[str | None]:
        """Read one of these markers and the white space before it, if it comes next; nothing otherwise.

        A piece of one, at the end of a text that was cut off, is read as well.
        """
        cursor, start = self._cursor, self._cursor.position
        yield from cursor.skip_space()
        marker = yield from cursor.take(*markers)
        if marker is None:
            rest = cursor.rest
            if cursor.ended and any(marker.startswith(rest) for marker in markers):
                cursor.position = len(cursor.text)
            else:
                cursor.position = start
        self._mark = cursor.position
        return marker


def tool_names(tools: list[dict[str, Any]]) -> frozenset[str]:
    """The names of the tools' functions."""
    return frozenset(str(tool["function"]["name"]) for tool in tools)
