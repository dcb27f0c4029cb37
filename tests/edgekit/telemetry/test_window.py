from __future__ import annotations

from dataclasses import replace

import pytest

from edgekit.engine.base import EngineStats, RequestRecord
from edgekit.telemetry.messages import KvCells, Quantiles
from edgekit.telemetry.window import PowerSample, mean_power_w, summarize_window, tokens_per_joule

BEFORE = EngineStats(
    uptime_s=100, prefill_tokens=1000, prefill_s=5, cached_tokens=50, decode_tokens=2000, decode_s=20,
    steps=900, requests_finished=10, requests_cancelled=2, requests_failed=1,
)  # fmt: skip


def answer(
    *, queue_s: float = 0.0, prefill_s: float = 0.1, tokens: int = 11, decode_s: float = 1.0
) -> RequestRecord:
    return RequestRecord(
        prompt_tokens=20, cached_tokens=0, completion_tokens=tokens, queue_s=queue_s, prefill_s=prefill_s,
        decode_s=decode_s,
    )  # fmt: skip


def test_rates__are_tokens_by_the_time_spent_on_them() -> None:
    after = replace(
        BEFORE, prefill_tokens=1300, prefill_s=6, cached_tokens=90, decode_tokens=2500, decode_s=24,
        steps=1400, requests_finished=13, requests_failed=2, requests_active=3, requests_queued=4,
        kv_cells_used=70, kv_cells_total=4096,
    )  # fmt: skip
    figures = summarize_window(BEFORE, after, [], window_s=10)
    assert (figures.decode.tokens, figures.decode.tokens_per_s) == (500, 125.0)
    assert (figures.decode.tokens_total, figures.decode.tokens_per_s_total) == (2500, 104.17)
    assert (figures.prefill.tokens, figures.prefill.tokens_per_s) == (300, 300.0)
    assert (figures.prefill.cached_tokens, figures.prefill.cached_tokens_total) == (40, 90)
    assert figures.busy_percent == 50.0
    requests = figures.requests
    assert (requests.active, requests.queued) == (3, 4)
    assert (requests.finished, requests.cancelled, requests.failed) == (3, 0, 1)
    assert (requests.finished_total, requests.cancelled_total, requests.failed_total) == (13, 2, 2)
    assert figures.kv_cells == KvCells(used=70, total=4096)
    assert not figures.idle


def test_idle_window__has_no_rates_rather_than_zeros() -> None:
    figures = summarize_window(BEFORE, BEFORE, [], window_s=10)
    assert figures.decode.tokens == 0
    assert figures.decode.tokens_per_s is None
    assert figures.prefill.tokens_per_s is None
    assert figures.ttft_s == Quantiles(p50=None, p95=None)
    assert figures.inter_token_s == Quantiles(p50=None, p95=None)
    assert figures.busy_percent == 0.0
    assert figures.kv_cells is None
    assert figures.idle
    # What was decoded before still has its rate.
    assert figures.decode.tokens_per_s_total == 100.0


def test_ttft__counts_queueing_and_takes_nearest_ranks() -> None:
    records = [answer(queue_s=number / 100, prefill_s=0) for number in range(1, 101)]
    assert summarize_window(BEFORE, BEFORE, reversed(records), window_s=10).ttft_s == Quantiles(
        p50=0.5, p95=0.95
    )
    one = summarize_window(BEFORE, BEFORE, [answer(queue_s=0.2, prefill_s=0.3)], window_s=10)
    assert one.ttft_s == Quantiles(p50=0.5, p95=0.5)


def test_inter_token__is_the_mean_gap_of_a_request() -> None:
    records = [answer(tokens=11, decode_s=1.0), answer(tokens=1, decode_s=0.0)]
    assert summarize_window(BEFORE, BEFORE, records, window_s=10).inter_token_s == Quantiles(p50=0.1, p95=0.1)


def test_cancelled_before_the_first_token__has_no_ttft() -> None:
    figures = summarize_window(BEFORE, BEFORE, [answer(tokens=0, decode_s=0.0)], window_s=10)
    assert figures.ttft_s == Quantiles(p50=None, p95=None)


def test_engine_that_restarted__counts_from_zero() -> None:
    after = EngineStats(decode_tokens=50, decode_s=1, steps=50, requests_finished=1)
    figures = summarize_window(BEFORE, after, [], window_s=10)
    assert (figures.decode.tokens, figures.decode.tokens_per_s) == (50, 50.0)
    assert figures.requests.finished == 1


def test_busy__never_above_100() -> None:
    after = replace(BEFORE, decode_s=BEFORE.decode_s + 10.2, decode_tokens=2001)
    assert summarize_window(BEFORE, after, [], window_s=10).busy_percent == 100.0


@pytest.mark.parametrize(
    ("samples", "mean"),
    [
        ([], None),
        ([(0, 7.0)], 7.0),
        ([(0, 10.0), (10, 20.0)], 15.0),
        ([(0, 10.0), (9, 10.0), (10, 30.0)], 11.0),  # uneven times weigh by their length
        ([(5, 3.0), (5, 4.0)], 4.0),
    ],
)
def test_mean_power(samples: list[tuple[float, float]], mean: float | None) -> None:
    assert mean_power_w([PowerSample(at_s, watts) for at_s, watts in samples]) == mean


def test_tokens_per_joule() -> None:
    assert tokens_per_joule(600, 15.0, 10.0) == 4.0
    assert tokens_per_joule(0, 15.0, 10.0) is None
    assert tokens_per_joule(600, None, 10.0) is None
    assert tokens_per_joule(600, 0.0, 10.0) is None
