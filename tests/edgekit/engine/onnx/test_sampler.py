from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from edgekit.engine.base import Sampling
from edgekit.engine.onnx.sampler import OnnxSampler
from edgekit.errors import ConstraintError, EngineError

LOGITS = np.array([0.0, 2.0, 1.0, -1.0, 1.5], np.float32)


def sampler(logits: Any = LOGITS, prompt: Sequence[int] = (), **settings: Any) -> OnnxSampler:
    values = np.asarray(logits, np.float32)
    values.setflags(write=False)
    return OnnxSampler(
        lambda row: values, lambda token: b"%d" % token, values.size, Sampling(**settings), prompt
    )


class Allowing:
    """A matcher that always allows the same tokens."""

    def __init__(self, *tokens: int) -> None:
        self.tokens = set(tokens)
        self.taken: list[int] = []

    def allows(self, token: int) -> bool:
        return token in self.tokens

    def allowed(self) -> bytes:
        mask = bytearray(1)
        for token in self.tokens:
            mask[token // 8] |= 1 << token % 8
        return bytes(mask)

    def accept(self, token: int) -> None:
        self.taken.append(token)


def frequencies(drawing: OnnxSampler, draws: int = 20_000) -> list[float]:
    counts = Counter(drawing.sample(0) for _ in range(draws))
    return [counts[token] / draws for token in range(LOGITS.size)]


def test_sample__temperature_zero_takes_the_likeliest() -> None:
    assert {sampler(temperature=0.0).sample(0) for _ in range(5)} == {1}
    assert {sampler(temperature=1.0, top_k=1).sample(0) for _ in range(5)} == {1}


def test_sample__draws_from_the_models_own_distribution() -> None:
    expected = np.exp(LOGITS) / np.exp(LOGITS).sum()
    np.testing.assert_allclose(frequencies(sampler(seed=1)), expected, atol=0.015)


def test_sample__draws_from_what_top_k_and_temperature_leave() -> None:
    weights = np.exp(np.array([2.0, 1.5]) / 0.5)
    expected = [0, *(weights[:1] / weights.sum()), 0, 0, *(weights[1:] / weights.sum())]
    np.testing.assert_allclose(frequencies(sampler(seed=2, top_k=2, temperature=0.5)), expected, atol=0.015)


def test_sample__same_seed_same_tokens_and_others_do_not_matter() -> None:
    alone, busy, other = sampler(seed=7), sampler(seed=7), sampler(seed=8)
    expected = [alone.sample(0) for _ in range(50)]
    found = []
    for _ in range(50):
        found.append(busy.sample(0))
        other.sample(0)
    assert found == expected
    assert [sampler(seed=9).sample(0) for _ in range(50)] != expected


@pytest.mark.parametrize("seed", [0, -1, 2**64 + 3, 2**31])
def test_sample__takes_any_integer_for_a_seed(seed: int) -> None:
    assert sampler(seed=seed).sample(0) == sampler(seed=seed).sample(0)


def test_sample__coldest_temperature_draws_the_likeliest() -> None:
    assert sampler(temperature=1e-300).sample(0) == 1


def test_sample__bias_is_added_before_all_else() -> None:
    assert sampler(temperature=0.0, logit_bias={3: 100.0}).sample(0) == 3
    assert sampler(temperature=0.0, logit_bias={1: -100.0}).sample(0) == 4


def test_sample__bias_of_a_token_that_there_is_not_is_refused() -> None:
    with pytest.raises(EngineError, match="token 5 is not one of the model's 5"):
        sampler(logit_bias={5: 1.0})


def test_sample__prompt_and_draws_count_as_seen() -> None:
    assert sampler(temperature=0.0, presence_penalty=5.0, prompt=[1]).sample(0) == 4
    drawing = sampler(temperature=0.0, presence_penalty=5.0)
    assert [drawing.sample(0) for _ in range(5)] == [1, 4, 2, 0, 3]


def test_sample__what_was_seen_long_ago_is_forgotten() -> None:
    assert sampler(temperature=0.0, presence_penalty=5.0, prompt=[1, *[3] * 63]).sample(0) == 4
    assert sampler(temperature=0.0, presence_penalty=5.0, prompt=[1, *[3] * 64]).sample(0) == 1


def test_sample__constraint_draws_among_what_it_allows() -> None:
    drawing, matcher = sampler(seed=3), Allowing(0, 2, 3)
    drawing.constrain(matcher)
    weights = np.exp(LOGITS) * [1, 0, 1, 1, 0]
    np.testing.assert_allclose(frequencies(drawing), weights / weights.sum(), atol=0.015)
    assert set(matcher.taken) == {0, 2, 3}


def test_sample__constraint_is_found_outside_of_top_k() -> None:
    drawing = sampler(top_k=1)
    drawing.constrain(Allowing(3))
    assert drawing.sample(0) == 3


def test_sample__constraint_that_allows_nothing_is_an_error() -> None:
    drawing = sampler()
    drawing.constrain(Allowing())
    with pytest.raises(ConstraintError, match="leaves no token"):
        drawing.sample(0)


def test_accept__token_is_seen_and_given_to_the_matcher() -> None:
    drawing, matcher = sampler(temperature=0.0, presence_penalty=5.0), Allowing(*range(5))
    drawing.constrain(matcher)
    drawing.accept(1)
    assert drawing.sample(0) == 4
    assert matcher.taken == [1, 4]


def test_logprobs__are_of_the_raw_distribution() -> None:
    drawing = sampler(temperature=0.0, logit_bias={3: 100.0}, presence_penalty=1.0)
    told = drawing.logprobs(0, 3, 2)
    expected = LOGITS - np.log(np.exp(LOGITS.astype(np.float64)).sum())
    assert told.drawn.token == 3
    assert told.drawn.piece == b"3"
    assert told.drawn.logprob == pytest.approx(expected[3], abs=1e-5)
    assert [(entry.token, pytest.approx(entry.logprob, abs=1e-5)) for entry in told.top] == [
        (1, expected[1]),
        (4, expected[4]),
    ]
    assert drawing.logprobs(0, 0, 0).top == ()
