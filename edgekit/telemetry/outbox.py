"""Messages on their way to the broker, in memory and bounded."""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass

__all__ = ["Outbox", "Outgoing"]


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A message to publish with QoS 1. `keep` messages are dropped last."""

    topic: str
    payload: bytes
    retain: bool = False
    keep: bool = False


class Outbox:
    """Holds messages until the broker has acknowledged them. Safe to use from several threads.

    When it is full, the oldest message that is not marked `keep` is dropped, and only then the oldest of
    those that are. Messages that were taken and not acknowledged count as well.

    Args:
        max_messages: messages held at most.
        max_bytes: bytes of their payloads at most.
    """

    def __init__(self, *, max_messages: int = 2000, max_bytes: int = 4 * 1024 * 1024) -> None:
        self._max_messages = max_messages
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._waiting: deque[Outgoing] = deque()
        self._in_flight: dict[int, Outgoing] = {}
        self._bytes = 0
        self._dropped = 0

    def __len__(self) -> int:
        """Messages that are not acknowledged."""
        with self._lock:
            return len(self._waiting) + len(self._in_flight)

    @property
    def in_flight(self) -> int:
        """Messages that were taken and are not acknowledged."""
        return len(self._in_flight)

    @property
    def dropped(self) -> int:
        """Messages dropped so far."""
        return self._dropped

    def put(self, message: Outgoing) -> None:
        """Add a message. Never waits for anything but other callers of this outbox."""
        with self._lock:
            self._waiting.append(message)
            self._bytes += len(message.payload)
            self._shrink()

    def peek(self) -> Outgoing | None:
        """The oldest message that waits, or None."""
        with self._lock:
            return self._waiting[0] if self._waiting else None

    def sent(self, message: Outgoing, ticket: int) -> None:
        """Note that `message`, as given by `peek`, went out and will be acknowledged under `ticket`."""
        with self._lock:
            # It may have been dropped in the meantime: then there is nothing to keep for another try.
            if self._waiting and self._waiting[0] is message:
                self._in_flight[ticket] = self._waiting.popleft()

    def acknowledge(self, ticket: int) -> Outgoing | None:
        """Forget a message that the broker has taken, or refused. None: no message has this ticket."""
        with self._lock:
            message = self._in_flight.pop(ticket, None)
            if message is not None:
                self._bytes -= len(message.payload)
            return message

    def requeue(self) -> None:
        """Put what was not acknowledged back in front, in its order: the connection is lost."""
        with self._lock:
            self._waiting.extendleft(reversed(self._in_flight.values()))
            self._in_flight.clear()
            self._shrink()

    def _shrink(self) -> None:
        while self._waiting and (
            len(self._waiting) + len(self._in_flight) > self._max_messages or self._bytes > self._max_bytes
        ):
            victim = next((i for i, message in enumerate(self._waiting) if not message.keep), 0)
            self._bytes -= len(self._waiting[victim].payload)
            del self._waiting[victim]
            self._dropped += 1
