"""The same decoding through the scheduler, with sampling, in this process: what the layers above cost.

The prompts are computed before and found in the KV cache, so that all streams begin together and every step
decodes one token of each, as in the engine's `tg` rows.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable

from edgekit.bench.engine_rows import Case, Spread
from edgekit.engine.base import Engine, Event, Failed, Finished, Request, Sampling
from edgekit.engine.runner import Runner

__all__ = ["GROWTH_CELLS", "SAMPLING", "measure_scheduler", "without_end"]

SAMPLING = Sampling(temperature=0.6, top_p=0.95, top_k=40)
"""DeepSeek's advice for R1, and llama.cpp's top_k."""
GROWTH_CELLS = 64
"""Cells for each stream beyond its own tokens: the scheduler keeps some free when it admits one."""
_FORBIDDEN = -1000.0


def without_end(runner: Runner) -> dict[int, float]:
    """A bias that keeps the model from ending its turn."""
    return {token: _FORBIDDEN for token in range(runner.vocabulary) if runner.ends_generation(token)}


def measure_scheduler(
    engine: Engine,
    case: Case,
    repetitions: int,
    *,
    vocabulary: int,
    bias: dict[int, float],
    clock: Callable[[], float] = time.perf_counter,
) -> Spread:
    """Measure a case, after a repetition that does not count.

    Args:
        engine: has room for the case; nobody else uses it.
        vocabulary: number of token ids.
        bias: see `without_end`; answers that end early would be another case.

    Raises:
        EdgekitError: a stream failed.
    """
    draw = random.Random(1)  # noqa: S311 (nothing secret)
    prompts = [tuple(draw.choices(range(vocabulary), k=max(1, case.depth))) for _ in range(case.streams)]
    _run(engine, prompts, 1, bias)
    samples = []
    for repetition in range(repetitions + 1):
        begun = clock()
        tokens = _run(engine, prompts, case.tokens, bias)
        seconds = clock() - begun
        if repetition:
            samples.append(tokens / seconds)
    return Spread.of(samples)


def _run(engine: Engine, prompts: list[tuple[int, ...]], max_tokens: int, bias: dict[int, float]) -> int:
    """Answer all prompts at once; returns how many tokens that took."""
    ended = threading.Semaphore(0)
    last: list[Event] = []

    def sink(event: Event) -> None:
        if isinstance(event, Finished | Failed):
            last.append(event)
            ended.release()

    for seed, prompt in enumerate(prompts):
        sampling = Sampling(
            temperature=SAMPLING.temperature,
            top_p=SAMPLING.top_p,
            top_k=SAMPLING.top_k,
            seed=seed,
            logit_bias=bias,
        )
        engine.submit(Request(prompt, max_tokens=max_tokens, sampling=sampling), sink)
    for _ in prompts:
        ended.acquire()
    for event in last:
        if isinstance(event, Failed):
            raise event.error
    return sum(event.record.completion_tokens for event in last if isinstance(event, Finished))
