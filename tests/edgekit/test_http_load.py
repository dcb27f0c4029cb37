from __future__ import annotations

import pytest

from edgekit.errors import EdgekitError, UsageError
from edgekit.http_load import Load, compare, measure


def test_measure__counts_what_the_server_generates(server_url: str) -> None:
    figures = measure(
        server_url, Load(streams=3, requests_per_stream=2, max_tokens=8, logit_bias={"2": -100.0})
    )
    assert figures.requests == 6
    assert figures.tokens == 6 * 8
    assert 0 < figures.ttft_p50_ms <= figures.ttft_p95_ms
    assert 0 < figures.gap_p50_ms <= figures.gap_p95_ms <= figures.gap_p99_ms
    assert figures.decode_tokens_per_s > 0
    assert "tok/s 1.00" in compare(figures, figures)


def test_measure__server_that_refuses_is_an_error(server_url: str) -> None:
    with pytest.raises(EdgekitError, match="answers 404"):
        measure(server_url, Load(model="gpt-4o"))


def test_measure__nobody_there() -> None:
    with pytest.raises(EdgekitError, match="refused"):
        measure("http://127.0.0.1:9", Load())


def test_measure__not_a_url() -> None:
    with pytest.raises(UsageError, match="not an http"):
        measure("localhost:8080", Load())
