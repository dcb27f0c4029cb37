"""Reads JSON as a model writes it, piece by piece, and puts right what small models get wrong.

Put right: raw line breaks and other control characters in strings, escapes that JSON does not know (`\\d`,
`\\alpha`), single quotes, `True`, `False` and `None`, commas before a closing bracket. What is passed on is
JSON as RFC 8259 has it, up to wherever the text ends or cannot be understood.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Final, TypeAlias

from edgekit.server.tools.cursor import Cursor, Reading

__all__ = ["JsonEndsError", "JsonReader", "NotJsonError", "Tell"]

Tell: TypeAlias = Callable[[str], None]

MAX_DEPTH: Final = 100
_PLAIN: Final = {
    '"': re.compile(r'[^"\\\x00-\x1f]+'),
    "'": re.compile(r"""[^'"\\\x00-\x1f]+"""),
}
_WORD: Final = re.compile(r"[A-Za-z0-9_+.-]*")
_MAX_WORD: Final = 400
_NUMBER: Final = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?")
_LITERALS: Final[Mapping[str, str]] = {
    "true": "true",
    "false": "false",
    "null": "null",
    "True": "true",
    "False": "false",
    "None": "null",
}
_CLOSERS: Final[Mapping[str, str]] = {"{": "}", "[": "]"}
_HEX: Final = "0123456789abcdefABCDEF"
_JSON_SPACE: Final = " \t\n\r"


class NotJsonError(Exception):
    """The text cannot be read on from where the cursor stands."""


class JsonEndsError(NotJsonError):
    """The text ends inside the value."""


class JsonReader:
    """Reads one value.

    Args:
        cursor: where the text is. When reading fails it stands after what was passed on.
        tell: takes what is read, as valid JSON.
    """

    def __init__(self, cursor: Cursor, tell: Tell) -> None:
        self._cursor = cursor
        self._tell = tell
        self._told = cursor.position
        self.open: list[str] = []
        """The closing brackets that are still to come, innermost last."""
        self.after_value = False
        """The text so far ends in a complete value: closing brackets would make it whole."""
        self.keyed = False
        """An object's first key has been read, with its colon, or the whole value."""

    def value(self) -> Reading[None]:
        """Read a value of any kind.

        Raises:
            NotJsonError: there is none.
        """
        try:
            yield from self._value()
        finally:
            self._cursor.position = self._told

    def string(self) -> Reading[None]:
        """Read a string.

        Raises:
            NotJsonError: there is none.
        """
        try:
            quote = yield from self._cursor.peek()
            yield from self._string(quote)
        finally:
            self._cursor.position = self._told

    def _value(self) -> Reading[None]:
        while True:
            yield from self._one()
            # A value has ended: go out of all that ends with it.
            while True:
                if not self.open:
                    self.keyed = True
                    return
                self.after_value = True
                if (yield from self._more()):
                    break
            self.after_value = False

    def _one(self) -> Reading[None]:
        """A string, a number, a word, an empty object or list; or the beginning of one, up to its first
        value that has no parts."""
        while True:
            char = yield from self._cursor.peek()
            if char in ("{", "["):
                if len(self.open) == MAX_DEPTH:
                    raise NotJsonError
                self._pass_on(char)
                self.open.append(_CLOSERS[char])
                space, char = yield from self._space()
                if char == self.open[-1]:
                    self._pass_on(space + char, read=1)
                    self.open.pop()
                    return
                self._pass_on(space, read=0)
                if self.open[-1] == "}":
                    yield from self._key()
            elif char in ('"', "'"):
                yield from self._string(char)
                return
            else:
                yield from self._word()
                return

    def _more(self) -> Reading[bool]:
        """After a value in an object or list: whether another follows. False closes it."""
        space, char = yield from self._space()
        if char == ",":
            self._cursor.position += 1
            after, char = yield from self._space()
            if char and char not in "}]":
                self._pass_on(space + "," + after, read=0)
                if self.open[-1] == "}":
                    self.after_value = False
                    yield from self._key()
                return True
            space += after
        if char != self.open[-1]:
            raise _failure(char)
        self._pass_on(space + char, read=1)
        self.open.pop()
        return False

    def _key(self) -> Reading[None]:
        quote = yield from self._cursor.peek()
        yield from self._string(quote)
        space, char = yield from self._space()
        if char != ":":
            raise _failure(char)
        self._cursor.position += 1
        after, _ = yield from self._space()
        self._pass_on(space + ":" + after, read=0)
        self.keyed = True

    def _string(self, quote: str) -> Reading[None]:
        if quote not in ('"', "'"):
            raise _failure(quote)
        cursor, plain = self._cursor, _PLAIN[quote]
        self._pass_on('"', read=1)
        while True:
            char = yield from cursor.peek()
            found = plain.match(cursor.text, cursor.position)
            if found is not None:
                self._pass_on(found.group(), read=len(found.group()))
            elif char == "":
                raise JsonEndsError
            elif char == quote:
                self._pass_on('"', read=1)
                return
            elif char == "\\":
                yield from self._escape()
            else:
                self._pass_on(json.dumps(char)[1:-1], read=1)

    def _escape(self) -> Reading[None]:
        cursor = self._cursor
        cursor.position += 1
        char = yield from cursor.peek()
        if char == "":
            raise JsonEndsError
        if char in '"\\/bfnrt':
            self._pass_on("\\" + char, read=1)
        elif char == "'":
            self._pass_on("'", read=1)
        elif char == "u":
            yield from self._unicode_escape()
        else:
            self._pass_on("\\\\", read=0)

    def _unicode_escape(self) -> Reading[None]:
        cursor, start = self._cursor, self._cursor.position
        cursor.position += 1
        while cursor.position < start + 5:
            char = yield from cursor.peek()
            if char == "":
                raise JsonEndsError
            if char not in _HEX:
                cursor.position = start
                self._pass_on("\\\\", read=0)
                return
            cursor.position += 1
        self._pass_on("\\" + cursor.text[start : cursor.position], read=0)

    def _word(self) -> Reading[None]:
        """A number or one of the words."""
        cursor = self._cursor
        word = yield from cursor.run(_WORD, _MAX_WORD)
        if cursor.ended and cursor.position == len(cursor.text) and self.open:
            # Cut off: 12 may have been going to be 123.
            raise JsonEndsError
        if word in _LITERALS:
            self._pass_on(_LITERALS[word], read=0)
        elif _NUMBER.fullmatch(word):
            self._pass_on(word, read=0)
        else:
            raise NotJsonError

    def _space(self) -> Reading[tuple[str, str]]:
        """JSON's white space, not passed on yet, and the character after it; empty at the end."""
        start = self._cursor.position
        char = yield from self._cursor.peek()
        while char and char in _JSON_SPACE:
            self._cursor.position += 1
            char = yield from self._cursor.peek()
        return self._cursor.text[start : self._cursor.position], char

    def _pass_on(self, text: str, read: int = 1) -> None:
        """Read `read` characters more, and pass on what all that was read since last time comes to."""
        self._cursor.position += read
        self._told = self._cursor.position
        if text:
            self._tell(text)


def _failure(char: str) -> NotJsonError:
    """Why a character is not what must come; empty stands for the end."""
    return NotJsonError() if char else JsonEndsError()
