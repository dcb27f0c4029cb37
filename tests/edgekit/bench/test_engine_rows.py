from __future__ import annotations

import statistics
from collections.abc import Sequence

import pytest

from edgekit.bench.engine_rows import Case, EngineBench, Spread
from edgekit.engine.runner import CacheFullError, Slice


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


class KeepingRunner:
    """Keeps the rules of a KV cache: tokens come in order, none is there twice, cells are not exceeded."""

    vocabulary = 100
    batch_tokens = 8
    kv_cells = 64

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.held: dict[int, int] = {}
        self.steps: list[list[Slice]] = []
        self.costs_s = 0.0

    def run(self, slices: Sequence[Slice]) -> list[int]:
        assert sum(len(piece.tokens) for piece in slices) <= self.batch_tokens
        for piece in slices:
            assert piece.start == self.held.get(piece.sequence, 0)
            assert all(0 <= token < self.vocabulary for token in piece.tokens)
            self.held[piece.sequence] = piece.start + len(piece.tokens)
        if sum(self.held.values()) > self.kv_cells:
            raise CacheFullError
        self.steps.append(list(slices))
        self._clock.now_s += self.costs_s or 0.5 * len(slices)
        return [0 for piece in slices if piece.sample]

    def forget(self, sequence: int, start: int) -> None:
        assert start <= self.held.get(sequence, 0)
        self.held[sequence] = start


def bench() -> tuple[EngineBench, KeepingRunner]:
    clock = Clock()
    runner = KeepingRunner(clock)
    return EngineBench(runner, clock=clock), runner  # type: ignore[arg-type]


def test_pp__computes_the_prompt_in_batches_and_only_the_last_token_has_logits() -> None:
    measuring, runner = bench()
    speed = measuring.measure(Case("pp", 20), repetitions=2)
    sizes = [len(step[0].tokens) for step in runner.steps]
    # Once to warm up, and twice.
    assert sizes == [8, 8, 4] * 3
    assert [step[0].sample for step in runner.steps] == [False, False, True] * 3
    assert speed.samples == (20 / 1.5, 20 / 1.5)


def test_tg__every_step_decodes_a_token_of_each_stream_from_its_depth_on() -> None:
    measuring, runner = bench()
    speed = measuring.measure(Case("tg", 3, depth=10, streams=2), repetitions=2)
    filling, decoding = runner.steps[:4], runner.steps[4:]
    assert [(step[0].sequence, len(step[0].tokens)) for step in filling] == [(0, 8), (0, 2), (1, 8), (1, 2)]
    # The warm-up is a single step.
    assert [[piece.start for piece in step] for step in decoding] == [
        [10, 10],
        *[[10, 10], [11, 11], [12, 12]] * 2,
    ]
    assert all(piece.sample and len(piece.tokens) == 1 for step in decoding for piece in step)
    # Two tokens a step of a second.
    assert speed.samples == (2.0, 2.0)
    assert runner.held == {0: 10, 1: 10}


def test_measure__what_was_filled_is_kept_for_the_next_row() -> None:
    measuring, runner = bench()
    measuring.measure(Case("tg", 1, depth=4, streams=2), repetitions=1)
    before = len(runner.steps)
    measuring.measure(Case("tg", 1, depth=6, streams=2), repetitions=1)
    assert [len(step[0].tokens) for step in runner.steps[before : before + 2]] == [2, 2]
    measuring.measure(Case("tg", 1, depth=0, streams=1), repetitions=1)
    assert runner.steps[-1][0].start == 0
    measuring.clear()
    assert set(runner.held.values()) == {0}


def test_measure__a_cache_that_is_too_small_is_not_hidden() -> None:
    measuring, _ = bench()
    with pytest.raises(CacheFullError):
        measuring.measure(Case("tg", 1, depth=33, streams=2), repetitions=1)


def test_spread__mean_and_deviation_of_the_sample() -> None:
    spread = Spread.of([10.0, 12.0, 17.0])
    assert (spread.mean, spread.stddev) == (13.0, statistics.stdev([10, 12, 17]))
    assert Spread.of([10.0]).stddev is None


def test_case__named_as_llama_bench_does() -> None:
    assert Case("pp", 512).name == "pp512"
    assert Case("tg", 128, depth=1024, streams=8).name == "tg128 @ d1024"
    assert Case("tg", 128, depth=1024, streams=8).cells == 8 * 1152
