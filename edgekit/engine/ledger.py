"""The engine's own figures: counters of tokens, seconds and requests."""

from __future__ import annotations

import logging
from bisect import bisect_left
from collections.abc import Callable
from typing import Final

from edgekit.engine.base import EngineStats, FinishReason, GapCounts, RequestRecord

__all__ = ["Ledger"]

_GAP_BOUNDS_S: Final = (
    0.002,
    0.005,
    0.01,
    0.02,
    0.035,
    0.05,
    0.075,
    0.1,
    0.15,
    0.2,
    0.35,
    0.5,
    1.0,
    2.0,
    5.0,
)

log = logging.getLogger(__name__)

_SMOOTHING = 0.2
"""Weight of the newest request in the mean duration."""


class Ledger:
    """Counts what the scheduler does. Written by its thread, read by any."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._started_at = clock()
        self._prefill_tokens = 0
        self._prefill_s = 0.0
        self._cached_tokens = 0
        self._decode_tokens = 0
        self._decode_s = 0.0
        self._steps = 0
        self._finished = 0
        self._cancelled = 0
        self._mean_request_s: float | None = None
        self.failed = 0
        self.preemptions = 0
        self.refused = 0
        self._prefix_hits = 0
        self._prefix_misses = 0
        self._gaps = [0] * (len(_GAP_BOUNDS_S) + 1)
        self._gap_sum_s = 0.0
        self.observers: list[Callable[[RequestRecord], None]] = []

    def note_step(self, seconds: float, *, decoded: int, prefilled: int) -> None:
        """Count a step, its time split between decode and prefill by their tokens."""
        share = decoded / (decoded + prefilled)
        self._steps += 1
        self._decode_tokens += decoded
        self._prefill_tokens += prefilled
        self._decode_s += seconds * share
        self._prefill_s += seconds * (1 - share)

    def note_prefix(self, found: bool) -> None:
        """Count a request by whether the KV cache held a part of its prompt."""
        if found:
            self._prefix_hits += 1
        else:
            self._prefix_misses += 1

    def note_gap(self, seconds: float | None) -> None:
        """Count the time between two tokens of a stream; None, before its first, is not counted."""
        if seconds is not None:
            self._gaps[bisect_left(_GAP_BOUNDS_S, seconds)] += 1
            self._gap_sum_s += seconds

    def note_request(self, record: RequestRecord, reason: FinishReason) -> None:
        """Count a request that has ended, and tell the observers."""
        self._cached_tokens += record.cached_tokens
        if reason is FinishReason.CANCELLED:
            self._cancelled += 1
        else:
            self._finished += 1
            busy = record.prefill_s + record.decode_s
            mean = self._mean_request_s
            self._mean_request_s = busy if mean is None else mean + _SMOOTHING * (busy - mean)
        for observer in self.observers:
            try:
                observer(record)
            except Exception:
                log.exception("an observer of requests failed")

    def expected_wait_s(self, queued: int, streams: int) -> float:
        """Seconds until a request that comes now would start, by the mean of those before it."""
        return max(1.0, (self._mean_request_s or 1.0) * (queued + 1) / streams)

    def snapshot(self, *, active: int, queued: int, kv_cells_used: int, kv_cells_total: int) -> EngineStats:
        """All figures as they stand."""
        return EngineStats(
            uptime_s=self._clock() - self._started_at,
            prefill_tokens=self._prefill_tokens,
            prefill_s=self._prefill_s,
            cached_tokens=self._cached_tokens,
            decode_tokens=self._decode_tokens,
            decode_s=self._decode_s,
            steps=self._steps,
            preemptions=self.preemptions,
            requests_finished=self._finished,
            requests_cancelled=self._cancelled,
            requests_failed=self.failed,
            requests_refused=self.refused,
            prefix_hits=self._prefix_hits,
            prefix_misses=self._prefix_misses,
            gaps=GapCounts(_GAP_BOUNDS_S, tuple(self._gaps), self._gap_sum_s),
            requests_active=active,
            requests_queued=queued,
            kv_cells_used=kv_cells_used,
            kv_cells_total=kv_cells_total,
        )
