"""Slow and odd clients, on real sockets."""

from __future__ import annotations

import json
import socket
import time
from contextlib import suppress

import httpx
import pytest
from front_server import STREAMED, FrontServer, Posting, front_server, wait_until

from edgekit.server.connection import ConnectionLimits
from edgekit.server.front import Manners

IMPATIENT = ConnectionLimits(head_timeout_s=0.3)
"""With those who ask."""
UNREAD = ConnectionLimits(write_timeout_s=0.5, send_buffer_bytes=4096)
"""With those who do not read."""


def all_of(connection: socket.socket) -> str:
    """What the server says until it closes; the socket's timeout fails the test if it does not."""
    said = b""
    with suppress(ConnectionResetError):
        while piece := connection.recv(65536):
            said += piece
    return said.decode()


def error_of(answer: str) -> dict[str, str]:
    assert "content-type: application/json" in answer
    assert "connection: close" in answer
    error: dict[str, str] = json.loads(answer.split("\r\n\r\n", 1)[1])["error"]
    return error


def post(connection: socket.socket, body: dict[str, object]) -> None:
    content = json.dumps(body)
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(content)}\r\n"
    connection.sendall(f"{head}Content-Type: application/json\r\n\r\n{content}".encode())


@pytest.mark.parametrize("begun", ["GET /health HTTP/1.1\r\nHost: local", "G"])
def test_head__half_of_one_is_given_up(begun: str) -> None:
    with front_server(Manners(connections=IMPATIENT)) as server, server.connect() as connection:
        connection.sendall(begun.encode())
        answer = all_of(connection)
        assert answer.startswith("HTTP/1.1 408 ")
        assert "0.3 s" in error_of(answer)["message"]


@pytest.mark.parametrize("sent", [b"", b"\r\n"])
def test_head__connection_that_asks_nothing_is_closed(sent: bytes) -> None:
    with front_server(Manners(connections=IMPATIENT)) as server, server.connect() as connection:
        connection.sendall(sent)
        assert all_of(connection) == ""


@pytest.mark.parametrize("drop", [b"a", b"\r\n"])
def test_head__a_trickle_gets_no_more_time(drop: bytes) -> None:
    with front_server(Manners(connections=IMPATIENT)) as server, server.connect() as connection:
        connection.sendall(b"" if drop == b"\r\n" else b"GET / HTTP/1.1\r\nX-Slow: ")
        connection.settimeout(0.05)
        end_s = time.monotonic() + 30
        closed = False
        while not closed:
            assert time.monotonic() < end_s, "the server listens for ever"
            try:
                connection.sendall(drop)
                closed = not connection.recv(4096)
            except TimeoutError:
                continue
            except OSError:
                closed = True


def test_head__trickle_after_an_answer_is_closed_too() -> None:
    with front_server(Manners(connections=IMPATIENT)) as server, server.connect() as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        said = b""
        while b"ok" not in said:
            said += connection.recv(4096)
        connection.sendall(b"GET /hea")
        assert all_of(connection).startswith("HTTP/1.1 408 ")


def test_head__timeout_does_not_hold_for_answers() -> None:
    # Long enough for a client on a busy machine.
    with front_server(Manners(connections=ConnectionLimits(head_timeout_s=1.5))) as server:
        running = Posting(server.url, STREAMED)
        stream = server.engine.stream(0)
        with server.connect() as connection:
            assert all_of(connection) == ""  # a head's time has passed
        stream.give("late")
        stream.end()
        assert '"content":"late"' in "".join(running.join().lines)


def test_head__too_long_is_431() -> None:
    with (
        front_server(Manners(connections=ConnectionLimits(max_head_bytes=8192))) as server,
        server.connect() as connection,
    ):
        connection.sendall(b"GET / HTTP/1.1\r\nX-Long: " + b"x" * 8192)
        answer = all_of(connection)
        assert answer.startswith("HTTP/1.1 431 ")
        assert "8192 bytes" in error_of(answer)["message"]
        assert httpx.get(f"{server.url}/health").status_code == 200


def test_head__what_is_not_http_is_told_in_json() -> None:
    with front_server() as server, server.connect() as connection:
        connection.sendall(b"EHLO mail\r\n\r\n")
        answer = all_of(connection)
        assert answer.startswith("HTTP/1.1 400 ")
        assert error_of(answer)["code"] == "http_400"


def test_connections__too_many_push_out_who_waited_longest() -> None:
    limits = ConnectionLimits(head_timeout_s=60, max_connections=3)
    with front_server(Manners(connections=limits)) as server:
        running = Posting(server.url, STREAMED)
        stream = server.engine.stream(0)
        idle = [server.connect() for _ in range(4)]
        try:
            assert all_of(idle[0]) == ""
            assert all_of(idle[1]) == ""
            assert httpx.get(f"{server.url}/health").status_code == 200
            stream.give("still here")
            stream.end()
            assert "still here" in "".join(running.join().lines)
        finally:
            for connection in idle:
                connection.close()


def fill(server: FrontServer, number: int) -> None:
    """Give a stream far more than buffers hold, as an engine would: without waiting."""
    stream = server.engine.stream(number)
    for _ in range(100):
        stream.give("x" * 100_000)


def test_slow_reader__is_cut_and_others_are_not_held() -> None:
    with (
        front_server(Manners(connections=UNREAD)) as server,
        server.connect(receive_buffer_bytes=4096) as sleeper,
    ):
        post(sleeper, STREAMED)
        asleep = server.engine.stream(0)
        awake = Posting(server.url, STREAMED)
        other = server.engine.stream(1)
        fill(server, 0)
        count = 0
        end_s = time.monotonic() + 30
        while not asleep.cancelled.wait(0.02):
            assert time.monotonic() < end_s, "who reads nothing stays for ever"
            count += 1
            other.give(f"<{count}>")
        wait_until(lambda: server.drain.left == 1)
        other.end()
        lines = awake.join().lines
        assert awake.status == 200
        assert all(f"<{number}>" in "".join(lines) for number in range(1, count + 1))
        assert lines[-1] == "data: [DONE]"
        assert not other.cancelled.is_set() or other.ended


def test_slow_reader__unread_end_of_an_answer_does_not_hold_the_connection() -> None:
    with (
        front_server(Manners(connections=UNREAD)) as server,
        server.connect(receive_buffer_bytes=4096) as sleeper,
    ):
        post(sleeper, {**STREAMED, "stream": False})
        stream = server.engine.stream(0)
        fill(server, 0)
        stream.end()
        wait_until(lambda: server.drain.left == 0)
        wait_until(lambda: not server.state.connections)


def test_slow_reader__who_reads_on_gets_everything() -> None:
    # All of it is under way at once, for longer than a reader may stand still.
    limits = ConnectionLimits(write_timeout_s=1.5, send_buffer_bytes=4096)
    with (
        front_server(Manners(connections=limits)) as server,
        server.connect(receive_buffer_bytes=4096) as reader,
    ):
        post(reader, STREAMED)
        stream = server.engine.stream(0)
        stream.give("x" * 1_000_000)
        stream.end()
        said = b""
        while b"[DONE]" not in said:
            piece = reader.recv(20_000)
            assert piece, "the connection was closed"
            said += piece
            time.sleep(0.015)
        assert said.count(b"x") >= 1_000_000
        assert not stream.cancelled.is_set() or stream.ended
