from __future__ import annotations

import asyncio
import socket
import time
from typing import Any

import pytest
import uvloop
from timed_sse import Script, TimedServer

from edgekit.http_load.exchange import Answer, ask
from edgekit.http_load.loads import Ask
from edgekit.http_load.target import Target

TEXT = {"messages": [{"role": "user", "content": "a b c"}]}


def ask_once(url: str, *, timeout_s: float = 20.0) -> Answer:
    async def run() -> Answer:
        target = Target.parse(url)
        body = Ask(max_tokens=8).body(1)
        return await ask(target, "127.0.0.1", body, due_s=time.perf_counter(), timeout_s=timeout_s)

    return uvloop.new_event_loop().run_until_complete(run())


@pytest.mark.parametrize("chunked", [True, False])
@pytest.mark.parametrize("space", ["", " "])
def test_ask__counts_tokens_as_the_server_says_and_times_each_event(chunked: bool, space: str) -> None:
    script = Script(
        first_s=0.02, gap_s=0.01, events=5, tokens_per_event=3, cached_tokens=2, chunked=chunked, space=space
    )
    with TimedServer(lambda number: script) as server:
        answer = ask_once(server.url)
    assert answer.error is None
    assert (answer.tokens, answer.cached_tokens, len(answer.event_s)) == (15, 2, 5)
    assert answer.ttft_s is not None
    assert answer.ttft_s >= 0.02
    # Nothing is seen before it was sent; that nothing is seen much later is for a quiet machine to show.
    assert all(seen >= sent for seen, sent in zip(answer.event_s, server.sent_s[0], strict=True))
    assert answer.tpot_s == pytest.approx((answer.event_s[-1] - answer.event_s[0]) / 14)


@pytest.mark.parametrize("piece_bytes", [1, 7, 64, 100_000])
def test_ask__chunks_that_cut_events_in_two_change_nothing(piece_bytes: int) -> None:
    with TimedServer(lambda number: Script(gap_s=0.005, piece_bytes=piece_bytes)) as server:
        answer = ask_once(server.url)
    assert answer.error is None
    assert (answer.tokens, len(answer.event_s)) == (4, 4)
    assert all(seen >= sent for seen, sent in zip(answer.event_s, server.sent_s[0], strict=True))


@pytest.mark.parametrize(
    ("script", "error", "detail"),
    [
        (Script(status=429), "429", "no: 429"),
        (Script(status=500), "500", "no: 500"),
        (Script(dies_after=2), "cut off", ""),
        (Script(fails_after=2), "error in the stream", "the engine has stopped"),
    ],
)
def test_ask__failures_are_told_apart(script: Script, error: str, detail: str) -> None:
    with TimedServer(lambda number: script) as server:
        answer = ask_once(server.url)
    assert answer.error == error
    assert detail in answer.detail


def test_ask__gives_up_in_time_and_leaves() -> None:
    with TimedServer(lambda number: Script(gap_s=0.05, events=100)) as server:
        answer = ask_once(server.url, timeout_s=0.2)
        assert answer.error == "timed out"
        deadline = time.monotonic() + 10
        while not server.left_early:
            assert time.monotonic() < deadline, "the connection stays open"
            time.sleep(0.01)


def test_ask__nobody_there() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    assert ask_once(f"http://127.0.0.1:{port}").error == "connection refused"


def test_ask__what_does_not_speak_http_is_cut_off() -> None:
    listening = socket.create_server(("127.0.0.1", 0))

    async def run() -> Answer:
        loop = asyncio.get_running_loop()

        def greet() -> None:
            connection, _ = listening.accept()
            with connection:
                connection.sendall(b"220 mail.example.org ESMTP\r\n")

        greeting = loop.run_in_executor(None, greet)
        target = Target.parse(f"http://127.0.0.1:{listening.getsockname()[1]}")
        body: dict[str, Any] = dict(TEXT)
        answer = await ask(target, "127.0.0.1", body, due_s=time.perf_counter(), timeout_s=10)
        await greeting
        return answer

    with listening:
        assert uvloop.new_event_loop().run_until_complete(run()).error in ("cut off", "connection reset")
