"""What a connection may take: time for a request's head, its length, and time in which an answer is read."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
from dataclasses import dataclass
from http import HTTPStatus
from typing import ClassVar, Final

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from edgekit.server.errors import error_body

__all__ = ["ConnectionLimits", "http_protocol", "limit_socket"]

log = logging.getLogger(__name__)

_MIN_PROGRESS_BYTES: Final = 4096
"""What a reader must take within the time limit, so that no trickle keeps a connection for hours."""


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """Limits of one connection, and of their number."""

    max_connections: int = 512
    """With one more, the one that has waited longest without a request is closed. Below the usual limit of
    1024 open files."""
    head_timeout_s: float = 10.0
    """How long a request line and its headers may take to arrive."""
    max_head_bytes: int = 64 * 1024
    write_timeout_s: float = 30.0
    """How long an answer may wait for a reader that takes nothing of it."""
    send_buffer_bytes: int | None = 128 * 1024
    """What the kernel holds of an answer that is not read; None lets it grow to megabytes."""


def http_protocol(limits: ConnectionLimits) -> type[asyncio.Protocol]:
    """For uvicorn's `http`: its protocol on httptools, with limits.

    uvicorn has none of these: half a request's head holds a connection for ever, and so does an answer that
    nobody reads.
    """
    return type("LimitedConnection", (_LimitedConnection,), {"limits": limits})


def limit_socket(listening: socket.socket, limits: ConnectionLimits) -> None:
    """Set on a listening socket what its connections inherit."""
    if limits.send_buffer_bytes is not None:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, limits.send_buffer_bytes)
    # A peer that has vanished: tcp(7) gives up after 15 minutes else.
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, round(limits.write_timeout_s * 1000))


class _LimitedConnection(HttpToolsProtocol):
    limits: ClassVar[ConnectionLimits] = ConnectionLimits()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._waiting_since: float | None = self.loop.time()
        """Since when no request is being answered; None while one is."""
        self._in_head = False
        self._head_bytes = 0
        self._head_timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None
        self._unsent_bytes = 0
        self._expect_head()
        if len(self.connections) > self.limits.max_connections:
            self._close_who_waited_longest()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_head_timer()
        self._stop_write_timer()
        super().connection_lost(exc)

    def _close_who_waited_longest(self) -> None:
        waiting = [
            (other._waiting_since, id(other), other)
            for other in self.connections
            if isinstance(other, _LimitedConnection) and other._waiting_since is not None
        ]
        _, _, longest = min(waiting)  # there is one at least: this one
        longest.transport.abort()
        # uvicorn forgets it in the loop's next turn: until then it is not to be found again.
        longest._waiting_since = None
        self.connections.discard(longest)

    # Requests that come.

    def data_received(self, data: bytes) -> None:
        if self._waiting_since is not None and self._head_timer is None:
            # Line breaks before a request, or the rest of a body that nobody wants: no request has begun, and
            # uvicorn has just been kept from closing the idle connection.
            self._expect_head()
        super().data_received(data)
        if not self._in_head:
            return
        self._head_bytes += len(data)
        if self._head_bytes > self.limits.max_head_bytes:
            self._refuse(431, f"the headers are longer than {self.limits.max_head_bytes} bytes")

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head = True
        self._head_bytes = 0
        self._expect_head()

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._stop_head_timer()
        self._waiting_since = None
        super().on_headers_complete()

    def _expect_head(self) -> None:
        self._stop_head_timer()
        self._head_timer = self.loop.call_later(self.limits.head_timeout_s, self._head_is_late)

    def _stop_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _head_is_late(self) -> None:
        self._head_timer = None
        self._refuse(408, f"the headers did not arrive within {self.limits.head_timeout_s:g} s")

    def send_400_response(self, msg: str) -> None:
        """uvicorn calls this for what is not HTTP."""
        self._in_head = self._waiting_since is not None
        self._refuse(400, msg)

    def _refuse(self, status: int, message: str) -> None:
        """Close; with an answer when one is expected and no other is being given."""
        if self.transport.is_closing():
            return
        if self._in_head and self._waiting_since is not None:
            body = json.dumps(error_body(message, kind="invalid_request_error", code=f"http_{status}"))
            head = (
                f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\n"
                f"content-type: application/json\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n"
            )
            self.transport.write((head + body).encode())
        self.transport.close()
        self._watch_writing()

    # Answers that go.

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch_writing()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._stop_write_timer()

    def on_response_complete(self) -> None:
        self._waiting_since = self.loop.time()
        # A close waits until all is sent, however long that takes.
        self._watch_writing()
        super().on_response_complete()
        if self.pipeline or (self.cycle is not None and not self.cycle.response_complete):
            self._waiting_since = None

    def _watch_writing(self) -> None:
        self._unsent_bytes = self.transport.get_write_buffer_size()
        if self._write_timer is None and self._unsent_bytes:
            self._write_timer = self.loop.call_later(self.limits.write_timeout_s, self._check_progress)

    def _check_progress(self) -> None:
        self._write_timer = None
        unsent_bytes = self.transport.get_write_buffer_size()
        if unsent_bytes and self._unsent_bytes - unsent_bytes < _MIN_PROGRESS_BYTES:
            log.info("a client does not read its answer: its connection is closed")
            self.transport.abort()
        else:
            self._watch_writing()

    def _stop_write_timer(self) -> None:
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None
