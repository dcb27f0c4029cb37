"""Drawing from the real model's logits, held against computations of its own."""

from __future__ import annotations

import gc
import math
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from edgekit.engine.base import Sampling
from edgekit.engine.llama import LlamaRunner
from edgekit.engine.llama_library import load_library
from edgekit.engine.llama_sampler import LlamaSampler
from edgekit.engine.runner import Slice
from edgekit.errors import ConstraintError, EngineError
from edgekit.profiles import ServeSettings

TEXTS = ("Once upon a time there was a", "def add(a, b):\n    return", "The capital of France is")

Logits = npt.NDArray[np.float64]


class Only:
    """Allows the same tokens for ever."""

    def __init__(self, tokens: list[int], vocabulary: int) -> None:
        bits = np.zeros((vocabulary + 7) // 8 * 8, dtype=np.uint8)
        bits[tokens] = 1
        self.mask = np.packbits(bits, bitorder="little").tobytes()
        self.accepted: list[int] = []

    def allows(self, token: int) -> bool:
        return bool(self.mask[token // 8] >> token % 8 & 1)

    def allowed(self) -> bytes:
        return self.mask

    def accept(self, token: int) -> None:
        self.accepted.append(token)


class Prompts:
    """Prompts that the real model has computed; their rows can be drawn from again and again."""

    def __init__(self, runner: LlamaRunner) -> None:
        prompts = [runner.tokenize(text, add_special=True, parse_special=False) for text in TEXTS]
        self.runner = runner
        self.vocabulary = runner.vocabulary
        self.rows = runner.run([Slice(index, 0, tokens, True) for index, tokens in enumerate(prompts)])
        self.logits = [self._logits(row) for row in self.rows]

    def _logits(self, row: int) -> Logits:
        pointer = load_library().llama_get_logits_ith(self.runner._context, row)
        return np.ctypeslib.as_array(pointer, (self.vocabulary,)).astype(np.float64)

    def likeliest(self, index: int) -> list[int]:
        """All tokens of a prompt's row, likeliest first."""
        return [int(token) for token in np.argsort(-self.logits[index], kind="stable")]

    def sampler(self, seen: tuple[int, ...] = (), **settings: Any) -> LlamaSampler:
        return self.runner.open_sampler(Sampling(**settings), seen)


@pytest.fixture(scope="module")
def prompts(student: Path) -> Iterator[Prompts]:
    runner = LlamaRunner(student, ServeSettings(threads=None, context_tokens=256, slots=4), repack=False)
    yield Prompts(runner)
    runner.close()


def log_softmax(logits: Logits) -> Logits:
    shifted = logits - logits.max()
    result: Logits = shifted - np.log(np.exp(shifted).sum())
    return result


# Log probabilities.


def test_logprobs__are_the_log_softmax_of_the_models_own_logits(prompts: Prompts) -> None:
    sampler = prompts.sampler(
        (11, 12), temperature=0.3, top_k=5, top_p=0.5, logit_bias={7: 50.0}, repeat_penalty=1.5
    )
    for index, row in enumerate(prompts.rows):
        expected = log_softmax(prompts.logits[index])
        drawn = sampler.sample(row)
        for token in (drawn, 7, 11, prompts.vocabulary - 1):
            told = sampler.logprobs(row, token, 20)
            assert told.drawn.token == token
            assert told.drawn.piece == prompts.runner.piece(token)
            assert told.drawn.logprob == pytest.approx(expected[token], abs=1e-5)
            assert [likely.token for likely in told.top] == prompts.likeliest(index)[:20]
            for likely in told.top:
                assert likely.logprob == pytest.approx(expected[likely.token], abs=1e-5)
                assert likely.piece == prompts.runner.piece(likely.token)


def test_logprobs__of_the_least_likely_token_is_exact_too(prompts: Prompts) -> None:
    sampler = prompts.sampler()
    for index, row in enumerate(prompts.rows):
        token = prompts.likeliest(index)[-1]
        told = sampler.logprobs(row, token, 0)
        assert told.top == ()
        assert told.drawn.logprob == pytest.approx(log_softmax(prompts.logits[index])[token], abs=1e-5)


def test_logprobs__of_all_tokens_sum_to_one(prompts: Prompts) -> None:
    told = prompts.sampler().logprobs(prompts.rows[0], 0, prompts.vocabulary)
    assert len(told.top) == prompts.vocabulary
    assert math.fsum(math.exp(likely.logprob) for likely in told.top) == pytest.approx(1, abs=1e-4)


# Free draws.


def test_sample__draws_as_llama_cpp_does_whatever_other_streams_do_between(prompts: Prompts) -> None:
    api = load_library()
    settings: dict[str, Any] = {"temperature": 1.3, "top_k": 50, "top_p": 0.9, "min_p": 0.01, "seed": 5}
    own = prompts.sampler(**settings)
    expected = [
        int(api.llama_sampler_sample(own._chain, prompts.runner._context, row)) for row in prompts.rows * 10
    ]
    one, other = prompts.sampler(**settings), prompts.sampler(temperature=2.0, presence_penalty=1.0)
    drawn = []
    for row in prompts.rows * 10:
        other.sample(row)
        drawn.append(one.sample(row))
        other.logprobs(row, 3, 4)
    assert drawn == expected
    assert len(set(drawn)) > 3


def test_sample__temperature_zero_takes_the_likeliest(prompts: Prompts) -> None:
    for index, row in enumerate(prompts.rows):
        assert prompts.sampler(temperature=0).sample(row) == prompts.likeliest(index)[0]


def test_accept__counts_for_penalties(prompts: Prompts) -> None:
    row, likeliest = prompts.rows[0], prompts.likeliest(0)
    sampler = prompts.sampler(temperature=0, presence_penalty=100.0)
    sampler.accept(likeliest[0])
    assert sampler.sample(row) == likeliest[1]
    assert sampler.sample(row) == likeliest[2]


def test_open__a_repeat_penalty_that_divides_by_zero_is_refused(prompts: Prompts) -> None:
    with pytest.raises(EngineError, match="repeat_penalty"):
        prompts.sampler(repeat_penalty=0.0)


def test_open__a_bias_for_a_token_that_there_is_not_is_refused(prompts: Prompts) -> None:
    with pytest.raises(EngineError, match="token 10000000 is not one of the model's"):
        prompts.sampler(logit_bias={10_000_000: 1.0})


# Constrained draws.


def softmax_of(tokens: list[int], logits: Logits, temperature: float, top_k: int) -> dict[int, float]:
    """Probabilities of the likeliest `top_k` of some tokens (0: of all)."""
    kept = sorted(tokens, key=lambda token: -logits[token])[: top_k or None]
    weights = np.exp((logits[kept] - logits[kept].max()) / temperature)
    return dict(zip(kept, (weights / weights.sum()).tolist(), strict=True))


@pytest.mark.parametrize(
    ("settings", "allowed_of", "draws"),
    [
        # Few that the model would hardly say; the free draw is nearly always refused.
        ({"temperature": 3.0}, lambda likeliest: likeliest[2000:2008], 1200),
        ({"temperature": 3.0, "top_k": 4}, lambda likeliest: likeliest[2000:2008], 1200),
        # All but the likeliest: found among the first ones, and not so.
        ({"temperature": 1.0, "top_k": 6}, lambda likeliest: likeliest[3:], 1200),
        ({"temperature": 1.0, "top_k": 6}, lambda likeliest: likeliest[126:], 150),
        # Some of the likeliest: the free draw is sometimes good.
        ({"temperature": 1.0}, lambda likeliest: [*likeliest[1:9:2], *likeliest[500:502]], 1200),
    ],
    ids=["few", "few-top-k", "dense", "dense-further-down", "mixed"],
)
def test_sample__constrained_draws_follow_the_distribution_over_what_is_allowed(
    prompts: Prompts, settings: dict[str, Any], allowed_of: Callable[[list[int]], list[int]], draws: int
) -> None:
    logits, (temperature, top_k) = prompts.logits[0], (settings["temperature"], settings.get("top_k", 0))
    allowed = allowed_of(prompts.likeliest(0))
    free = softmax_of(list(range(prompts.vocabulary)), logits, temperature, top_k)
    again = softmax_of(allowed, logits, temperature, top_k)
    refused = 1 - math.fsum(free.get(token, 0) for token in allowed)
    expected = {token: free.get(token, 0) + refused * share for token, share in again.items()}
    matcher = Only(allowed, prompts.vocabulary)
    sampler = prompts.sampler(seed=1, **settings)
    sampler.constrain(matcher)
    counts = Counter(sampler.sample(prompts.rows[0]) for _ in range(draws))
    assert sum(counts.values()) == len(matcher.accepted) == draws
    assert set(counts) <= set(expected)
    for token, probability in expected.items():
        spread = math.sqrt(probability * (1 - probability) / draws)
        assert counts[token] / draws == pytest.approx(probability, abs=5 * spread + 1e-3)


def test_sample__same_seed_and_constraint_same_draws(prompts: Prompts) -> None:
    def draw() -> list[int]:
        sampler = prompts.sampler(temperature=1.5, seed=9, top_p=0.9)
        sampler.constrain(Only(prompts.likeliest(1)[1:600:3], prompts.vocabulary))
        return [sampler.sample(row) for row in prompts.rows * 5]

    assert draw() == draw()


def test_sample__penalties_do_not_see_tokens_that_the_constraint_refused(prompts: Prompts) -> None:
    row, likeliest = prompts.rows[0], prompts.likeliest(0)
    sampler = prompts.sampler(temperature=0, presence_penalty=100.0)
    matcher = Only(likeliest[1:], prompts.vocabulary)
    sampler.constrain(matcher)
    assert [sampler.sample(row) for _ in range(3)] == likeliest[1:4]
    sampler.constrain(None)
    assert sampler.sample(row) == likeliest[0]
    assert matcher.accepted == likeliest[1:4]


def test_sample__bias_counts_among_what_is_allowed(prompts: Prompts) -> None:
    row, likeliest = prompts.rows[2], prompts.likeliest(2)
    sampler = prompts.sampler(temperature=0, logit_bias={likeliest[900]: 60.0, likeliest[5]: 100.0})
    sampler.constrain(Only(likeliest[800:1000], prompts.vocabulary))
    assert sampler.sample(row) == likeliest[900]


def test_sample__a_constraint_that_allows_nothing_is_an_error_and_harms_nobody(prompts: Prompts) -> None:
    row = prompts.rows[0]
    sampler, other = prompts.sampler(temperature=0), prompts.sampler(temperature=0)
    sampler.constrain(Only([], prompts.vocabulary))
    with pytest.raises(ConstraintError, match="no token"):
        sampler.sample(row)
    assert other.sample(row) == prompts.likeliest(0)[0]


def test_sample__what_a_matcher_raises_comes_out_and_the_next_draw_works(prompts: Prompts) -> None:
    class Broken(Only):
        def allows(self, token: int) -> bool:
            raise ConstraintError("too complex")

    row = prompts.rows[0]
    sampler = prompts.sampler(temperature=0)
    sampler.constrain(Broken([1], prompts.vocabulary))
    with pytest.raises(ConstraintError, match="too complex"):
        sampler.sample(row)
    sampler.constrain(None)
    assert sampler.sample(row) == prompts.likeliest(0)[0]


def test_visit__what_is_raised_inside_the_library_comes_out(prompts: Prompts) -> None:
    candidates = prompts.sampler()._candidates

    def fail(_candidates: Any) -> None:
        raise KeyError("inside")

    with pytest.raises(KeyError, match="inside"):
        candidates.visit(prompts.rows[0], fail)
    first = candidates.visit(prompts.rows[0], lambda entries: entries.data[7].id)
    assert first == 7


def test_close__frees_a_sampler_once(prompts: Prompts) -> None:
    sampler = prompts.sampler(temperature=0)
    sampler.sample(prompts.rows[0])
    sampler.close()
    sampler.close()
    gc.collect()
    assert prompts.sampler(temperature=0).sample(prompts.rows[0]) == prompts.likeliest(0)[0]
