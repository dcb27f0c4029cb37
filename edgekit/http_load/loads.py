"""The two kinds of load: so many streams at once, and requests that come when they come.

In a closed loop a stream asks again when it has its answer: a slow server is asked less. In an open loop
requests come as a Poisson process, whatever the server does, and their times count from when they were due:
what a server makes wait is seen in full ("coordinated omission" leaves it out).
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import time
from collections.abc import AsyncIterator, Coroutine, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import uvloop

from edgekit.errors import EdgekitError, UsageError
from edgekit.http_load.exchange import Answer, ask
from edgekit.http_load.figures import Figures, summarize
from edgekit.http_load.prompts import Numbered, Prompts
from edgekit.http_load.target import Target, describe

__all__ = ["Ask", "ClosedLoop", "Load", "Measurement", "OpenLoop", "arrival_times_s", "measure"]

_FATAL: Final = frozenset({"401", "403", "404"})
"""Statuses that all requests of a load would get."""
_BACKGROUND_STEP: Final = 1_000_000_000
"""Numbers of the background's requests begin here: no other request has them."""


@dataclass(frozen=True, slots=True)
class Ask:
    """What all requests of a load have in common."""

    max_tokens: int = 128
    prompts: Prompts = field(default_factory=Numbered)
    model: str | None = None
    logit_bias: dict[str, float] = field(default_factory=dict)
    """Can forbid the end of the turn, for answers of equal length."""
    first_number: int = 1
    """Requests are numbered from here; the number chooses the prompt and the seed."""
    timeout_s: float = 600.0
    """After which a request is given up."""

    def body(self, number: int, *, max_tokens: int | None = None) -> dict[str, Any]:
        """The request of a number. Sampled as DeepSeek advises for R1, which is what is served."""
        return {
            "messages": [{"role": "user", "content": self.prompts.prompt(number)}],
            "max_tokens": max_tokens or self.max_tokens,
            "temperature": 0.6,
            "top_p": 0.95,
            "top_k": 40,
            "seed": number,
            "stream": True,
            "stream_options": {"include_usage": True},
            **({"model": self.model} if self.model is not None else {}),
            **({"logit_bias": self.logit_bias} if self.logit_bias else {}),
        }


@dataclass(frozen=True, slots=True)
class ClosedLoop:
    """`streams` at once, each with `requests_per_stream` requests one after the other."""

    streams: int = 1
    requests_per_stream: int = 3
    ask: Ask = field(default_factory=Ask)


@dataclass(frozen=True, slots=True)
class OpenLoop:
    """Requests at random: `rate_per_s` in the mean, for `duration_s`.

    `background` streams run all the while, and wait for each of their tokens as users do who read: how
    much newcomers disturb them is reported apart.
    """

    rate_per_s: float
    duration_s: float
    seed: int = 0
    background: int = 0
    background_tokens: int = 512
    """Length of a background stream's answer; after it, it asks anew."""
    ask: Ask = field(default_factory=Ask)


Load = ClosedLoop | OpenLoop


@dataclass(frozen=True, slots=True)
class Measurement:
    """What a load saw: in figures, and answer by answer."""

    figures: Figures
    answers: list[Answer]
    background: list[Answer]


def measure(target: Target, load: Load) -> Measurement:
    """Put a load on a server and wait until it has answered all of it.

    Raises:
        EdgekitError: the server cannot be reached. In a closed loop, any request that fails; in an open
            loop failures are counted, unless all fail, or all would.
    """
    try:
        found = socket.getaddrinfo(target.host, target.port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise EdgekitError(f"{target.url}: {describe(error)}", hint="check the name") from error
    run = _Run(target, str(found[0][4][0]), load)
    loop = uvloop.new_event_loop()
    try:
        return loop.run_until_complete(run.go())
    finally:
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()


def arrival_times_s(rate_per_s: float, duration_s: float, seed: int) -> list[float]:
    """When the requests of a Poisson process come, from 0 on: gaps are exponential and independent."""
    random_gap = random.Random(seed)  # noqa: S311 (nothing secret)
    times = []
    now = random_gap.expovariate(rate_per_s)
    while now < duration_s:
        times.append(now)
        now += random_gap.expovariate(rate_per_s)
    return times


class _Run:
    """A load under way."""

    def __init__(self, target: Target, address: str, load: Load) -> None:
        self._target = target
        self._address = address
        self._load = load
        self._answers: list[Answer] = []
        self._background: list[Answer] = []

    async def go(self) -> Measurement:
        cpu_begun = time.thread_time()
        load = self._load
        if isinstance(load, ClosedLoop):
            begun, ended = await self._closed(load)
        else:
            begun, ended = await self._open(load)
        self._refuse_failures(load)
        figures = summarize(
            self._answers,
            load="closed" if isinstance(load, ClosedLoop) else "open",
            streams=load.streams if isinstance(load, ClosedLoop) else None,
            rate_per_s=None if isinstance(load, ClosedLoop) else load.rate_per_s,
            begun_s=begun,
            ended_s=ended,
            background=self._background,
            client_cpu_s=time.thread_time() - cpu_begun,
        )
        return Measurement(figures, self._answers, self._background)

    async def _closed(self, load: ClosedLoop) -> tuple[float, float]:
        async def stream(index: int) -> None:
            for turn in range(load.requests_per_stream):
                number = load.ask.first_number + index + turn * load.streams
                answer = await self._ask(load.ask, number, time.perf_counter())
                if answer.error is not None:
                    raise self._failure(answer)

        begun = time.perf_counter()
        await _all(stream(index) for index in range(load.streams))
        return begun, time.perf_counter()

    async def _open(self, load: OpenLoop) -> tuple[float, float]:
        times = arrival_times_s(load.rate_per_s, load.duration_s, load.seed)
        if not times:
            raise UsageError(
                f"no request comes in {load.duration_s:g} s at {load.rate_per_s:g} a second",
                hint="let it last longer, or raise the rate",
            )
        async with self._running_background(load):
            begun = time.perf_counter()

            async def arrive(number: int, due: float) -> None:
                # Timers are of a millisecond, and may come a part of it early.
                while (left := due - time.perf_counter()) > 0:
                    await asyncio.sleep(left)
                answer = await self._ask(load.ask, number, due)
                if answer.error in _FATAL:
                    raise self._failure(answer)

            first = load.ask.first_number
            await _all(arrive(first + index, begun + after) for index, after in enumerate(times))
            ended = time.perf_counter()
        # Nobody came before or after.
        for answer in self._background:
            answer.event_s = [moment for moment in answer.event_s if begun <= moment <= ended]
        return begun, ended

    @contextlib.asynccontextmanager
    async def _running_background(self, load: OpenLoop) -> AsyncIterator[None]:
        """Streams that all generate when the block begins, and end with it."""
        started = [asyncio.Event() for _ in range(load.background)]

        async def stream(index: int) -> None:
            number = load.ask.first_number + _BACKGROUND_STEP + index
            while True:
                body = load.ask.body(number, max_tokens=load.background_tokens)
                number += load.background
                answer = await ask(
                    self._target,
                    self._address,
                    body,
                    due_s=time.perf_counter(),
                    timeout_s=load.ask.timeout_s,
                    first=started[index],
                    cut=self._background.append,
                )
                self._background.append(answer)
                if answer.error is not None:
                    raise self._failure(answer)

        streams = [asyncio.ensure_future(stream(index)) for index in range(load.background)]
        try:
            await _first_of(asyncio.gather(*(event.wait() for event in started)), *streams)
            yield
        finally:
            await _end(streams)

    async def _ask(self, what: Ask, number: int, due: float) -> Answer:
        answer = await ask(
            self._target, self._address, what.body(number), due_s=due, timeout_s=what.timeout_s
        )
        self._answers.append(answer)
        return answer

    def _refuse_failures(self, load: Load) -> None:
        if all(answer.error is not None for answer in self._answers):
            raise self._failure(self._answers[0])

    def _failure(self, answer: Answer) -> EdgekitError:
        error = answer.error or ""
        if not error.isdigit():
            hint = "is the server running?" if "refused" in error else None
            detail = f": {answer.detail}" if answer.detail else ""
            return EdgekitError(f"{self._target.url}: {error}{detail}", hint=hint)
        hint = {
            "401": "give a key that it knows: --api-key-file FILE, or in $EDGEKIT_API_KEY",
            "429": "its queue is full: use fewer streams, or give it a longer queue",
        }.get(error)
        return EdgekitError(f"{self._target.url}: the server answers {error}: {answer.detail}", hint=hint)


async def _all(jobs: Iterator[Coroutine[Any, Any, None]]) -> None:
    """Do all at once; when one fails, the others are ended and its error is raised."""
    tasks = [asyncio.ensure_future(job) for job in jobs]
    try:
        await asyncio.gather(*tasks)
    finally:
        await _end(tasks)


async def _first_of(wanted: asyncio.Future[Any], *others: asyncio.Future[None]) -> None:
    """Wait for one; raise what others fail with before it comes."""
    try:
        await asyncio.wait([wanted, *others], return_when=asyncio.FIRST_COMPLETED)
        for other in others:
            if other.done():
                other.result()
    finally:
        await _end([wanted])


async def _end(futures: Sequence[asyncio.Future[Any]]) -> None:
    for future in futures:
        future.cancel()
    await asyncio.gather(*futures, return_exceptions=True)
