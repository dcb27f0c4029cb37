"""What /metrics shows, read by Prometheus's own tools: its parser, and promtool on a live server's page."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from live_server import http, load_student, running_server, wait_until_ready
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from edgekit.engine.base import EngineStats, GapCounts, RequestRecord
from edgekit.errors import EdgekitError, EngineError
from edgekit.server.metrics import Metrics
from edgekit.server.model import LoadedModel

LLAMA_SERVER_NAMES = {
    "llamacpp:prompt_tokens_total",
    "llamacpp:prompt_tokens_cached_total",
    "llamacpp:prompt_seconds_total",
    "llamacpp:prompt_tokens_seconds",
    "llamacpp:tokens_predicted_total",
    "llamacpp:tokens_predicted_seconds_total",
    "llamacpp:predicted_tokens_seconds",
    "llamacpp:requests_processing",
    "llamacpp:requests_deferred",
    "llamacpp:n_tokens_max",
    "llamacpp:n_decode_total",
    "llamacpp:n_busy_slots_per_decode",
}
"""All that llama-server has of the release that llama-cpp-python 0.3.36 carries, but for `spec_decode_*`."""

RECORD = RequestRecord(
    prompt_tokens=100, cached_tokens=60, completion_tokens=20, queue_s=0.2, prefill_s=0.1, decode_s=1.5
)


@dataclass
class FixedEngine:
    """An engine that has done what the test says."""

    figures: EngineStats = field(default_factory=EngineStats)
    failure: EdgekitError | None = None
    context_tokens: int = 512
    observers: list[Callable[[RequestRecord], None]] = field(default_factory=list)

    def stats(self) -> EngineStats:
        return self.figures

    def observe(self, observer: Callable[[RequestRecord], None]) -> None:
        self.observers.append(observer)


@dataclass
class FixedSlot:
    model: Any = None
    failure: EdgekitError | None = None


@dataclass
class FixedModel:
    engine: FixedEngine


def families(page: bytes | str) -> dict[str, Metric]:
    text = page.decode() if isinstance(page, bytes) else page
    return {family.name: family for family in text_string_to_metric_families(text)}


def samples(page: bytes | str) -> dict[str, float]:
    """Series without labels, and buckets by their bound."""
    found = {}
    for family in families(page).values():
        for sample in family.samples:
            bound = sample.labels.get("le")
            found[sample.name if bound is None else f"{sample.name} {bound}"] = sample.value
    return found


def watched(engine: FixedEngine) -> Metrics:
    metrics = Metrics(FixedSlot(FixedModel(engine)))  # type: ignore[arg-type]
    metrics.watch(engine, {"release": "7"})  # type: ignore[arg-type]
    return metrics


def promtool(page: str) -> list[str]:
    """promtool's complaints. Its exit status is 3 when there are some, 1 when it cannot read the page."""
    result = subprocess.run(
        ["promtool", "check", "metrics"], input=page, capture_output=True, text=True, check=False
    )
    complaints = (result.stdout + result.stderr).splitlines()
    assert result.returncode == (3 if complaints else 0), complaints
    return complaints


def test_live_page__promtool_has_nothing_to_say_but_llama_servers_colon(server_url: str) -> None:
    body = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4}
    http.post(f"{server_url}/v1/chat/completions", json=body).raise_for_status()
    page = http.get(f"{server_url}/metrics").text
    assert promtool("".join(line for line in page.splitlines(True) if "llamacpp:" not in line)) == []
    assert sorted(promtool(page)) == sorted(
        f"{name} metric names should not contain ':'" for name in LLAMA_SERVER_NAMES
    )


def test_promtool__is_heard_when_it_complains() -> None:
    assert promtool("# HELP edgekit_x X.\n# TYPE edgekit_x counter\nedgekit_x 1\n") != []


def test_live_page__names_are_llama_servers(server_url: str) -> None:
    page = http.get(f"{server_url}/metrics").text
    shown = {line.split()[2] for line in page.splitlines() if line.startswith("# TYPE llamacpp:")}
    assert shown == LLAMA_SERVER_NAMES


def test_live_page__tells_of_the_process(server_url: str) -> None:
    page = samples(http.get(f"{server_url}/metrics").text)
    assert page["process_resident_memory_bytes"] > 2**20
    assert page["process_cpu_seconds_total"] > 0
    assert page["process_open_fds"] > 0
    assert page["process_start_time_seconds"] > 1.7e9
    assert page["edgekit_build_info"] == 1


def test_before_the_model_is_ready__says_so_and_is_clean(student: Path) -> None:
    may_load = threading.Event()

    def load() -> LoadedModel:
        assert may_load.wait(30)
        return load_student(student)

    with running_server(load) as url:
        page = http.get(f"{url}/metrics").text
        may_load.set()
        wait_until_ready(url)
        assert samples(http.get(f"{url}/metrics").text)["edgekit_ready"] == 1
    assert samples(page)["edgekit_ready"] == 0
    assert promtool(page) == []


def test_ready__not_when_the_engine_has_failed() -> None:
    slot = FixedSlot(FixedModel(FixedEngine()), failure=EngineError("out of luck"))
    assert samples(Metrics(slot).render())["edgekit_ready"] == 0  # type: ignore[arg-type]


def test_requests__are_counted_by_size() -> None:
    engine = FixedEngine()
    metrics = watched(engine)
    engine.observers[0](RECORD)
    engine.observers[0](RequestRecord(3000, 0, 5, queue_s=0, prefill_s=4, decode_s=1))
    page = samples(metrics.render())
    assert page["edgekit_ttft_seconds_bucket 0.25"] == 0
    assert page["edgekit_ttft_seconds_bucket 0.5"] == 1  # 0.2 + 0.1
    assert page["edgekit_ttft_seconds_bucket +Inf"] == page["edgekit_ttft_seconds_count"] == 2
    assert page["edgekit_ttft_seconds_sum"] == pytest.approx(4.3)
    assert page["edgekit_queue_seconds_sum"] == pytest.approx(0.2)
    assert page["edgekit_request_seconds_sum"] == pytest.approx(1.8 + 5)
    assert page["edgekit_request_prompt_tokens_bucket 128.0"] == 1
    assert page["edgekit_request_prompt_tokens_sum"] == 3100
    assert page["edgekit_request_answer_tokens_sum"] == 25
    assert page["llamacpp:n_tokens_max"] == 3005


def test_requests__a_bound_counts_what_it_equals() -> None:
    engine = FixedEngine()
    metrics = watched(engine)
    engine.observers[0](RequestRecord(16, 0, 1, queue_s=0, prefill_s=0.5, decode_s=0))
    page = samples(metrics.render())
    assert page["edgekit_ttft_seconds_bucket 0.5"] == 1
    assert page["edgekit_ttft_seconds_bucket 0.25"] == 0
    assert page["edgekit_request_prompt_tokens_bucket 16.0"] == 1


def test_requests__an_embedding_has_no_first_token() -> None:
    engine = FixedEngine()
    metrics = watched(engine)
    engine.observers[0](RequestRecord(10, 0, 0, queue_s=0.1, prefill_s=0.1, decode_s=0))
    page = samples(metrics.render())
    assert page["edgekit_ttft_seconds_count"] == page["edgekit_request_answer_tokens_count"] == 0
    assert page["edgekit_request_prompt_tokens_count"] == 1


def test_gaps__are_a_histogram_of_seconds() -> None:
    gaps = GapCounts(bounds_s=(0.01, 0.1), counts=(5, 3, 2), sum_s=1.5)
    page = samples(watched(FixedEngine(EngineStats(gaps=gaps))).render())
    assert page["edgekit_inter_token_seconds_bucket 0.01"] == 5
    assert page["edgekit_inter_token_seconds_bucket 0.1"] == 8
    assert page["edgekit_inter_token_seconds_count"] == 10
    assert page["edgekit_inter_token_seconds_sum"] == 1.5


def test_engine_figures__each_under_its_name() -> None:
    figures = EngineStats(
        prefill_tokens=1000,
        prefill_s=4.0,
        cached_tokens=300,
        decode_tokens=90,
        decode_s=3.0,
        steps=45,
        preemptions=1,
        requests_finished=6,
        requests_cancelled=5,
        requests_failed=4,
        requests_refused=3,
        prefix_hits=8,
        prefix_misses=2,
        requests_active=11,
        requests_queued=12,
        kv_cells_used=100,
        kv_cells_total=512,
    )
    page = watched(FixedEngine(figures)).render()
    found = samples(page)
    assert found["llamacpp:prompt_tokens_total"] == 1000
    assert found["llamacpp:prompt_tokens_cached_total"] == 300
    assert found["llamacpp:prompt_tokens_seconds"] == 250
    assert found["llamacpp:tokens_predicted_total"] == 90
    assert found["llamacpp:predicted_tokens_seconds"] == 30
    assert found["llamacpp:n_decode_total"] == 45
    assert found["llamacpp:n_busy_slots_per_decode"] == 2
    assert found["llamacpp:requests_processing"] == 11
    assert found["llamacpp:requests_deferred"] == 12
    assert found["edgekit_kv_cells_used"] == 100
    assert found["edgekit_kv_cells"] == found["edgekit_context_tokens"] == 512
    assert found["edgekit_prefix_hits_total"] == 8
    assert found["edgekit_prefix_misses_total"] == 2
    assert found["edgekit_preemptions_total"] == 1
    outcomes = {
        sample.labels["outcome"]: sample.value for sample in families(page)["edgekit_requests"].samples
    }
    assert outcomes == {"finished": 6, "cancelled": 5, "failed": 4, "refused": 3}


def test_bundle_info__carries_its_labels() -> None:
    (sample,) = families(watched(FixedEngine()).render())["edgekit_bundle_info"].samples
    assert sample.labels == {"release": "7"}
