"""A streamed HTTP answer that notices when its reader goes away."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import Final

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

__all__ = ["EventStreamResponse", "until_disconnect"]


class EventStreamResponse(Response):
    """Sends server-sent events as they come.

    Args:
        events: encoded events.
        on_disconnect: called when the client has gone before the end.
    """

    media_type = "text/event-stream"
    # Proxies must pass each event on at once and must not keep any.
    _HEADERS: Final = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}

    def __init__(self, events: AsyncIterator[bytes], *, on_disconnect: Callable[[], None]) -> None:
        super().__init__(headers=self._HEADERS)
        del self.headers["content-length"]
        self._events = events
        self._on_disconnect = on_disconnect

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        watcher = asyncio.create_task(self._watch(receive))
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            async for event in self._events:
                await send({"type": "http.response.body", "body": event, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        except BaseException:
            self._on_disconnect()
            raise
        finally:
            watcher.cancel()
            with suppress(asyncio.CancelledError):
                await watcher

    async def _watch(self, receive: Receive) -> None:
        await until_disconnect(receive)
        self._on_disconnect()


async def until_disconnect(receive: Receive) -> None:
    """Wait until the client has closed its connection. The request's body must have been read."""
    while (await receive())["type"] != "http.disconnect":
        pass
