"""Receives the messages of a fleet."""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Final

from edgekit.errors import TelemetryError
from edgekit.telemetry.address import parse_broker_url
from edgekit.telemetry.connection import Backoff, Connection, Session
from edgekit.telemetry.messages import Event, Status, Telemetry, decode_message
from edgekit.telemetry.outbox import Outgoing
from edgekit.telemetry.topics import Kind, parse_topic, subscription

__all__ = ["FleetSubscriber", "Received"]

logger = logging.getLogger(__name__)

# MQTT 5.0, table 3-1: not authorized, bad user name or password, banned. Trying again does not help.
_DENIED: Final = ("Not authorized", "Bad user name or password", "Banned")


@dataclass(frozen=True, slots=True)
class Received:
    """A message that came and is valid."""

    topic: str
    kind: Kind
    fleet: str
    device: str
    message: Status | Telemetry | Event
    retained: bool
    """Whether the broker had it before we subscribed: the status of then."""


class FleetSubscriber:
    """Subscribes to a fleet for as long as the `with` block lasts.

        with FleetSubscriber("mqtt://localhost", fleet="lab") as subscriber:
            for received in subscriber.messages(timeout_s=30):
                print(received.device, received.message)

    A connection that is lost later is made again; what the devices sent meanwhile is not received.

    Args:
        url: the broker; see `parse_broker_url`.
        fleet, device: which to listen to; "+" for all.
        connect_timeout_s: how long entering may take.
        max_queued: messages that wait to be taken, at most; beyond it the oldest are dropped and counted.
        on_rejected: called with topic and problem of a message that is not valid, on the connection's
            thread; None logs a warning.

    Raises:
        TelemetryError: at construction: the URL or a name is not valid. On entering: the broker cannot be
            reached in time, or refuses us.
    """

    def __init__(
        self,
        url: str,
        *,
        fleet: str = "+",
        device: str = "+",
        connect_timeout_s: float = 10.0,
        max_queued: int = 10_000,
        on_rejected: Callable[[str, str], None] | None = None,
        backoff: Backoff | None = None,
    ) -> None:
        self._address = parse_broker_url(url)
        self._connect_timeout_s = connect_timeout_s
        self._inbox = _Inbox(subscription(fleet, device), max_queued, on_rejected or _log_rejected)
        self._connection = Connection(
            self._address,
            client_id=f"edgekit-watch-{uuid.uuid4().hex[:12]}",
            peer=self._inbox,
            backoff=backoff or Backoff(first_s=0.5, longest_s=15.0),
        )

    def __enter__(self) -> FleetSubscriber:
        self._connection.start()
        problem = self._inbox.wait_subscribed(self._connect_timeout_s)
        if problem is not None:
            self._connection.close()
            raise TelemetryError(
                f"cannot subscribe at {self._address}: {problem}",
                hint="check that the broker runs, and the host, port, user and password of its URL",
            )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Disconnect. Those who wait for a message get None."""
        self._inbox.close()
        self._connection.close()

    @property
    def rejected(self) -> int:
        """Messages so far that were not valid."""
        return self._inbox.rejected

    @property
    def dropped(self) -> int:
        """Messages so far that were dropped because nobody took them."""
        return self._inbox.dropped

    def receive(self, timeout_s: float | None = None) -> Received | None:
        """The next message; None when none comes within `timeout_s`, or the subscriber is closed."""
        return self._inbox.take(timeout_s)

    def messages(self, timeout_s: float | None = None) -> Iterator[Received]:
        """Messages as they come, until `timeout_s` from now (None: until closed)."""
        end_s = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            received = self.receive(None if end_s is None else max(0.0, end_s - time.monotonic()))
            if received is None:
                return
            yield received

    def __iter__(self) -> Iterator[Received]:
        return self.messages()


class _Inbox:
    """The subscriber's side of the connection, and the queue to its reader."""

    def __init__(self, topic_filter: str, max_queued: int, on_rejected: Callable[[str, str], None]) -> None:
        self._topic_filter = topic_filter
        self._on_rejected = on_rejected
        self._queue: deque[Received] = deque(maxlen=max_queued)
        self._changed = threading.Condition()
        self._subscribed = False
        self._denied = False
        self._problem: str | None = None
        self._closed = False
        self.rejected = 0
        self.dropped = 0

    def wait_subscribed(self, timeout_s: float) -> str | None:
        """None once subscribed, else what is in the way."""
        with self._changed:
            self._changed.wait_for(lambda: self._subscribed or self._denied, timeout_s)
            if self._subscribed:
                return None
            return self._problem or f"no answer within {timeout_s:g} s"

    def take(self, timeout_s: float | None) -> Received | None:
        with self._changed:
            self._changed.wait_for(lambda: self._queue or self._closed, timeout_s)
            return self._queue.popleft() if self._queue else None

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def will(self) -> Outgoing | None:
        return None

    def online(self, session: Session) -> None:
        session.subscribe(self._topic_filter)

    def pump(self, session: Session) -> None:
        pass

    def acknowledged(self, ticket: int, refusal: str | None) -> None:
        pass

    def subscribed(self, refusal: str | None) -> None:
        with self._changed:
            if refusal is None:
                self._subscribed = True
            else:
                self._denied, self._problem = True, f"the broker refuses {self._topic_filter}: {refusal}"
                logger.warning("%s", self._problem)
            self._changed.notify_all()

    def received(self, topic: str, payload: bytes, *, retained: bool) -> None:
        if not payload:  # a retained message is being cleared
            return
        try:
            address = parse_topic(topic)
            message = decode_message(address.kind, payload)
            if (message.fleet, message.device) != (address.fleet, address.device):
                raise TelemetryError(f"a message of {message.fleet}/{message.device} on another's topic")
        except TelemetryError as error:
            self.rejected += 1
            self._on_rejected(topic, error.message)
            return
        received = Received(topic, address.kind, address.fleet, address.device, message, retained)
        with self._changed:
            self.dropped += len(self._queue) == self._queue.maxlen
            self._queue.append(received)
            self._changed.notify_all()

    def offline(self, reason: str) -> None:
        with self._changed:
            self._problem = reason
            self._denied = self._denied or reason in _DENIED
            self._changed.notify_all()

    def farewell(self, session: Session) -> None:
        pass

    def settled(self) -> bool:
        return True


def _log_rejected(topic: str, problem: str) -> None:
    logger.warning("message on %r ignored: %s", topic, problem)
