"""Carries events from the engine's thread to the event loop, with one wake-up for all streams of a step."""

from __future__ import annotations

import asyncio
from collections import deque

from edgekit.engine.base import Event

__all__ = ["Channel", "EventBridge"]


class EventBridge:
    """Delivers the engine's events on an event loop. One for all streams.

    A wake-up of the loop costs a system call; a step of eight streams needs one, not eight.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._arrived: deque[tuple[Channel, Event]] = deque()
        self._wake_pending = False

    def open_channel(self) -> Channel:
        """A channel for one stream."""
        return Channel(self)

    def post(self, channel: Channel, event: Event) -> None:
        """Called on the engine's thread."""
        self._arrived.append((channel, event))
        if not self._wake_pending:
            self._wake_pending = True
            try:
                self._loop.call_soon_threadsafe(self._deliver)
            except RuntimeError:
                # The loop has been closed: nobody is left to read.
                self._arrived.clear()

    def _deliver(self) -> None:
        # Cleared first: what arrives while this runs schedules a wake-up of its own.
        self._wake_pending = False
        while self._arrived:
            channel, event = self._arrived.popleft()
            channel.deliver(event)


class Channel:
    """The events of one stream, as its request handler reads them."""

    def __init__(self, bridge: EventBridge) -> None:
        self._bridge = bridge
        self._events: list[Event] = []
        self._reader: asyncio.Future[None] | None = None

    def sink(self, event: Event) -> None:
        """Give this to the engine. Called on the engine's thread."""
        self._bridge.post(self, event)

    def deliver(self, event: Event) -> None:
        """Called on the event loop."""
        self._events.append(event)
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)

    async def read(self) -> list[Event]:
        """All events since the last call; waits for one at least."""
        while not self._events:
            self._reader = asyncio.get_running_loop().create_future()
            await self._reader
        events, self._events = self._events, []
        return events
