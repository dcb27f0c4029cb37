"""What a request may weigh and take: a device must not be filled up by one body, nor held by a slow one."""

from __future__ import annotations

import asyncio
from typing import Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from edgekit.server.errors import ApiError, JsonAnswer

__all__ = ["OPEN_PATHS", "BodyLimit", "RequestLimit"]

OPEN_PATHS: Final = frozenset({"/health", "/metrics"})
"""What whoever watches the server asks: it must be answered most of all when the server is in trouble."""


class BodyLimit:
    """ASGI middleware that reads bodies ahead and refuses what is too large (413) or too slow (408).

    Args:
        app: the application behind it.
        max_bytes: the largest body, whether its length is announced or not.
        timeout_s: how long a body may take to arrive.
    """

    def __init__(self, app: ASGIApp, *, max_bytes: int, timeout_s: float) -> None:
        self._app = app
        self._max_bytes = max_bytes
        self._timeout_s = timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        # Read ahead: past this point nobody could answer 413 any more.
        try:
            body = await asyncio.wait_for(self._read(scope, receive), self._timeout_s)
        except ApiError as error:
            await _refuse(error, scope, receive, send)
            return
        except asyncio.TimeoutError:
            late = ApiError(
                408, f"the body did not arrive within {self._timeout_s:g} s", code="body_too_slow"
            )
            await _refuse(late, scope, receive, send)
            return
        if body is None:
            return
        handed_over = False

        async def replay() -> Message:
            nonlocal handed_over
            if handed_over:
                return await receive()
            handed_over = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self._app(scope, replay, send)

    async def _read(self, scope: Scope, receive: Receive) -> bytes | None:
        """The whole body; None when the client has gone before its end."""
        announced = dict(scope["headers"]).get(b"content-length", b"0")
        if announced.isdigit() and int(announced) > self._max_bytes:
            raise self._too_large()
        body = bytearray()
        more = True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            body += message.get("body", b"")
            more = message.get("more_body", False)
            if len(body) > self._max_bytes:
                raise self._too_large()
        return bytes(body)

    def _too_large(self) -> ApiError:
        return ApiError(413, f"the body is larger than {self._max_bytes} bytes", code="body_too_large")


class RequestLimit:
    """ASGI middleware that answers 503 when too many requests are under way. /health and /metrics pass.

    The engine's queue is shorter, and whoever finds it full gets 429. This limit is for what does not come so
    far: bodies that arrive slowly, answers that are read slowly.

    Args:
        app: the application behind it.
        max_requests: requests under way at most.
    """

    def __init__(self, app: ASGIApp, *, max_requests: int) -> None:
        self._app = app
        self._max_requests = max_requests
        self._under_way = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in OPEN_PATHS:
            await self._app(scope, receive, send)
            return
        if self._under_way >= self._max_requests:
            error = ApiError(
                503,
                f"{self._under_way} requests are under way, as many as this server takes",
                kind="unavailable_error",
                code="too_many_requests",
                headers={"Retry-After": "1"},
            )
            await JsonAnswer(error.body(), error.status, headers=error.headers)(scope, receive, send)
            return
        self._under_way += 1
        try:
            await self._app(scope, receive, send)
        finally:
            self._under_way -= 1


async def _refuse(error: ApiError, scope: Scope, receive: Receive, send: Send) -> None:
    # The rest of the body is still to come: the connection is of no more use.
    answer = JsonAnswer(error.body(), error.status, headers={"Connection": "close"})
    await answer(scope, receive, send)
