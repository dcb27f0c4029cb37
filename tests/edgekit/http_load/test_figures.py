from __future__ import annotations

import pytest

from edgekit.http_load.exchange import Answer
from edgekit.http_load.figures import Percentiles, summarize


def answer(due_s: float, events_s: list[float], tokens: int, **more: object) -> Answer:
    made = Answer(due_s=due_s, sent_s=due_s + 0.001, ended_s=events_s[-1] if events_s else due_s)
    made.event_s, made.tokens, made.prompt_tokens = events_s, tokens, 10
    for name, value in more.items():
        setattr(made, name, value)
    return made


def test_percentiles__between_two_values_by_the_straight_line() -> None:
    found = Percentiles.of(value / 1000 for value in range(101))
    assert found == Percentiles(
        101, pytest.approx(50), pytest.approx(95), pytest.approx(99), pytest.approx(100)
    )
    assert Percentiles.of([0.002]) == Percentiles(1, 2, 2, 2, 2)
    assert Percentiles.of([]) is None


def test_summarize__gaps_are_of_events_and_time_per_token_is_of_tokens() -> None:
    """Two tokens an event: an event each 20 ms is a token each 10 ms."""
    answers = [answer(0.0, [0.1, 0.12, 0.14, 0.16], 7), answer(0.0, [0.2, 0.24, 0.28], 5)]
    figures = summarize(
        answers, load="closed", streams=2, rate_per_s=None, begun_s=0.0, ended_s=0.5, client_cpu_s=0.05
    )
    assert figures.event_gap_ms is not None
    assert figures.tpot_ms is not None
    assert figures.ttft_ms is not None
    assert figures.latency_ms is not None
    assert (figures.event_gap_ms.count, figures.event_gap_ms.max) == (5, pytest.approx(40))
    assert figures.event_gap_ms.p50 == pytest.approx(20)
    assert figures.tpot_ms.max == pytest.approx(20)
    assert figures.tpot_ms.p50 == pytest.approx(15)
    assert figures.decode_tokens_per_s == pytest.approx((100 + 50) / 2)
    assert figures.tokens_per_event == pytest.approx(12 / 7)
    assert figures.tokens_per_s == pytest.approx(24)
    assert figures.ttft_ms.p50 == pytest.approx(150)
    assert figures.latency_ms.max == pytest.approx(280)
    assert (figures.answer_tokens, figures.prompt_tokens, figures.cached_tokens) == (6, 10, None)
    assert figures.client_cpu_percent == pytest.approx(10)
    assert (figures.late_starts, figures.latest_ms) == (None, None)


def test_summarize__requests_without_an_answer_are_in_no_time() -> None:
    answers = [
        answer(0.0, [0.1, 0.2], 2),
        answer(0.0, [], 0, error="429"),
        answer(0.0, [], 0, error="429"),
        answer(0.0, [0.9], 0, error="cut off", sent_s=0.5),
    ]
    figures = summarize(answers, load="open", streams=None, rate_per_s=4.0, begun_s=0.0, ended_s=1.0)
    assert (figures.requests, figures.answered) == (4, 1)
    assert figures.errors == {"429": 2, "cut off": 1}
    assert figures.ttft_ms == Percentiles(1, 100, 100, 100, 100)
    assert figures.late_starts == 1
    assert figures.latest_ms == pytest.approx(500)


def test_summarize__nothing_seen_is_none_not_zero() -> None:
    figures = summarize(
        [answer(0.0, [0.1], 1)], load="closed", streams=1, rate_per_s=None, begun_s=0.0, ended_s=1.0
    )
    assert figures.event_gap_ms is None
    assert figures.tpot_ms is None
    assert figures.decode_tokens_per_s is None
    assert figures.background_streams_gap_ms is None
