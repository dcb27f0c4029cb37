"""The engine's own speed, as llama-bench measures it: prompts computed, tokens decoded, nothing drawn.

Straight on a `Runner`: no scheduler, no sampling. Tokens are random ones of the vocabulary: what they are
does not change what is computed. `pp` is a prompt in the runner's batches, `tg` a token for each stream a
step; both at a depth, with so many tokens in the KV cache before. With several streams, each has a depth of
its own: nothing is shared.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from edgekit.engine.runner import Runner, Slice

__all__ = ["Case", "EngineBench", "Spread"]


@dataclass(frozen=True, slots=True)
class Spread:
    """Tokens a second over the repetitions."""

    mean: float
    stddev: float | None
    """Of the sample; None for a single one."""
    samples: tuple[float, ...]

    @classmethod
    def of(cls, samples: list[float]) -> Spread:
        stddev = statistics.stdev(samples) if len(samples) > 1 else None
        return cls(statistics.fmean(samples), stddev, tuple(samples))


@dataclass(frozen=True, slots=True)
class Case:
    """What a row measures."""

    test: Literal["pp", "tg"]
    """pp: a prompt of `tokens`. tg: `tokens` steps of decoding."""
    tokens: int
    depth: int = 0
    """Tokens in each stream's KV cache before."""
    streams: int = 1
    layer: Literal["engine", "scheduler"] = "engine"
    """scheduler: through it, and with sampling."""

    @property
    def name(self) -> str:
        """As llama-bench writes it: "tg128 @ d1024"."""
        return f"{self.test}{self.tokens}" + (f" @ d{self.depth}" if self.depth else "")

    @property
    def cells(self) -> int:
        """KV cells that it needs."""
        return self.streams * (self.depth + self.tokens)


class EngineBench:
    """Rows on one runner. What was computed for a row's depth is kept for the next.

    Args:
        runner: loaded, with room for every case; used by this thread only.
        clock: monotonic seconds.
    """

    def __init__(self, runner: Runner, *, clock: Callable[[], float] = time.perf_counter) -> None:
        self._runner = runner
        self._clock = clock
        self._random = random.Random(0)  # noqa: S311 (nothing secret)
        self._filled: dict[int, int] = {}

    def measure(self, case: Case, repetitions: int) -> Spread:
        """Measure a case, after a repetition that does not count.

        Raises:
            CacheFullError: the runner's KV cache is too small.
            EngineError: the runtime failed.
        """
        for sequence in range(case.streams):
            self._fill(sequence, case.depth)
        run = self._prompt if case.test == "pp" else self._decode
        samples = []
        for repetition in range(repetitions + 1):
            # As in llama-bench, decoding warms up with a single step, a prompt as a whole.
            warm_up = repetition == 0
            tokens = 1 if warm_up and case.test == "tg" else case.tokens
            begun = self._clock()
            run(case, tokens)
            seconds = self._clock() - begun
            if not warm_up:
                samples.append(case.streams * tokens / seconds)
            for sequence in range(case.streams):
                self._runner.forget(sequence, case.depth)
        return Spread.of(samples)

    def clear(self) -> None:
        """Forget all, so that somebody else may use the runner."""
        for sequence in self._filled:
            self._runner.forget(sequence, 0)
        self._filled.clear()

    def _fill(self, sequence: int, depth: int) -> None:
        """Let a sequence hold `depth` tokens."""
        filled = self._filled.get(sequence, 0)
        if filled > depth:
            self._runner.forget(sequence, depth)
        elif filled < depth:
            self._append(sequence, filled, depth - filled)
        self._filled[sequence] = depth

    def _prompt(self, case: Case, tokens: int) -> None:
        for sequence in range(case.streams):
            self._append(sequence, case.depth, tokens)

    def _decode(self, case: Case, tokens: int) -> None:
        for position in range(case.depth, case.depth + tokens):
            self._runner.run(
                [Slice(sequence, position, self._tokens(1), sample=True) for sequence in range(case.streams)]
            )

    def _append(self, sequence: int, start: int, count: int) -> None:
        step = self._runner.batch_tokens
        for done in range(0, count, step):
            tokens = self._tokens(min(step, count - done))
            last = done + len(tokens) == count
            self._runner.run([Slice(sequence, start + done, tokens, sample=last)])

    def _tokens(self, count: int) -> list[int]:
        return self._random.choices(range(self._runner.vocabulary), k=count)
