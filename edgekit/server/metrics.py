"""The server's figures in Prometheus's text format.

Names follow llama-server (`llamacpp:*`, the table in its README) where it has the same figure, so that its
dashboards work; the rest is `edgekit_*` in base units, and what Prometheus's own client tells of a process.

`promtool check metrics` has nothing to say about ours. About llama-server's it says "metric names should not
contain ':'", here as there: Prometheus keeps the colon for recording rules. Without it they were of no use.
"""

from __future__ import annotations

import platform
import threading
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Final

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from edgekit import __version__
from edgekit.engine.base import Engine, EngineStats, RequestRecord
from edgekit.server.model import LoadedModel, ModelSlot

__all__ = ["CONTENT_TYPE", "Metrics"]

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_TTFT_BUCKETS_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_QUEUE_BUCKETS_S = (0.001, 0.01, 0.1, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_DURATION_BUCKETS_S = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
_TOKEN_BUCKETS = tuple(2**power for power in range(4, 18))


class Metrics:
    """Collects from the engine when asked, and counts requests as they end.

    Args:
        slot: the model to report on; before it is ready there are `edgekit_ready` and the process's figures.
    """

    def __init__(self, slot: ModelSlot) -> None:
        self._registry = CollectorRegistry()
        self._requests = _RequestCollector()
        self._collector = _EngineCollector(slot, self._requests)
        self._registry.register(self._collector)
        self._registry.register(self._requests)
        ProcessCollector(registry=self._registry)

    def watch(self, engine: Engine, info: Mapping[str, str]) -> None:
        """Count the engine's requests from now on.

        Args:
            engine: the slot's.
            info: labels of `edgekit_bundle_info`, e.g. the release and the profile.
        """
        self._collector.bundle_info = dict(info)
        engine.observe(self._requests.note)

    def render(self) -> bytes:
        """The whole page."""
        return generate_latest(self._registry)


class _Tally:
    """Counts values by size: a Prometheus histogram without the series that its client adds to each."""

    def __init__(self, name: str, help_text: str, bounds: Sequence[float]) -> None:
        self._name = name
        self._help = help_text
        self._bounds = tuple(bounds)
        self._counts = [0] * (len(self._bounds) + 1)
        self._sum = 0.0

    def add(self, value: float) -> None:
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def metric(self) -> Metric:
        return _histogram(self._name, self._help, self._bounds, self._counts, self._sum)


class _RequestCollector(Collector):
    """What requests took, as they ended. Noted on the engine's thread, collected on another."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.longest_tokens = 0
        self._ttft = _Tally(
            "edgekit_ttft_seconds", "Time to first token, from a request's arrival.", _TTFT_BUCKETS_S
        )
        self._queue = _Tally(
            "edgekit_queue_seconds", "From a request's arrival to the first step for it.", _QUEUE_BUCKETS_S
        )
        self._duration = _Tally(
            "edgekit_request_seconds", "From a request's arrival to its last token.", _DURATION_BUCKETS_S
        )
        self._prompt = _Tally(
            "edgekit_request_prompt_tokens", "Length of prompts, cached tokens too.", _TOKEN_BUCKETS
        )
        self._answer = _Tally("edgekit_request_answer_tokens", "Length of answers.", _TOKEN_BUCKETS)

    def note(self, record: RequestRecord) -> None:
        with self._lock:
            self.longest_tokens = max(self.longest_tokens, record.prompt_tokens + record.completion_tokens)
            self._queue.add(record.queue_s)
            self._duration.add(record.ttft_s + record.decode_s)
            self._prompt.add(record.prompt_tokens)
            # None for embeddings, and for what was cancelled before its first token.
            if record.completion_tokens:
                self._ttft.add(record.ttft_s)
                self._answer.add(record.completion_tokens)

    def collect(self) -> Iterator[Metric]:
        with self._lock:
            tallies = (self._ttft, self._queue, self._duration, self._prompt, self._answer)
            metrics = [tally.metric() for tally in tallies]
        return iter(metrics)


class _EngineCollector(Collector):
    """What the engine counts itself, and what is served."""

    _BUILD: Final = {"version": __version__, "python": platform.python_version()}

    def __init__(self, slot: ModelSlot, requests: _RequestCollector) -> None:
        self._slot = slot
        self._requests = requests
        self.bundle_info: dict[str, str] = {}

    def collect(self) -> Iterator[Metric]:
        model = self._slot.model
        ready = model is not None and self._slot.failure is None
        yield _gauge("edgekit_ready", "1 when the model answers.", float(ready))
        yield InfoMetricFamily("edgekit_build", "What serves.", value=self._BUILD)
        if self.bundle_info:
            yield InfoMetricFamily("edgekit_bundle", "What is served.", value=self.bundle_info)
        if model is not None:
            stats = model.engine.stats()
            yield from _as_llama_server(stats, self._requests.longest_tokens)
            yield from _own(stats, model)


def _as_llama_server(stats: EngineStats, longest_tokens: int) -> Iterator[Metric]:
    """The figures that llama-server has too, under its names. Those of drafts are left out: there are none.

    Reference: tools/server/README.md and `server_task_result_metrics::to_metrics` of llama.cpp.
    """
    yield _counter("llamacpp:prompt_tokens", "Prompt tokens computed.", stats.prefill_tokens)
    yield _counter("llamacpp:prompt_tokens_cached", "Prompt tokens found cached.", stats.cached_tokens)
    yield _counter("llamacpp:prompt_seconds", "Prefill time in seconds.", stats.prefill_s)
    yield _counter("llamacpp:tokens_predicted", "Tokens generated.", stats.decode_tokens)
    yield _counter("llamacpp:tokens_predicted_seconds", "Decode time in seconds.", stats.decode_s)
    yield _counter("llamacpp:n_decode", "Steps: calls that compute a batch.", stats.steps)
    # llama-server calls it a counter, though it is none. PromQL does not mind.
    yield _gauge("llamacpp:n_tokens_max", "Longest sequence so far, prompt and answer.", longest_tokens)
    yield _gauge(
        "llamacpp:prompt_tokens_seconds",
        "Mean prefill throughput in tokens/s since the start (llama-server: since the last scrape).",
        stats.prefill_tokens / stats.prefill_s if stats.prefill_s else 0.0,
    )
    yield _gauge(
        "llamacpp:predicted_tokens_seconds",
        "Mean decode throughput in tokens/s since the start (llama-server: since the last scrape).",
        stats.decode_tokens / stats.decode_s if stats.decode_s else 0.0,
    )
    yield _gauge("llamacpp:requests_processing", "Requests being worked on.", stats.requests_active)
    yield _gauge("llamacpp:requests_deferred", "Requests that wait.", stats.requests_queued)
    yield _gauge(
        "llamacpp:n_busy_slots_per_decode",
        "Mean number of streams that a step decodes for.",
        stats.decode_tokens / stats.steps if stats.steps else 0.0,
    )


def _own(stats: EngineStats, model: LoadedModel) -> Iterator[Metric]:
    yield _gauge("edgekit_context_tokens", "What one request may use.", model.engine.context_tokens)
    yield _gauge("edgekit_kv_cells_used", "KV cache cells in use.", stats.kv_cells_used)
    yield _gauge("edgekit_kv_cells", "KV cache cells in all.", stats.kv_cells_total)
    yield _counter("edgekit_prefix_hits", "Requests whose prompt was cached in part.", stats.prefix_hits)
    yield _counter("edgekit_prefix_misses", "Requests with nothing cached.", stats.prefix_misses)
    yield _counter("edgekit_preemptions", "Streams that gave way for want of cells.", stats.preemptions)
    requests = CounterMetricFamily("edgekit_requests", "Requests by their end.", labels=["outcome"])
    requests.add_metric(["finished"], stats.requests_finished)
    requests.add_metric(["cancelled"], stats.requests_cancelled)
    requests.add_metric(["failed"], stats.requests_failed)
    requests.add_metric(["refused"], stats.requests_refused)
    yield requests
    if stats.gaps.bounds_s:
        yield _histogram(
            "edgekit_inter_token_seconds",
            "From one token of a stream to its next.",
            stats.gaps.bounds_s,
            stats.gaps.counts,
            stats.gaps.sum_s,
        )


def _counter(name: str, help_text: str, value: float) -> Metric:
    return CounterMetricFamily(name, help_text, value=value)


def _gauge(name: str, help_text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, help_text, value=value)


def _histogram(
    name: str, help_text: str, bounds: Sequence[float], counts: Sequence[int], total: float
) -> Metric:
    """A histogram of `counts` between `bounds`, the last of them above all bounds."""
    labels = [*(str(float(bound)) for bound in bounds), "+Inf"]
    buckets = [(label, float(count)) for label, count in zip(labels, accumulate(counts), strict=True)]
    return HistogramMetricFamily(name, help_text, buckets=buckets, sum_value=total)
