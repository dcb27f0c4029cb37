"""How the server ends, over real connections."""

from __future__ import annotations

import json

import httpx
from front_server import STREAMED, WHOLE, Posting, front_server

from edgekit.server.errors import ApiError


def test_begin__running_stream_goes_on_and_new_work_is_refused() -> None:
    with front_server() as server:
        running = Posting(server.url, STREAMED)
        stream = server.engine.stream(0)
        stream.give("one")
        server.on_loop(server.drain.begin)
        refused = httpx.post(f"{server.url}/v1/chat/completions", json=WHOLE)
        assert refused.status_code == 503
        assert refused.json()["error"]["code"] == "shutting_down"
        assert int(refused.headers["retry-after"]) >= 1
        health = httpx.get(f"{server.url}/health")
        assert health.status_code == 503
        assert (health.json()["status"], health.json()["streams_left"]) == ("draining", 1)
        assert "edgekit_ready" in httpx.get(f"{server.url}/metrics").text
        assert not server.drained.is_set()
        stream.give("two")
        stream.end()
        lines = running.join().lines
        assert '"content":"two"' in "".join(lines)
        assert lines[-1] == "data: [DONE]"
        assert server.drained.wait(30)
        assert len(server.engine.streams) == 1


def test_begin__with_nothing_under_way_is_drained_at_once() -> None:
    with front_server() as server:
        httpx.get(f"{server.url}/v1/models")
        server.on_loop(server.drain.begin)
        assert server.drained.is_set()


def test_cut__streams_get_an_error_event_and_answers_a_503() -> None:
    with front_server() as server:
        streamed = Posting(server.url, STREAMED)
        first = server.engine.stream(0)
        whole = Posting(server.url, WHOLE)
        second = server.engine.stream(1)
        first.give("one")
        server.on_loop(server.drain.begin)
        assert server.drain.left == 2
        server.on_loop(server.drain.cut)
        *_, error, done = streamed.join().lines
        assert json.loads(error.removeprefix("data: "))["error"]["code"] == "shutting_down"
        assert done == "data: [DONE]"
        assert whole.join().status == 503
        assert json.loads("".join(whole.lines))["error"]["code"] == "shutting_down"
        assert int(whole.headers["retry-after"]) >= 1
        assert first.cancelled.wait(30)
        assert second.cancelled.wait(30)
        assert server.drained.wait(30)


def test_cut__a_reader_that_has_stopped_does_not_hold_the_end() -> None:
    with front_server() as server, server.connect(receive_buffer_bytes=4096) as reader:
        body = json.dumps(STREAMED)
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n"
        reader.sendall(f"{head}Content-Type: application/json\r\n\r\n{body}".encode())
        stream = server.engine.stream(0)
        for _ in range(20):
            stream.give("x" * 100_000)
        server.on_loop(server.drain.begin)
        server.on_loop(server.drain.cut)
        assert server.drained.wait(30)


def test_condemn__everybody_is_told_but_metrics_go_on() -> None:
    with front_server() as server:
        defect = ApiError(500, "a step hangs", kind="server_error", code="engine_stuck")
        server.on_loop(lambda: server.drain.condemn(defect))
        assert httpx.get(f"{server.url}/health").status_code == 500
        assert httpx.get(f"{server.url}/health").json()["error"]["code"] == "engine_stuck"
        assert httpx.post(f"{server.url}/v1/chat/completions", json=WHOLE).status_code == 500
        assert httpx.get(f"{server.url}/metrics").status_code == 200
