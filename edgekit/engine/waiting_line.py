"""The requests that wait for a place in the engine, and who of them is next."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator

from edgekit.engine.stream import Stream

__all__ = ["WaitingLine"]


class WaitingLine:
    """Streams that wait. Clients get their turns evenly, however many requests each of them has sent."""

    def __init__(self) -> None:
        self._streams: list[Stream] = []

    def __len__(self) -> int:
        return len(self._streams)

    def __iter__(self) -> Iterator[Stream]:
        return iter(self._streams)

    def __contains__(self, stream: Stream) -> bool:
        return stream in self._streams

    def join(self, stream: Stream) -> None:
        """Add a stream at the end."""
        self._streams.append(stream)

    def leave(self, stream: Stream) -> None:
        """Take a stream out, admitted or not."""
        self._streams.remove(stream)

    def in_turn(self, running: Iterable[Stream]) -> list[Stream]:
        """The streams in the order in which they are to be admitted.

        First those that had to step back, then those of clients that have the fewest streams running; among
        equals, who came first.
        """
        at_work = Counter(stream.request.client for stream in running)
        return sorted(self._streams, key=lambda stream: (not stream.started, at_work[stream.request.client]))
