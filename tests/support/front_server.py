"""The application behind all that stands in front of it, on a real socket, over an engine worked by hand."""

from __future__ import annotations

import asyncio
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar

import httpx
import uvicorn
from scripted_engine import ScriptedEngine, finished, scripted_model
from uvicorn.server import ServerState

from edgekit.engine.base import Chunk, EngineStats, Event, FinishReason, Request, Sink
from edgekit.errors import EdgekitError
from edgekit.server.access import ApiKeys
from edgekit.server.app import create_app
from edgekit.server.connection import http_protocol, limit_socket
from edgekit.server.drain import Drain
from edgekit.server.front import Manners, put_in_front
from edgekit.server.model import ModelSlot

T = TypeVar("T")

STREAMED = {"messages": [{"role": "user", "content": "Hello"}], "stream": True}
WHOLE = {"messages": [{"role": "user", "content": "Hello"}]}


def wait_until(condition: Callable[[], T], timeout_s: float = 30.0) -> T:
    end_s = time.monotonic() + timeout_s
    while not (value := condition()):
        assert time.monotonic() < end_s, "the condition did not come true in time"
        time.sleep(0.005)
    return value


@dataclass
class HandStream:
    """A request that the engine has taken. The test says what becomes of it."""

    request: Request
    sink: Sink
    cancelled: threading.Event = field(default_factory=threading.Event)
    ended: bool = False

    def give(self, text: str) -> None:
        self.sink(Chunk(text))

    def end(self, event: Event | None = None) -> None:
        if not self.ended:
            self.ended = True
            self.sink(event or finished())

    def cancel(self) -> None:
        self.cancelled.set()
        self.end(finished(FinishReason.CANCELLED))


@dataclass
class HandEngine(ScriptedEngine):
    """An engine that does what a test says, when it says so."""

    streams: list[HandStream] = field(default_factory=list)
    on_submit: Callable[[HandStream], None] = lambda stream: None
    refusal: EdgekitError | None = None
    steps: int = 0
    step_age: float | None = None

    def submit(self, request: Request, sink: Sink) -> Any:
        if self.refusal is not None:
            raise self.refusal
        stream = HandStream(request, sink)
        self.streams.append(stream)
        self.on_submit(stream)
        return stream

    def stream(self, number: int) -> HandStream:
        """The request of this number, once it has come."""
        wait_until(lambda: len(self.streams) > number)
        return self.streams[number]

    def stats(self) -> EngineStats:
        return EngineStats(steps=self.steps)

    def step_age_s(self) -> float | None:
        return self.step_age

    def close(self) -> None:
        for stream in self.streams:
            stream.cancel()


@dataclass
class FrontServer:
    engine: HandEngine
    drain: Drain
    port: int
    loop: asyncio.AbstractEventLoop
    drained: threading.Event
    state: ServerState
    scheme: str = "http"

    @property
    def url(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.port}"

    def on_loop(self, call: Callable[[], None]) -> None:
        """Have a call made on the server's loop, and wait for it."""
        done = threading.Event()
        self.loop.call_soon_threadsafe(lambda: (call(), done.set()))
        assert done.wait(30)

    def connect(self, *, receive_buffer_bytes: int | None = None) -> socket.socket:
        connection = socket.socket()
        connection.settimeout(30)
        if receive_buffer_bytes is not None:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer_bytes)
        connection.connect(("127.0.0.1", self.port))
        return connection


@contextmanager
def front_server(
    manners: Manners | None = None,
    *,
    hosts: tuple[str, ...] | None = (),
    keys: ApiKeys | None = None,
    tls: ssl.SSLContext | None = None,
) -> Iterator[FrontServer]:
    manners = manners or Manners()
    engine = HandEngine()
    drained = threading.Event()
    slot = ModelSlot(lambda _stop: scripted_model(engine))
    front, drain = put_in_front(create_app(slot, keys=keys), manners, hosts=hosts, on_drained=drained.set)
    config = uvicorn.Config(
        front,
        http=http_protocol(manners.connections),
        ws="none",
        log_config=None,
        timeout_graceful_shutdown=1,
    )
    config.load()
    config.ssl = tls
    server = uvicorn.Server(config)
    loops: list[asyncio.AbstractEventLoop] = []

    async def main(listening: socket.socket) -> None:
        loops.append(asyncio.get_running_loop())
        await server.serve(sockets=[listening])

    with socket.socket() as listening:
        limit_socket(listening, manners.connections)
        listening.bind(("127.0.0.1", 0))
        port = listening.getsockname()[1]
        thread = threading.Thread(target=lambda: asyncio.run(main(listening)))
        thread.start()
        try:
            wait_until(lambda: server.started and slot.model is not None)
            scheme = "http" if tls is None else "https"
            yield FrontServer(engine, drain, port, loops[0], drained, server.server_state, scheme)
        finally:
            server.should_exit = True
            for stream in engine.streams:
                stream.end()
            thread.join(30)


class Posting:
    """A chat request under way on a thread of its own."""

    def __init__(self, url: str, body: dict[str, Any], **client: Any) -> None:
        self.lines: list[str] = []
        self.status: int | None = None
        self.headers: httpx.Headers = httpx.Headers()
        self._thread = threading.Thread(target=self._run, args=(url, body, client), daemon=True)
        self._thread.start()

    def _run(self, url: str, body: dict[str, Any], client: dict[str, Any]) -> None:
        where = f"{url}/v1/chat/completions"
        with (
            suppress(httpx.HTTPError),
            httpx.stream("POST", where, json=body, timeout=30, **client) as response,
        ):
            self.status, self.headers = response.status_code, response.headers
            self.lines.extend(line for line in response.iter_lines() if line)

    def join(self) -> Posting:
        self._thread.join(30)
        assert not self._thread.is_alive(), "the answer does not end"
        return self
