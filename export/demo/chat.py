"""Asks one question over the OpenAI API, with the standard library alone, and hands on what streams in."""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from edgekit.errors import EdgekitError

__all__ = ["Answer", "stream_answer", "wait_until_ready"]

_POLL_S = 0.1


@dataclass(slots=True)
class Answer:
    """Filled while the answer streams."""

    timings: dict[str, Any] | None = None
    tokens: int = 0


def wait_until_ready(port: int, *, timeout_s: float, is_alive: Callable[[], bool]) -> None:
    """Wait until GET /health answers 200.

    Args:
        is_alive: says whether the server's process still runs.

    Raises:
        EdgekitError: it does not within the time, or the server ended.
    """
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if not is_alive():
            raise EdgekitError(f"the server on port {port} ended before it was ready")
        with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=5)) as connection:
            try:
                connection.request("GET", "/health")
                if connection.getresponse().status == 200:
                    return
            except (OSError, http.client.HTTPException):
                pass
        time.sleep(_POLL_S)
    raise EdgekitError(f"the server on port {port} is not ready after {timeout_s:.0f} s")


def stream_answer(port: int, question: str, answer: Answer, *, max_tokens: int = 160) -> Iterator[str]:
    """The answer's text, piece by piece, reasoning included. `answer` has the figures at the end.

    Raises:
        EdgekitError: the server answers with an error, or is gone before the answer's end.
    """
    try:
        yield from _events(port, question, answer, max_tokens)
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise EdgekitError(f"the connection to the server was lost: {error}") from error
    answer.tokens = answer.timings["predicted_n"] if answer.timings else 0


def _events(port: int, question: str, answer: Answer, max_tokens: int) -> Iterator[str]:
    body = {
        "messages": [{"role": "user", "content": question}],
        "max_tokens": max_tokens,
        "seed": 1,
        "stream": True,
    }
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=300)) as connection:
        connection.request(
            "POST", "/v1/chat/completions", json.dumps(body), {"content-type": "application/json"}
        )
        response = connection.getresponse()
        if response.status != 200:
            said = response.read().decode("utf-8", "replace")
            raise EdgekitError(f"the server answers {response.status}: {said}")
        while line := response.readline():
            if line.startswith(b"data: [DONE]"):
                return
            if not line.startswith(b"data: {"):
                continue
            event = json.loads(line[6:])
            if "error" in event:
                raise EdgekitError(f"the server gave up: {event['error']['message']}")
            answer.timings = event.get("timings", answer.timings)
            delta = event["choices"][0]["delta"]
            yield delta.get("reasoning_content", "") + delta.get("content", "")
    # http.client takes a connection that closes between two chunks for the end.
    raise EdgekitError("the connection to the server was lost before the answer's end")
