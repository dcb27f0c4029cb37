"""Load on an OpenAI-style server: closed-loop streams, and what they see.

Each stream is a thread with a plain socket, so that the client costs little of the machine that it may share
with the server.
"""

from __future__ import annotations

import contextlib
import json
import re
import socket
import statistics
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from edgekit.errors import EdgekitError, UsageError

__all__ = ["Figures", "Load", "compare", "measure"]

_TIMEOUT_S = 600
_TEXT = re.compile(rb'"(?:reasoning_)?content": ?"[^"]')
"""An event that carries text. Servers put a space behind the colon, or none."""


@dataclass(frozen=True, slots=True)
class Load:
    """What to ask of a server.

    `prompt` may hold one `%d`, which gets a number of its own in each request, so that no two are alike.
    `logit_bias` can forbid the end of the turn, for answers of equal length.
    """

    streams: int = 1
    requests_per_stream: int = 3
    max_tokens: int = 128
    prompt: str = "Write a long story about the number %d."
    model: str | None = None
    logit_bias: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Figures:
    """What a load saw. Gaps are the times between the events of one stream."""

    streams: int
    requests: int
    tokens: int
    seconds: float
    tokens_per_s: float
    """All streams together, prefill included."""
    decode_tokens_per_s: float
    """Of one stream, from its first token to its last: the median over the requests."""
    ttft_p50_ms: float
    ttft_p95_ms: float
    gap_p50_ms: float
    gap_p95_ms: float
    gap_p99_ms: float


@dataclass(slots=True)
class _Seen:
    tokens: int = 0
    decode_tokens_per_s: list[float] = field(default_factory=list)
    ttft_s: list[float] = field(default_factory=list)
    gap_s: list[float] = field(default_factory=list)


def measure(url: str, load: Load) -> Figures:
    """Put a load on a server and wait until it has answered all of it.

    Raises:
        UsageError: the URL is not an http URL.
        EdgekitError: the server cannot be reached, or answers with an error.
    """
    parts = urlsplit(url)
    if parts.scheme != "http" or parts.hostname is None:
        raise UsageError(f"{url}: not an http:// URL", hint="give e.g. http://127.0.0.1:8080")
    failures: list[BaseException] = []
    seen = [_Seen() for _ in range(load.streams)]

    def run(index: int) -> None:
        try:
            for turn in range(load.requests_per_stream):
                _ask(
                    parts.hostname or "", parts.port or 80, load, 1 + index + turn * load.streams, seen[index]
                )
        except (OSError, ValueError, EdgekitError) as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(index,)) for index in range(load.streams)]
    begun = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - begun
    if failures:
        first = failures[0]
        if isinstance(first, EdgekitError):
            raise first
        raise EdgekitError(f"{url}: {first}", hint="is the server running?") from first
    tokens = sum(one.tokens for one in seen)
    ttft = [value for one in seen for value in one.ttft_s]
    gaps = [value for one in seen for value in one.gap_s]
    rates = [value for one in seen for value in one.decode_tokens_per_s]
    return Figures(
        streams=load.streams,
        requests=load.streams * load.requests_per_stream,
        tokens=tokens,
        seconds=seconds,
        tokens_per_s=tokens / seconds,
        decode_tokens_per_s=statistics.median(rates) if rates else float("nan"),
        ttft_p50_ms=_percentile(ttft, 50),
        ttft_p95_ms=_percentile(ttft, 95),
        gap_p50_ms=_percentile(gaps, 50),
        gap_p95_ms=_percentile(gaps, 95),
        gap_p99_ms=_percentile(gaps, 99),
    )


def compare(ours: Figures, theirs: Figures) -> str:
    """The ratios of two measurements, in words."""
    return (
        f"ratio: tok/s {ours.tokens_per_s / theirs.tokens_per_s:.2f}, "
        f"TTFT p50 {ours.ttft_p50_ms / theirs.ttft_p50_ms:.2f}, "
        f"gap p95 {ours.gap_p95_ms / theirs.gap_p95_ms:.2f}"
    )


def _ask(host: str, port: int, load: Load, number: int, seen: _Seen) -> None:
    body = json.dumps(_body(load, number)).encode()
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    begun = last = time.perf_counter()
    first: float | None = None
    tokens = 0
    with socket.create_connection((host, port), timeout=_TIMEOUT_S) as connection:
        connection.sendall(head.encode() + body)
        for event in _events(connection):
            now = time.perf_counter()
            if b'"total_tokens"' in event:
                tokens = json.loads(event[event.index(b"{") :])["usage"]["completion_tokens"]
            elif _has_text(event):
                if first is None:
                    seen.ttft_s.append(now - begun)
                    first = now
                else:
                    seen.gap_s.append(now - last)
                last = now
    if first is None:
        raise EdgekitError("the server's answer has no text")
    seen.tokens += tokens
    if tokens > 1 and last > first:
        seen.decode_tokens_per_s.append((tokens - 1) / (last - first))


def _body(load: Load, number: int) -> dict[str, Any]:
    return {
        "messages": [
            {"role": "user", "content": load.prompt % number if "%d" in load.prompt else load.prompt}
        ],
        "max_tokens": load.max_tokens,
        "temperature": 0.6,
        "top_p": 0.95,
        "top_k": 40,
        "seed": number,
        "stream": True,
        "stream_options": {"include_usage": True},
        **({"model": load.model} if load.model is not None else {}),
        **({"logit_bias": load.logit_bias} if load.logit_bias else {}),
    }


def _events(connection: socket.socket) -> Iterator[bytes]:
    """The answer's server-sent events as they come, up to [DONE].

    Cut out of the raw stream: the lengths of HTTP's chunks stand between events and are passed over. The
    standard library's reader of chunked answers takes more of a core than the server does.
    """
    received = b""
    while b"\r\n\r\n" not in received:
        received += _receive(connection)
    head, _, received = received.partition(b"\r\n\r\n")
    status = head.split(b"\r\n", 1)[0].partition(b" ")[2].decode("latin-1")
    if not status.startswith("200"):
        with contextlib.suppress(EdgekitError):
            while True:
                received += _receive(connection)
        raise EdgekitError(f"the server answers {status}: {received.decode('utf-8', 'replace')[:500]}")
    while True:
        *events, received = received.split(b"\n\n")
        for event in events:
            at = event.find(b"data: ")
            if event.startswith(b"data: [DONE]", at):
                return
            if at >= 0:
                yield event[at:]
        received += _receive(connection)


def _receive(connection: socket.socket) -> bytes:
    data = connection.recv(65536)
    if not data:
        raise EdgekitError("the server closed the connection before the end of its answer")
    return data


def _has_text(event: bytes) -> bool:
    return _TEXT.search(event) is not None


def _percentile(values: list[float], percent: int) -> float:
    """In milliseconds; NaN when nothing was seen."""
    if not values:
        return float("nan")
    if len(values) == 1:
        return values[0] * 1e3
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1] * 1e3
