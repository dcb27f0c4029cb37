from __future__ import annotations

import math
import socket
import statistics
from itertools import pairwise

import pytest
from timed_sse import Script, TimedServer

from edgekit.errors import EdgekitError, UsageError
from edgekit.http_load import Ask, ClosedLoop, Numbered, OpenLoop, Target, measure
from edgekit.http_load.loads import arrival_times_s


def test_arrival_times__are_a_poisson_process() -> None:
    times = arrival_times_s(50.0, 400.0, seed=3)
    gaps = [later - earlier for earlier, later in pairwise(times)]
    assert all(0 < time < 400 for time in times)
    # 20,000 expected; the standard deviation of a Poisson count is its root.
    assert abs(len(times) - 20_000) < 4 * math.sqrt(20_000)
    # An exponential's mean is its standard deviation, and 1 - 1/e of it lies below the mean.
    mean = statistics.fmean(gaps)
    assert mean == pytest.approx(1 / 50, rel=0.04)
    assert statistics.stdev(gaps) == pytest.approx(mean, rel=0.04)
    assert sum(gap < mean for gap in gaps) / len(gaps) == pytest.approx(1 - 1 / math.e, abs=0.015)
    # Memoryless: a gap says nothing of the next.
    assert abs(statistics.correlation(gaps[:-1], gaps[1:])) < 0.03


def test_arrival_times__same_seed_same_times() -> None:
    assert arrival_times_s(5, 20, seed=1) == arrival_times_s(5, 20, seed=1)
    assert arrival_times_s(5, 20, seed=1) != arrival_times_s(5, 20, seed=2)


def test_closed_loop__every_stream_asks_again_when_it_has_its_answer() -> None:
    with TimedServer(
        lambda number: Script(first_s=0.01, gap_s=0.005, events=4, tokens_per_event=2)
    ) as server:
        load = ClosedLoop(3, 2, Ask(max_tokens=8, first_number=100, logit_bias={"2": -100.0}, model="m"))
        measured = measure(Target.parse(server.url), load)
    figures = measured.figures
    assert (figures.requests, figures.answered, figures.tokens, figures.errors) == (6, 6, 48, {})
    assert figures.tokens_per_event == 2
    assert figures.answer_tokens == 8
    assert figures.ttft_ms is not None
    assert figures.event_gap_ms is not None
    assert figures.tpot_ms is not None
    assert figures.ttft_ms.p50 >= 10
    assert figures.event_gap_ms.count == 6 * 3
    assert figures.event_gap_ms.p50 >= 5
    # Three gaps for the seven tokens after the first.
    assert figures.tpot_ms.p50 >= 3 * 5 / 7
    assert sorted(chat["seed"] for chat in server.chats) == list(range(100, 106))
    assert len({chat["messages"][0]["content"] for chat in server.chats}) == 6
    assert all(chat["logit_bias"] == {"2": -100.0} and chat["model"] == "m" for chat in server.chats)


def test_closed_loop__a_request_that_fails_ends_it() -> None:
    with (
        TimedServer(lambda number: Script(status=429 if number == 3 else 200)) as server,
        pytest.raises(EdgekitError, match=r"answers 429: .*no: 429") as caught,
    ):
        measure(Target.parse(server.url), ClosedLoop(2, 50))
    assert "fewer streams" in str(caught.value.hint)
    assert len(server.chats) < 20


def test_open_loop__requests_come_whatever_the_server_does() -> None:
    """A server that answers one at a time, slower than they come: the queue is seen in full."""
    service_s = 0.05
    with TimedServer(lambda number: Script(first_s=service_s, events=1), serial=True) as server:
        load = OpenLoop(40.0, 1.0, seed=5, ask=Ask(prompts=Numbered("%d"), first_number=1))
        measured = measure(Target.parse(server.url), load)
    figures = measured.figures
    due = arrival_times_s(40.0, 1.0, seed=5)
    assert figures.requests == figures.answered == len(due)
    assert figures.ttft_ms is not None
    assert figures.ttft_ms.count == len(due)
    # The last request's answer comes after all others', though it was due within the second.
    total_ms = len(due) * service_s * 1e3
    assert figures.ttft_ms.max >= total_ms - 1000
    assert figures.ttft_ms.p50 > 3 * service_s * 1e3
    assert figures.late_starts is not None


def test_open_loop__times_count_from_when_requests_were_due() -> None:
    with TimedServer() as server:
        measured = measure(Target.parse(server.url), OpenLoop(50.0, 0.5, seed=1))
    due = [answer.due_s for answer in measured.answers]
    expected = arrival_times_s(50.0, 0.5, seed=1)
    starts = sorted(due)
    assert [start - starts[0] for start in starts] == pytest.approx([time - expected[0] for time in expected])
    assert all(answer.sent_s >= answer.due_s for answer in measured.answers)
    assert all(answer.ttft_s == answer.event_s[0] - answer.due_s for answer in measured.answers)


def test_open_loop__errors_are_counted_by_status() -> None:
    def script(number: int) -> Script:
        return Script(status={0: 429, 1: 503}.get(number % 4, 200), events=2)

    with TimedServer(script) as server:
        figures = measure(Target.parse(server.url), OpenLoop(100.0, 0.4, seed=2)).figures
    count = len(server.chats)
    assert figures.requests == count
    assert figures.errors == {"429": len(range(0, count, 4)), "503": len(range(1, count, 4))}
    assert figures.answered == count - sum(figures.errors.values())
    assert figures.tokens == 2 * figures.answered


def test_open_loop__when_all_fail_the_first_failure_is_told() -> None:
    with (
        TimedServer(lambda number: Script(status=500)) as server,
        pytest.raises(EdgekitError, match="answers 500"),
    ):
        measure(Target.parse(server.url), OpenLoop(50.0, 0.2))


def test_open_loop__background_streams_run_all_the_while_and_are_reported_apart() -> None:
    def script(number: int) -> Script:
        # The background's two are first, and never end by themselves.
        return Script(gap_s=0.01, events=10_000) if number < 2 else Script(events=2)

    with TimedServer(script) as server:
        load = OpenLoop(30.0, 0.5, seed=4, background=2, background_tokens=99, ask=Ask(max_tokens=7))
        measured = measure(Target.parse(server.url), load)
    figures = measured.figures
    assert figures.requests == len(arrival_times_s(30.0, 0.5, seed=4))
    assert figures.background_streams_gap_ms is not None
    assert figures.background_streams_gap_ms.p50 >= 10
    assert figures.background_streams_gap_ms.count > 2 * 10
    assert figures.event_gap_ms is None or figures.event_gap_ms.count == figures.requests
    assert [chat["max_tokens"] for chat in server.chats[:3]] == [99, 99, 7]


def test_open_loop__background_that_is_refused_is_an_error() -> None:
    with (
        TimedServer(lambda number: Script(status=429)) as server,
        pytest.raises(EdgekitError, match="answers 429"),
    ):
        measure(Target.parse(server.url), OpenLoop(5.0, 1.0, background=2))


def test_open_loop__too_short_for_a_request() -> None:
    with TimedServer() as server, pytest.raises(UsageError, match="no request comes"):
        measure(Target.parse(server.url), OpenLoop(0.001, 0.1))


def test_measure__nobody_there() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(EdgekitError, match="connection refused") as caught:
        measure(Target.parse(f"http://127.0.0.1:{port}"), ClosedLoop())
    assert caught.value.hint == "is the server running?"


def test_measure__real_server(server_url: str) -> None:
    ask = Ask(max_tokens=8, logit_bias={"2": -100.0})
    figures = measure(Target.parse(server_url), ClosedLoop(3, 2, ask)).figures
    assert (figures.requests, figures.tokens, figures.errors) == (6, 6 * 8, {})
    assert figures.ttft_ms is not None
    assert figures.event_gap_ms is not None
    assert figures.tpot_ms is not None
    assert 0 < figures.ttft_ms.p50 <= figures.ttft_ms.p95 <= figures.ttft_ms.max
    assert 0 < figures.event_gap_ms.p50 <= figures.event_gap_ms.p95 <= figures.event_gap_ms.p99
    assert figures.decode_tokens_per_s is not None
    assert figures.prompt_tokens is not None
    assert figures.tokens_per_event is not None
    assert figures.tokens_per_event >= 1


def test_measure__real_server_that_refuses_is_an_error(server_url: str) -> None:
    with pytest.raises(EdgekitError, match="answers 404"):
        measure(Target.parse(server_url), ClosedLoop(ask=Ask(model="gpt-4o")))
