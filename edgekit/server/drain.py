"""How the server ends: no new work, time for what is under way, and a proper last word for the rest."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any, Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from edgekit.server import wire
from edgekit.server.errors import ApiError, JsonAnswer
from edgekit.server.limits import OPEN_PATHS

__all__ = ["Drain"]

_RETRY_AFTER_S: Final = 5
"""A server that is started anew needs about as long until it listens again."""
_LAST_WORD_S: Final = 2.0
"""How long the last event of a stream that is cut may take: its reader may have stopped reading."""


class Drain:
    """ASGI middleware that knows what is under way, and ends it in order.

    `begin` takes no new work: what comes is answered 503, and /health says how many streams are left. `cut`
    ends the rest: a stream gets an error event and [DONE], what has no answer yet a 503. All methods are for
    the event loop's thread.

    Args:
        app: the application behind it.
        on_drained: called when the last request has ended after `begin`; at once when there is none.
    """

    def __init__(self, app: ASGIApp, *, on_drained: Callable[[], None] = lambda: None) -> None:
        self._app = app
        self._on_drained = on_drained
        self._under_way: set[asyncio.Task[Any]] = set()
        self._draining = False
        self._cut = False
        self._defect: ApiError | None = None

    @property
    def draining(self) -> bool:
        """Whether `begin` was called."""
        return self._draining

    @property
    def left(self) -> int:
        """Requests under way; those for /health and /metrics do not count."""
        return len(self._under_way)

    def begin(self) -> None:
        """Take no new work from now on."""
        self._draining = True
        if not self._under_way:
            self._on_drained()

    def cut(self) -> None:
        """End what is under way."""
        self._cut = True
        for task in self._under_way:
            task.cancel()

    def condemn(self, defect: ApiError) -> None:
        """Answer this to everybody from now on, on /health as well: the process is about to end."""
        self._defect = defect

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        refusal = self._refusal(scope["path"])
        if refusal is not None:
            await refusal(scope, receive, send)
        elif scope["path"] in OPEN_PATHS:
            await self._app(scope, receive, send)
        else:
            await self._follow(scope, receive, send)

    async def _follow(self, scope: Scope, receive: Receive, send: Send) -> None:
        task = asyncio.current_task()
        assert task is not None, "an ASGI server runs requests in tasks"
        answer = _Answer(send)
        self._under_way.add(task)
        try:
            await self._app(scope, receive, answer.send)
        except asyncio.CancelledError:
            if not self._cut:
                raise
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(answer.end(_shutting_down(), scope, receive), _LAST_WORD_S)
        finally:
            self._under_way.discard(task)
            if self._draining and not self._under_way:
                self._on_drained()

    def _refusal(self, path: str) -> JsonAnswer | None:
        """What a request is answered instead of being let through."""
        if path == "/metrics":
            return None
        if self._defect is not None:
            return JsonAnswer(self._defect.body(), self._defect.status, headers=self._defect.headers)
        if not self._draining:
            return None
        error = _shutting_down()
        body = error.body()
        if path == "/health":
            body = {"status": "draining", "streams_left": self.left, **body}
        return JsonAnswer(body, error.status, headers=error.headers)


class _Answer:
    """How far an answer has come."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._begun = False
        self._streams_events = False
        self._complete = False

    async def send(self, message: Message) -> None:
        await self._send(message)
        if message["type"] == "http.response.start":
            self._begun = True
            content_type = dict(message["headers"]).get(b"content-type", b"")
            self._streams_events = content_type.startswith(b"text/event-stream")
        elif not message.get("more_body", False):
            self._complete = True

    async def end(self, error: ApiError, scope: Scope, receive: Receive) -> None:
        """Say what has happened, as far as that can still be said."""
        if not self._begun:
            await JsonAnswer(error.body(), error.status, headers=error.headers)(scope, receive, self.send)
        elif self._streams_events and not self._complete:
            last = wire.event(wire.dump(error.body())) + wire.DONE
            await self.send({"type": "http.response.body", "body": last, "more_body": False})


def _shutting_down() -> ApiError:
    return ApiError(
        503,
        "the server is shutting down",
        kind="unavailable_error",
        code="shutting_down",
        headers={"Retry-After": str(_RETRY_AFTER_S)},
    )
