"""The server's figures in Prometheus's text format.

Names follow llama-server (`llamacpp:*`) where it has the same figure, so that its dashboards work; the rest
is `edgekit_*` in base units.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping

from prometheus_client import CollectorRegistry, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from edgekit.engine.base import Engine, RequestRecord
from edgekit.server.model import ModelSlot

__all__ = ["CONTENT_TYPE", "Metrics"]

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_TTFT_BUCKETS_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_TOKEN_BUCKETS_S = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2)


class Metrics:
    """Collects from the engine when asked, and counts requests as they end.

    Args:
        slot: the model to report on; before it is ready only `edgekit_ready` is there.
    """

    def __init__(self, slot: ModelSlot) -> None:
        self._registry = CollectorRegistry()
        self._collector = _EngineCollector(slot)
        self._registry.register(self._collector)
        self._ttft = Histogram(
            "edgekit_ttft_seconds",
            "Time to first token, from a request's arrival.",
            buckets=_TTFT_BUCKETS_S,
            registry=self._registry,
        )
        self._inter_token = Histogram(
            "edgekit_inter_token_seconds",
            "Mean time between a request's tokens.",
            buckets=_TOKEN_BUCKETS_S,
            registry=self._registry,
        )
        self._lock = threading.Lock()

    def watch(self, engine: Engine, info: Mapping[str, str]) -> None:
        """Count the engine's requests from now on.

        Args:
            engine: the slot's.
            info: labels of `edgekit_bundle_info`, e.g. the release and the profile.
        """
        self._collector.info = dict(info)
        engine.observe(self._note)

    def _note(self, record: RequestRecord) -> None:
        if record.completion_tokens:
            self._ttft.observe(record.ttft_s)
        if record.completion_tokens > 1:
            self._inter_token.observe(record.decode_s / (record.completion_tokens - 1))

    def render(self) -> bytes:
        """The whole page."""
        with self._lock:
            return generate_latest(self._registry)


class _EngineCollector(Collector):
    def __init__(self, slot: ModelSlot) -> None:
        self._slot = slot
        self.info: dict[str, str] = {}

    def collect(self) -> Iterator[Metric]:
        model = self._slot.model
        yield _gauge("edgekit_ready", "1 when the model answers.", float(model is not None))
        if self.info:
            info = GaugeMetricFamily("edgekit_bundle_info", "What is served.", labels=list(self.info))
            info.add_metric(list(self.info.values()), 1)
            yield info
        if model is None:
            return
        stats = model.engine.stats()
        yield _counter("llamacpp:prompt_tokens", "Prompt tokens computed.", stats.prefill_tokens)
        yield _counter("llamacpp:prompt_seconds", "Prefill time in seconds.", stats.prefill_s)
        yield _counter("llamacpp:tokens_predicted", "Tokens generated.", stats.decode_tokens)
        yield _counter("llamacpp:tokens_predicted_seconds", "Decode time in seconds.", stats.decode_s)
        yield _counter("llamacpp:n_decode", "Calls of llama_decode.", stats.steps)
        yield _gauge(
            "llamacpp:prompt_tokens_seconds",
            "Mean prefill throughput in tokens/s.",
            stats.prefill_tokens / stats.prefill_s if stats.prefill_s else 0.0,
        )
        yield _gauge(
            "llamacpp:predicted_tokens_seconds",
            "Mean decode throughput in tokens/s.",
            stats.decode_tokens / stats.decode_s if stats.decode_s else 0.0,
        )
        yield _gauge("llamacpp:requests_processing", "Requests being worked on.", stats.requests_active)
        yield _gauge("llamacpp:requests_deferred", "Requests that wait.", stats.requests_queued)
        yield _gauge("edgekit_kv_cells_used", "KV cache cells in use.", stats.kv_cells_used)
        yield _gauge("edgekit_kv_cells", "KV cache cells in all.", stats.kv_cells_total)
        yield _counter("edgekit_prompt_tokens_cached", "Prompt tokens found cached.", stats.cached_tokens)
        yield _counter("edgekit_preemptions", "Streams that gave way for want of cells.", stats.preemptions)
        requests = CounterMetricFamily("edgekit_requests", "Requests that have ended.", labels=["outcome"])
        requests.add_metric(["finished"], stats.requests_finished)
        requests.add_metric(["cancelled"], stats.requests_cancelled)
        requests.add_metric(["failed"], stats.requests_failed)
        yield requests


def _counter(name: str, help_text: str, value: float) -> Metric:
    return CounterMetricFamily(name, help_text, value=value)


def _gauge(name: str, help_text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, help_text, value=value)
