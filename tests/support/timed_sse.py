"""A server of streamed chat completions that answers when it is told to, for clients that measure.

Written against RFC 9112 and OpenAI's reference with plain sockets: it shares no code with what it tests.
"""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from typing_extensions import Self

__all__ = ["Script", "TimedServer"]


@dataclass
class Script:
    """How one request is answered."""

    status: int = 200
    first_s: float = 0.0
    """Before the first event."""
    gap_s: float = 0.0
    events: int = 4
    tokens_per_event: int = 1
    cached_tokens: int | None = None
    dies_after: int | None = None
    """The connection ends after so many events."""
    fails_after: int | None = None
    """An error comes in the stream after so many events."""
    piece_bytes: int | None = None
    """HTTP chunks of so many bytes, whatever they cut in two; None: an event a chunk."""
    chunked: bool = True
    space: str = " "
    """After colons in JSON."""
    says_usage: bool = True
    answer: Callable[[dict[str, Any]], int] = field(default=lambda body: len(str(body["messages"]).split()))
    """Counts the tokens of a prompt."""


class TimedServer:
    """Serves while its block runs, a thread a connection; or one connection after the other.

    Args:
        script: for the n-th chat, from 0 on.
        serial: a chat begins when the one before has ended.
        key: the API key that is asked for.
        tls: for https.
    """

    def __init__(
        self,
        script: Callable[[int], Script] = lambda number: Script(),
        *,
        serial: bool = False,
        key: str | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._script = script
        self._turn = threading.Lock() if serial else contextlib.nullcontext()
        self._key = key
        self._tls = tls
        self._counting = threading.Lock()
        self.chats: list[dict[str, Any]] = []
        """Bodies as they came."""
        self.sent_s: list[list[float]] = []
        """When the events of each chat went out (time.perf_counter)."""
        self.left_early = 0
        """Clients that went away in the middle of an answer."""
        self._socket = socket.create_server(("127.0.0.1", 0), backlog=256)
        self.port = self._socket.getsockname()[1]
        self.url = f"{'https' if tls else 'http'}://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError):
            if self._tls is not None:
                connection = self._tls.wrap_socket(connection, server_side=True)
            with connection:
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._answer(connection)

    def _answer(self, connection: socket.socket) -> None:
        received = b""
        while b"\r\n\r\n" not in received:
            received += _receive(connection)
        head, _, content = received.partition(b"\r\n\r\n")
        lines = head.decode().split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines[1:])}
        while len(content) < int(headers.get("content-length", 0)):
            content += _receive(connection)
        if self._key is not None and headers.get("authorization") != f"Bearer {self._key}":
            _send_json(connection, 401, {"error": {"message": "no key"}})
        elif lines[0].startswith("GET /v1/models "):
            _send_json(connection, 200, {"object": "list", "data": [{"id": "timed"}]})
        elif lines[0].startswith("POST /v1/chat/completions "):
            self._chat(connection, json.loads(content))
        else:
            _send_json(connection, 404, {"error": {"message": "nothing there"}})

    def _chat(self, connection: socket.socket, body: dict[str, Any]) -> None:
        with self._counting:
            number = len(self.chats)
            self.chats.append(body)
            self.sent_s.append([])
        script = self._script(number)
        with self._turn:
            if script.status != 200:
                _send_json(connection, script.status, {"error": {"message": f"no: {script.status}"}})
            elif body.get("stream"):
                try:
                    self._stream(connection, body, script, self.sent_s[number])
                except OSError:
                    self.left_early += 1
                    raise
            else:
                _send_json(connection, 200, {"usage": self._usage(body, script, 1)})

    def _stream(
        self, connection: socket.socket, body: dict[str, Any], script: Script, sent_s: list[float]
    ) -> None:
        framing = "Transfer-Encoding: chunked\r\n" if script.chunked else ""
        head = f"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n{framing}Connection: close\r\n\r\n"
        connection.sendall(head.encode())
        separators = (f",{script.space}", f":{script.space}")

        def event(document: dict[str, Any]) -> bytes:
            return f"data: {json.dumps(document, separators=separators)}\n\n".encode()

        def delta(fields: dict[str, Any]) -> bytes:
            return event({"object": "chat.completion.chunk", "choices": [{"index": 0, "delta": fields}]})

        def send(data: bytes, end: bytes = b"") -> None:
            connection.sendall(_framed(data, script) + end)

        send(delta({"role": "assistant", "content": ""}))
        for index in range(script.events):
            if index == script.dies_after:
                return
            if index == script.fails_after:
                send(event({"error": {"message": "the engine has stopped"}}))
                return
            time.sleep(script.gap_s if index else script.first_s)
            sent_s.append(time.perf_counter())
            send(delta({"content": f" word{index}"}))
        if script.says_usage:
            tokens = script.events * script.tokens_per_event
            send(event({"choices": [], "usage": self._usage(body, script, tokens)}))
        send(b"data: [DONE]\n\n", b"0\r\n\r\n" if script.chunked else b"")

    def _usage(self, body: dict[str, Any], script: Script, tokens: int) -> dict[str, Any]:
        prompt = script.answer(body)
        usage: dict[str, Any] = {"prompt_tokens": prompt, "completion_tokens": tokens}
        if script.cached_tokens is not None:
            usage["prompt_tokens_details"] = {"cached_tokens": script.cached_tokens}
        return {**usage, "total_tokens": prompt + tokens}


def _framed(data: bytes, script: Script) -> bytes:
    if not script.chunked:
        return data
    size = script.piece_bytes or len(data)
    pieces = [data[start : start + size] for start in range(0, len(data), size)]
    return b"".join(f"{len(piece):x}\r\n".encode() + piece + b"\r\n" for piece in pieces)


def _receive(connection: socket.socket) -> bytes:
    data = connection.recv(65536)
    if not data:
        raise ConnectionError
    return data


def _send_json(connection: socket.socket, status: int, document: dict[str, Any]) -> None:
    content = json.dumps(document).encode()
    connection.sendall(
        f"HTTP/1.1 {status} Status\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(content)}\r\nConnection: close\r\n\r\n".encode()
        + content
    )
