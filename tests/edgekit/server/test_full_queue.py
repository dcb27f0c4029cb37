"""What clients are told when more of them come than the engine lets wait. With the real engine."""

from __future__ import annotations

import json
import re
import socket
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from front_server import wait_until
from live_server import http, load_student, running_server, wait_until_ready

LONG: dict[str, Any] = {
    "messages": [{"role": "user", "content": "Count."}],
    "stream": True,
    "max_tokens": 400,
    "logit_bias": {"2": -100},
}
STREAMS, QUEUE = 4, 8


def begin(url: str) -> socket.socket:
    """Ask for a long stream; the answer is left to come."""
    where, body = urlsplit(url), json.dumps(LONG)
    connection = socket.create_connection((where.hostname, where.port))
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n"
    connection.sendall(f"{head}Content-Type: application/json\r\n\r\n{body}".encode())
    connection.setblocking(False)
    return connection


def answer_of(connection: socket.socket) -> str:
    """What has come so far."""
    try:
        return connection.recv(65536, socket.MSG_PEEK).decode(errors="replace")
    except BlockingIOError:
        return ""


def test_full_queue__429_says_when_to_come_back(student: Path) -> None:
    with running_server(lambda: load_student(student)) as url, ExitStack() as stack:
        wait_until_ready(url)
        # All are there before the first one can have ended.
        waiting = [stack.enter_context(begin(url)) for _ in range(STREAMS + QUEUE + 8)]

        def refused() -> str | None:
            said = [answer for answer in map(answer_of, waiting) if answer.startswith("HTTP/1.1 429")]
            return next((answer for answer in said if answer.endswith("}")), None)

        head, _, body = wait_until(refused).partition("\r\n\r\n")
        assert json.loads(body)["error"]["type"] == "rate_limit_error"
        assert json.loads(body)["error"]["code"] == "queue_full"
        (seconds,) = re.findall(r"(?i)^retry-after: (\d+)\r?$", head, re.MULTILINE)
        assert int(seconds) >= 1
        assert http.get(f"{url}/health").status_code == 200
