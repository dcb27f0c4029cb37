"""One request over one connection, and when its answer's events came.

While an answer streams, only the time is taken and the bytes are kept; they are read when it has ended.
That, and uvloop, makes an event cost 4 us of CPU time, where a thread with a socket needed 17 (x86-64, eight
streams over loopback): the client takes its time from the cores that the server computes on.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from bisect import bisect_left
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any, Final, cast

from edgekit.http_load.target import Target, describe

__all__ = ["Answer", "Exchange", "ask"]

_TEXT: Final = re.compile(rb'"(?:reasoning_)?content": ?"[^"]')
"""In an event that carries text. Servers put a space behind the colon, or none."""
_EVENT_END: Final = re.compile(rb"\r?\n\r?\n")
_ERROR_EVENT: Final = re.compile(rb'(?:data|error): ?\{\s*"error"')
_LAST: Final = b"\ndata: [DONE]"
_SEEN_LAST: Final = re.compile(rb"(?:^|\n)data: ?\[DONE\]")
CUT_OFF: Final = "cut off"


@dataclass(slots=True)
class Answer:
    """What a client saw of one answer. Times in seconds, of one clock (time.perf_counter)."""

    due_s: float
    """When the request was to be sent: times to first token count from here."""
    sent_s: float
    ended_s: float = 0.0
    event_s: list[float] = field(default_factory=list)
    """When events with text came. An event may carry several tokens."""
    tokens: int = 0
    """Tokens of the answer, as the server counts them."""
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    """Of these, tokens that the server had computed before. None: it does not say."""
    error: str | None = None
    """What it is counted under: a status such as "429", or what became of the connection."""
    detail: str = ""
    """What the server said with an error."""

    @property
    def ttft_s(self) -> float | None:
        return self.event_s[0] - self.due_s if self.event_s else None

    @property
    def tpot_s(self) -> float | None:
        """Time per output token after the first. None: there are not two."""
        if len(self.event_s) < 2 or self.tokens < 2:
            return None
        return (self.event_s[-1] - self.event_s[0]) / (self.tokens - 1)


class Exchange(asyncio.Protocol):
    """Sends a request as soon as it is connected, and keeps what comes until the answer's end."""

    def __init__(self, request: bytes, ended: asyncio.Future[None], first: asyncio.Event | None) -> None:
        self._request = request
        self._ended = ended
        self._first = first
        self._transport: asyncio.Transport | None = None
        self.times_s: list[float] = []
        self.parts: list[bytes] = []
        self.lost: Exception | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's own is not derived from it
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        self.times_s.append(time.perf_counter())
        self.parts.append(data)
        if self._first is not None and _TEXT.search(data):
            self._first.set()
            self._first = None
        if _LAST in data:
            self.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = exc
        if not self._ended.done():
            self._ended.set_result(None)

    def close(self) -> None:
        """Go away, in the middle of an answer or at its end."""
        if self._transport is not None:
            self._transport.abort()


async def ask(
    target: Target,
    address: str,
    body: dict[str, Any],
    *,
    due_s: float,
    timeout_s: float,
    first: asyncio.Event | None = None,
    cut: Callable[[Answer], None] | None = None,
) -> Answer:
    """Send a request for a streamed chat completion, and wait for the answer's end. Raises nothing.

    Args:
        address: the target's, resolved.
        due_s: when it was to be sent.
        first: set when the answer's first text comes.
        cut: gets what had come when the caller is cancelled; the connection is closed then.
    """
    loop = asyncio.get_running_loop()
    ended = loop.create_future()
    exchange = Exchange(target.request("/v1/chat/completions", body), ended, first)
    answer = Answer(due_s=due_s, sent_s=time.perf_counter())
    try:
        await asyncio.wait_for(_run(exchange, target, address, ended), timeout_s)
    except asyncio.TimeoutError:
        answer.error = "timed out"
    except OSError as error:
        answer.error = describe(error)
    except asyncio.CancelledError:
        if cut is not None:
            _read(exchange, answer)
            cut(answer)
        raise
    finally:
        exchange.close()
        answer.ended_s = time.perf_counter()
    if answer.error is None:
        _read(exchange, answer)
    return answer


async def _run(exchange: Exchange, target: Target, address: str, ended: asyncio.Future[None]) -> None:
    name = target.host if target.tls is not None else None
    loop = asyncio.get_running_loop()
    await loop.create_connection(lambda: exchange, address, target.port, ssl=target.tls, server_hostname=name)
    await ended


def _read(exchange: Exchange, answer: Answer) -> None:
    """Fill in what came."""
    raw = b"".join(exchange.parts)
    head, _, _ = raw.partition(b"\r\n\r\n")
    status = head.split(b"\r\n", 1)[0].split(b" ")
    if len(status) < 2 or not status[0].startswith(b"HTTP/"):
        answer.error = describe(exchange.lost) if isinstance(exchange.lost, OSError) else CUT_OFF
        return
    payload, starts = _payload(raw, len(head) + 4, chunked=b"chunked" in head.lower())
    if status[1] != b"200":
        answer.error = status[1].decode("latin-1")
        answer.detail = payload.decode("utf-8", "replace").strip()[:500]
        return
    ends = list(accumulate(len(part) for part in exchange.parts))
    usage = b""
    for begin, end in _events(payload):
        if b'"completion_tokens"' in payload[begin:end]:
            usage = payload[begin:end]
        if _TEXT.search(payload, begin, end):
            answer.event_s.append(exchange.times_s[bisect_left(ends, _raw_offset(starts, end))])
        elif _ERROR_EVENT.match(payload[begin:end].lstrip()):
            answer.error = "error in the stream"
            answer.detail = payload[begin:end].decode("utf-8", "replace").strip()[:500]
    if usage:
        _count(usage, answer)
    if answer.error is None and not _SEEN_LAST.search(payload[-64:]):
        answer.error = CUT_OFF


def _events(payload: bytes) -> Iterator[tuple[int, int]]:
    """Where each event begins and ends."""
    begin = 0
    for match in _EVENT_END.finditer(payload):
        yield begin, match.start()
        begin = match.end()


def _payload(raw: bytes, begin: int, *, chunked: bool) -> tuple[bytes, list[tuple[int, int]]]:
    """The body without the framing of HTTP's chunks, as far as it came.

    Returns:
        The body, and where its parts lay: offset in the body, offset in `raw`.
    """
    if not chunked:
        return raw[begin:], [(0, begin)]
    parts: list[bytes] = []
    starts: list[tuple[int, int]] = []
    length = 0
    while (line_end := raw.find(b"\r\n", begin)) >= 0:
        size_text = raw[begin:line_end].partition(b";")[0]
        try:
            size = int(size_text, 16)
        except ValueError:
            break
        if size == 0:
            break
        part = raw[line_end + 2 : line_end + 2 + size]
        starts.append((length, line_end + 2))
        parts.append(part)
        length += len(part)
        begin = line_end + 2 + size + 2
    return b"".join(parts), starts or [(0, begin)]


def _raw_offset(starts: list[tuple[int, int]], offset: int) -> int:
    """How much must have come for the body's first `offset` bytes to be there."""
    index = bisect_left(starts, (offset, 0)) - 1
    body, raw = starts[max(0, index)]
    return raw + offset - body


def _count(event: bytes, answer: Answer) -> None:
    """Read the server's own count of tokens."""
    try:
        usage = json.loads(event[event.index(b"{") :])["usage"]
        answer.tokens = int(usage["completion_tokens"])
        answer.prompt_tokens = int(usage["prompt_tokens"])
        cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens")
        answer.cached_tokens = None if cached is None else int(cached)
    except (ValueError, KeyError, TypeError) as error:
        answer.error = "no usage"
        answer.detail = f"what the server says of usage is not readable: {error}"
