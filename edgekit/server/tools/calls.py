"""Reads one call: its name and its arguments, in whatever order and spelling a model writes them."""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Final, NoReturn

from edgekit.server.tools.cursor import Cursor, Reading
from edgekit.server.tools.json_reader import JsonEndsError, JsonReader, NotJsonError
from edgekit.server.tools.parts import MakeId, ToolCallDelta, ToolParts

__all__ = ["CallReader", "CutOffError", "NotACallError", "Outbox"]

_NAME_KEYS: Final = ("name", "function")
_ARGUMENT_KEYS: Final = ("arguments", "parameters")
_OTHER_KEYS: Final = ("id", "type")
_MAX_NAME: Final = 256


class NotACallError(Exception):
    """What looked like a call cannot be read as one."""


class CutOffError(Exception):
    """The text has ended inside the arguments of a call that has been told."""


class Outbox:
    """Gathers what is found until it is fetched."""

    def __init__(self, make_id: MakeId) -> None:
        self._make_id = make_id
        self._content: list[str] = []
        self._calls: list[ToolCallDelta] = []
        self._pieces: list[str] = []
        self.told = 0
        """Calls that were begun."""

    def content(self, text: str) -> None:
        self._content.append(text)

    def call(self, name: str) -> None:
        """Begin a call. Its arguments follow."""
        self._close_delta()
        self._calls.append(ToolCallDelta(self.told, self._make_id(), name, ""))
        self.told += 1

    def arguments(self, text: str) -> None:
        """Add to the arguments of the call that was begun last."""
        self._pieces.append(text)

    def fetch(self) -> ToolParts:
        """All that was found since last time."""
        self._close_delta()
        parts = ToolParts("".join(self._content), tuple(self._calls))
        self._content.clear()
        self._calls.clear()
        return parts

    def _close_delta(self) -> None:
        if not self._pieces:
            return
        text = "".join(self._pieces)
        self._pieces.clear()
        if self._calls and self._calls[-1].index == self.told - 1:
            last = self._calls.pop()
            self._calls.append(ToolCallDelta(last.index, last.id, last.name, last.arguments + text))
        else:
            self._calls.append(ToolCallDelta(self.told - 1, None, None, text))


class CallReader:
    """Reads one call and tells of it as soon as it is certain to be one.

    That is when its name and an object's first key, or all of its arguments, have been read: till then
    nothing has been told, and the text can still be taken for something else.

    Args:
        known: the names that it may have; None takes any.
        closings: what ends a call. Where one of them comes and closing brackets alone are missing, they
            are put in.
    """

    def __init__(
        self, cursor: Cursor, outbox: Outbox, *, known: Collection[str] | None, closings: tuple[str, ...] = ()
    ) -> None:
        self._cursor = cursor
        self._outbox = outbox
        self._known = known
        self._closings = closings
        self._name: str | None = None
        self._held: list[str] = []
        self._complete = False
        self.told = False

    def named(self, name: str) -> None:
        """Take the call's name.

        Raises:
            NotACallError: it cannot be one.
        """
        if not name or len(name) > _MAX_NAME or (self._known is not None and name not in self._known):
            raise NotACallError
        self._name = name

    def read_object(self) -> Reading[None]:
        """Read `{"name": …, "arguments": {…}}`.

        Raises:
            NotACallError: it cannot be read as a call. If part of it was told the cursor stands after that.
            CutOffError: the text ended inside the arguments.
        """
        yield from self._members(0)
        if self._name is None or (not self._complete and self._known is not None):
            # Without any sign around it, an object that has just a name is not a call.
            raise NotACallError
        if not self._complete:
            self._finish("{}")
        self._tell()

    def read_arguments(self) -> Reading[None]:
        """Read the arguments: an object, or a string that has one in it.

        Raises: as `read_object`.
        """
        char = yield from self._cursor.peek()
        if char == "{":
            yield from self._argument_object()
        elif char == '"':
            inner = yield from self._string()
            self._finish(_object_in(inner))
        elif (yield from self._cursor.take("null", "None")) is not None:
            self._finish("{}")
        else:
            raise NotACallError

    def take_arguments(self, text: str) -> None:
        """Take arguments that were read elsewhere, in pieces that make up an object; the name is known."""
        self._held.append(text)
        self._tell()

    def _members(self, depth: int) -> Reading[None]:
        cursor = self._cursor
        if (yield from cursor.take("{")) is None:
            raise NotACallError
        char = yield from cursor.skip_space()
        while char != "}":
            key = yield from self._string()
            yield from cursor.skip_space()
            if (yield from cursor.take(":")) is None:
                raise NotACallError
            yield from cursor.skip_space()
            yield from self._member(key, depth)
            char = yield from cursor.skip_space()
            if char == ",":
                cursor.position += 1
                char = yield from cursor.skip_space()
            elif char != "}":
                # A brace too few, which costs nothing when all else is there.
                if self._complete and self._name is not None:
                    return
                raise NotACallError
        cursor.position += 1

    def _member(self, key: str, depth: int) -> Reading[None]:
        char = yield from self._cursor.peek()
        if key in _NAME_KEYS and char in ('"', "'"):
            self.named((yield from self._string()))
        elif key == "function" and depth == 0:
            yield from self._members(depth + 1)
        elif key in _ARGUMENT_KEYS and not self._complete:
            yield from self.read_arguments()
        elif self._known is None or key in _OTHER_KEYS:
            yield from self._skip_value()
        else:
            raise NotACallError

    def _argument_object(self) -> Reading[None]:
        cursor = self._cursor
        reader: JsonReader

        def tell(text: str) -> None:
            self._held.append(text)
            if self._name is not None and reader.keyed:
                self._tell()

        reader = JsonReader(cursor, tell)
        try:
            yield from reader.value()
        except JsonEndsError:
            self._cut_off(reader)
        except NotJsonError:
            if not reader.after_value or not (yield from self._closes()):
                raise NotACallError from None
            tell("".join(reversed(reader.open)))
        self._complete = True
        if self._name is not None:
            self._tell()

    def _closes(self) -> Reading[bool]:
        """Whether the call is closed here. Nothing is read."""
        start = self._cursor.position
        yield from self._cursor.skip_space()
        closing = yield from self._cursor.take(*self._closings)
        self._cursor.position = start
        return closing is not None

    def _string(self) -> Reading[str]:
        pieces: list[str] = []
        try:
            yield from JsonReader(self._cursor, pieces.append).string()
            return str(json.loads("".join(pieces)))
        except (NotJsonError, ValueError):
            raise NotACallError from None

    def _skip_value(self) -> Reading[None]:
        try:
            yield from JsonReader(self._cursor, lambda _: None).value()
        except NotJsonError:
            raise NotACallError from None

    def _finish(self, arguments: str) -> None:
        self._held.append(arguments)
        self._complete = True
        if self._name is not None:
            self._tell()

    def _tell(self) -> None:
        if not self.told and self._name is not None:
            self._outbox.call(self._name)
            self.told = True
        for text in self._held:
            self._outbox.arguments(text)
        self._held.clear()

    def _cut_off(self, reader: JsonReader) -> None:
        if self._name is None or not reader.keyed:
            raise NotACallError
        self.cut_off(self._cursor.rest)

    def cut_off(self, arguments: str) -> NoReturn:
        """Take what there is of the arguments, where the text ends."""
        self.take_arguments(arguments)
        self._cursor.position = len(self._cursor.text)
        raise CutOffError


def _object_in(text: str) -> str:
    """The JSON object that a string holds; `{}` for an empty one."""
    if not text.strip():
        return "{}"
    try:
        inner = json.loads(text)
    except (ValueError, RecursionError):
        raise NotACallError from None
    if not isinstance(inner, dict):
        raise NotACallError
    return text
