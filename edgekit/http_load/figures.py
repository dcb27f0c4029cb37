"""What a load saw, in figures."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final, Literal

from edgekit.http_load.exchange import Answer

__all__ = ["Figures", "Percentiles", "summarize"]

_LATE_S: Final = 0.010
"""A request sent so much after it was due counts as late: the client was too busy."""


@dataclass(frozen=True, slots=True)
class Percentiles:
    """Of times in milliseconds. Between two values, by the straight line."""

    count: int
    p50: float
    p95: float
    p99: float
    max: float

    @classmethod
    def of(cls, values_s: Iterable[float]) -> Percentiles | None:
        """Of times in seconds; None when there are none."""
        values = sorted(value * 1e3 for value in values_s)
        if not values:
            return None
        cuts = (
            statistics.quantiles(values, n=100, method="inclusive") if len(values) > 1 else [values[0]] * 99
        )
        return cls(len(values), cuts[49], cuts[94], cuts[98], values[-1])


@dataclass(frozen=True, slots=True)
class Figures:
    """What a load saw. Unknown is None.

    A server may put several tokens into one event. So there are two measures of how steadily they come:
    `event_gap_ms`, between one event of a stream and the next, which is what a reader sees, with
    `tokens_per_event` beside it; and `tpot_ms`, the mean time per token of each request after its first.
    """

    load: Literal["closed", "open"]
    streams: int | None
    """At once, in a closed loop."""
    rate_per_s: float | None
    """Of arrivals, in an open loop."""
    requests: int
    answered: int
    errors: dict[str, int]
    """Requests that got no whole answer, by status, or by what became of the connection."""
    seconds: float
    """From the first request to the last answer."""
    tokens: int
    tokens_per_s: float
    """All streams together, prefill included."""
    prompt_tokens: float | None
    """Mean over the requests."""
    cached_tokens: float | None
    """Of these, those that the server had computed before, as it says."""
    answer_tokens: float | None
    """Mean over the answers."""
    decode_tokens_per_s: float | None
    """Of one stream, from its first token to its last: the median over the requests."""
    ttft_ms: Percentiles | None
    """Time to first token, from when the request was due."""
    event_gap_ms: Percentiles | None
    tpot_ms: Percentiles | None
    latency_ms: Percentiles | None
    """From when the request was due to the answer's end."""
    tokens_per_event: float | None
    late_starts: int | None
    """In an open loop: requests that were sent more than 10 ms late. Many of them make the load another."""
    latest_ms: float | None
    background_streams_gap_ms: Percentiles | None = None
    """`event_gap_ms` of the streams that ran all the while, in an open loop with such."""
    client_cpu_percent: float = 0.0
    """Of one core, that the client took."""
    tokens_per_joule: float | None = None
    """Where the server's power is known: all that the board's meters cover, idle or not."""
    power_w: float | None = None
    """The mean."""


def summarize(
    answers: Sequence[Answer],
    *,
    load: Literal["closed", "open"],
    streams: int | None,
    rate_per_s: float | None,
    begun_s: float,
    ended_s: float,
    background: Sequence[Answer] = (),
    client_cpu_s: float = 0.0,
) -> Figures:
    """Figures of the answers to a load. `background` are those of streams that ran beside it."""
    good = [answer for answer in answers if answer.error is None]
    seconds = ended_s - begun_s
    tokens = sum(answer.tokens for answer in good)
    tpot = [answer.tpot_s for answer in good if answer.tpot_s is not None]
    late = [answer.sent_s - answer.due_s for answer in answers]
    events = sum(len(answer.event_s) for answer in good)
    return Figures(
        load=load,
        streams=streams,
        rate_per_s=rate_per_s,
        requests=len(answers),
        answered=len(good),
        errors=dict(Counter(answer.error for answer in answers if answer.error is not None)),
        seconds=seconds,
        tokens=tokens,
        tokens_per_s=tokens / seconds,
        prompt_tokens=_mean([answer.prompt_tokens for answer in good]),
        cached_tokens=_mean([answer.cached_tokens for answer in good]),
        answer_tokens=_mean([answer.tokens for answer in good]),
        decode_tokens_per_s=statistics.median(1 / value for value in tpot if value > 0)
        if any(tpot)
        else None,
        ttft_ms=Percentiles.of(answer.ttft_s for answer in good if answer.ttft_s is not None),
        event_gap_ms=Percentiles.of(_gaps(good)),
        tpot_ms=Percentiles.of(tpot),
        latency_ms=Percentiles.of(answer.ended_s - answer.due_s for answer in good),
        tokens_per_event=tokens / events if events else None,
        late_starts=sum(value > _LATE_S for value in late) if load == "open" else None,
        latest_ms=max(late) * 1e3 if load == "open" and late else None,
        background_streams_gap_ms=Percentiles.of(_gaps(background)) if background else None,
        client_cpu_percent=100 * client_cpu_s / seconds,
    )


def _gaps(answers: Iterable[Answer]) -> list[float]:
    return [later - earlier for answer in answers for earlier, later in pairwise(answer.event_s)]


def _mean(values: Sequence[int | None]) -> float | None:
    """None when one is not known: a mean of the others would be of other requests."""
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known and len(known) == len(values) else None
