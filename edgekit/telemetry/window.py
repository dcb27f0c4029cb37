"""The figures of one window of time, from the engine's counters and the requests that ended. Pure."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from edgekit.engine.base import EngineStats, RequestRecord
from edgekit.telemetry.messages import KvCells, Prefill, Quantiles, Requests, TokenRate

__all__ = ["PowerSample", "WindowFigures", "mean_power_w", "summarize_window", "tokens_per_joule"]


@dataclass(frozen=True, slots=True)
class PowerSample:
    """Total watts at a moment, in seconds of a monotonic clock."""

    at_s: float
    watts: float


@dataclass(frozen=True, slots=True)
class WindowFigures:
    """What the engine did in a window. See `Telemetry` for the meaning of the fields."""

    window_s: float
    decode: TokenRate
    prefill: Prefill
    busy_percent: float | None
    ttft_s: Quantiles
    inter_token_s: Quantiles
    requests: Requests
    kv_cells: KvCells | None

    @property
    def idle(self) -> bool:
        """Whether nothing happened in the window."""
        ended = self.requests.finished + self.requests.cancelled + self.requests.failed
        return not (self.decode.tokens or self.prefill.tokens or ended)


def summarize_window(
    before: EngineStats, after: EngineStats, records: Iterable[RequestRecord], *, window_s: float
) -> WindowFigures:
    """Figures of the window that began at `before` and ended at `after`, `window_s` seconds later.

    Args:
        records: the requests that ended in the window.
    """
    if _restarted(before, after):
        before = EngineStats()
    decode_s = after.decode_s - before.decode_s
    prefill_s = after.prefill_s - before.prefill_s
    decode_tokens = after.decode_tokens - before.decode_tokens
    prefill_tokens = after.prefill_tokens - before.prefill_tokens
    # A request that was cancelled before its first token has no time to first token.
    answered = [record for record in records if record.completion_tokens > 0]
    return WindowFigures(
        window_s=round(window_s, 3),
        decode=TokenRate(
            tokens=decode_tokens,
            tokens_per_s=_rate(decode_tokens, decode_s),
            tokens_total=after.decode_tokens,
            tokens_per_s_total=_rate(after.decode_tokens, after.decode_s),
        ),
        prefill=Prefill(
            tokens=prefill_tokens,
            tokens_per_s=_rate(prefill_tokens, prefill_s),
            tokens_total=after.prefill_tokens,
            tokens_per_s_total=_rate(after.prefill_tokens, after.prefill_s),
            cached_tokens=after.cached_tokens - before.cached_tokens,
            cached_tokens_total=after.cached_tokens,
        ),
        # A step that began before the window counts where it ends: the share can come out above 100.
        busy_percent=(
            round(min(100.0, 100 * max(0.0, decode_s + prefill_s) / window_s), 1) if window_s > 0 else None
        ),
        ttft_s=_quantiles([record.ttft_s for record in answered]),
        inter_token_s=_quantiles(
            [
                record.decode_s / (record.completion_tokens - 1)
                for record in answered
                if record.completion_tokens > 1
            ]
        ),
        requests=Requests(
            active=after.requests_active,
            queued=after.requests_queued,
            finished=after.requests_finished - before.requests_finished,
            cancelled=after.requests_cancelled - before.requests_cancelled,
            failed=after.requests_failed - before.requests_failed,
            finished_total=after.requests_finished,
            cancelled_total=after.requests_cancelled,
            failed_total=after.requests_failed,
        ),
        kv_cells=(
            KvCells(used=after.kv_cells_used, total=after.kv_cells_total)
            if after.kv_cells_total > 0
            else None
        ),
    )


def mean_power_w(samples: Sequence[PowerSample]) -> float | None:
    """Mean watts over the time from the first sample to the last (trapezoids). None without samples."""
    if not samples:
        return None
    length_s = samples[-1].at_s - samples[0].at_s
    if length_s <= 0:
        return samples[-1].watts
    joules = sum(
        (later.at_s - earlier.at_s) * (earlier.watts + later.watts) / 2
        for earlier, later in itertools.pairwise(samples)
    )
    return round(joules / length_s, 3)


def tokens_per_joule(tokens: int, power_w: float | None, window_s: float) -> float | None:
    """Tokens by energy. None when the power is not known, or nothing was decoded."""
    if power_w is None or power_w <= 0 or window_s <= 0 or tokens == 0:
        return None
    return round(tokens / (power_w * window_s), 4)


def _restarted(before: EngineStats, after: EngineStats) -> bool:
    return after.steps < before.steps or after.decode_tokens < before.decode_tokens


def _rate(tokens: int, seconds: float) -> float | None:
    return round(tokens / seconds, 2) if tokens > 0 and seconds > 0 else None


def _quantiles(values: list[float]) -> Quantiles:
    values.sort()
    return Quantiles(p50=_nearest_rank(values, 0.50), p95=_nearest_rank(values, 0.95))


def _nearest_rank(ordered: Sequence[float], quantile: float) -> float | None:
    if not ordered:
        return None
    return round(ordered[math.ceil(quantile * len(ordered)) - 1], 6)
