from __future__ import annotations

from dataclasses import replace

import pytest

from edgekit.http_load import Figures, Percentiles, Ratio, ratios
from edgekit.http_load.exchange import Answer
from edgekit.http_load.figures import summarize
from edgekit.http_load.rounds import median_of


def figures(tokens_per_s: float, ttft_ms: float | None) -> Figures:
    empty = summarize([Answer(0.0, 0.0)], load="closed", streams=1, rate_per_s=None, begun_s=0.0, ended_s=1.0)
    times = None if ttft_ms is None else Percentiles(1, ttft_ms, ttft_ms, ttft_ms, ttft_ms)
    return replace(empty, tokens_per_s=tokens_per_s, ttft_ms=times)


def test_ratios__round_by_round_then_the_median() -> None:
    ours = [figures(100, 10), figures(50, 10), figures(90, 40)]
    theirs = [figures(50, 20), figures(50, 10), figures(30, 10)]
    found = ratios(ours, theirs)
    assert found["tokens_per_s"] == Ratio(2.0, 1.0, 3.0)
    assert found["ttft_p50"] == Ratio(1.0, 0.5, 4.0)


def test_ratios__a_figure_that_a_round_lacks_is_left_out() -> None:
    found = ratios([figures(1, None), figures(1, 5)], [figures(1, 5), figures(1, 5)])
    assert set(found) == {"tokens_per_s"}


def test_median_of() -> None:
    assert median_of([figures(1, 5), figures(7, 9), figures(3, 5)], "tokens_per_s") == 3
    assert median_of([figures(1, None), figures(7, 9)], "ttft_p50") is None
    assert median_of([figures(1, 2), figures(7, 9)], "ttft_p50") == pytest.approx(5.5)
