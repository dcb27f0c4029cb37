"""Reads text that comes in pieces as though it were there in full.

Parsers are generators: they yield when they need more text, and go on when it has come. So the same code
reads a whole text and one that comes a character at a time, and gives the same for both.
"""

from __future__ import annotations

import re
from collections.abc import Generator
from typing import TypeAlias, TypeVar

__all__ = ["Cursor", "Reading"]

T = TypeVar("T")
Reading: TypeAlias = Generator[None, None, T]
"""Yields whenever it needs more text; returns what it has read."""

_SPACE = re.compile(r"\s*")


class Cursor:
    """A place in a text that grows."""

    def __init__(self) -> None:
        self.text = ""
        self.position = 0
        self.ended = False
        """No more text comes."""

    @property
    def rest(self) -> str:
        """What has come and is not read."""
        return self.text[self.position :]

    def forget(self) -> None:
        """Drop what has been read. Positions from before no longer mean anything."""
        if self.position:
            self.text = self.rest
            self.position = 0

    def peek(self) -> Reading[str]:
        """The next character, not read yet; empty at the end."""
        while self.position >= len(self.text):
            if self.ended:
                return ""
            yield
        return self.text[self.position]

    def skip_space(self) -> Reading[str]:
        """Read white space, if there is any; returns the character after it, as `peek`."""
        while True:
            found = _SPACE.match(self.text, self.position)
            if found is not None:
                self.position = found.end()
            if self.position < len(self.text):
                return self.text[self.position]
            if self.ended:
                return ""
            yield

    def take(self, *options: str) -> Reading[str | None]:
        """Read one of these texts if it comes next; None, and nothing read, if none of them does.

        Of two options that both fit, the one given first is taken.
        """
        while True:
            certain = True
            for option in options:
                if self.text.startswith(option, self.position):
                    if certain:
                        self.position += len(option)
                        return option
                elif not self.ended and option.startswith(self.rest):
                    certain = False
            if certain:
                return None
            yield

    def run(self, pattern: re.Pattern[str], limit: int) -> Reading[str]:
        """Read what a pattern of single characters (`[…]*`) matches, up to `limit` of them."""
        start = self.position
        while True:
            found = pattern.match(self.text, start)
            end = start if found is None else found.end()
            if end < len(self.text) or self.ended or end - start >= limit:
                self.position = min(end, start + limit)
                return self.text[start : self.position]
            yield
