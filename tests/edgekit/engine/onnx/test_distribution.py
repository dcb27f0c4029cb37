"""Against sorting everything, and against llama.cpp's own samplers."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import pytest

from edgekit.engine.base import Sampling
from edgekit.engine.llama_library import load_library
from edgekit.engine.onnx.distribution import distribution, likeliest, nucleus, penalize

RANDOM = np.random.default_rng(20260331)


def logits_of(size: int, spread: float = 3.0) -> Any:
    return (RANDOM.standard_normal(size) * spread).astype(np.float32)


@pytest.mark.parametrize("size", [1, 5, 256, 272, 1000, 49_152, 151_936])
@pytest.mark.parametrize("count", [1, 2, 20, 40, 300, 5000])
def test_likeliest__is_what_sorting_gives(size: int, count: int) -> None:
    logits = logits_of(size)
    expected = np.argsort(-logits, kind="stable")[:count]
    assert likeliest(logits, count).tolist() == expected.tolist()


def test_likeliest__equal_values_come_in_the_order_of_their_ids() -> None:
    logits = np.round(logits_of(5000, 1.0))
    assert likeliest(logits, 700).tolist() == np.argsort(-logits, kind="stable")[:700].tolist()


@pytest.mark.parametrize("spread", [0.01, 1.0, 4.0, 30.0])
@pytest.mark.parametrize("mass", [0.0, 0.1, 0.5, 0.95, 0.999])
def test_nucleus__is_the_smallest_set_of_that_mass(spread: float, mass: float) -> None:
    logits = logits_of(20_000, spread)
    kept = nucleus(logits, mass)
    weights = np.exp(logits.astype(np.float64) - logits.max())
    reached = np.cumsum(np.sort(weights / weights.sum())[::-1])
    assert kept.size == pytest.approx(max(1, np.searchsorted(reached, mass) + 1), abs=2)
    assert kept.tolist() == np.argsort(-logits, kind="stable")[: kept.size].tolist()


class Native:
    """A chain of llama.cpp's samplers, applied to logits."""

    def __init__(self, *parts: Any) -> None:
        self._api = load_library()
        self._chain = self._api.llama_sampler_chain_init(self._api.llama_sampler_chain_default_params())
        for name, *arguments in parts:
            part = getattr(self._api, f"llama_sampler_init_{name}")(*arguments)
            self._api.llama_sampler_chain_add(self._chain, part)

    def accept(self, tokens: list[int]) -> None:
        for token in tokens:
            self._api.llama_sampler_accept(self._chain, token)

    def apply(self, logits: Any) -> dict[int, float]:
        """Token to logit, of those that are left."""
        entries = (self._api.llama_token_data * logits.size)(
            *(self._api.llama_token_data(index, float(logit), 0.0) for index, logit in enumerate(logits))
        )
        array = self._api.llama_token_data_array(entries, logits.size, -1, False)
        self._api.llama_sampler_apply(self._chain, ctypes.byref(array))
        left = {array.data[index].id: array.data[index].logit for index in range(array.size)}
        self._api.llama_sampler_free(self._chain)
        return left


@pytest.mark.parametrize("spread", [0.5, 3.0])
@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(temperature=0.6, top_p=0.95, top_k=40),
        Sampling(temperature=1.3, top_k=7),
        Sampling(temperature=0.2, top_p=0.3),
        Sampling(temperature=1.0, min_p=0.1),
        Sampling(temperature=0.8, top_p=0.9, top_k=100, min_p=0.05),
    ],
    ids=str,
)
def test_distribution__leaves_what_llama_cpp_leaves(sampling: Sampling, spread: float) -> None:
    logits = logits_of(3000, spread)
    parts: list[Any] = [("top_k", sampling.top_k)] if sampling.top_k else []
    parts += [("top_p", sampling.top_p, 1)] if sampling.top_p < 1 else []
    parts += [("min_p", sampling.min_p, 1)] if sampling.min_p else []
    left = Native(*parts, ("temp", sampling.temperature)).apply(logits)
    indices, weights = distribution(logits, sampling)
    assert indices is not None
    assert set(indices.tolist()) == set(left)
    expected = np.exp(np.array([left[index] for index in indices.tolist()]) - max(left.values()))
    np.testing.assert_allclose(weights, expected, rtol=1e-4)


@pytest.mark.parametrize(
    ("repeat", "frequency", "presence"),
    [(1.3, 0.0, 0.0), (1.0, 0.7, 0.0), (1.0, 0.0, 1.5), (0.8, -0.2, 0.3), (1.1, 0.4, 0.4)],
)
def test_penalize__does_what_llama_cpp_does(repeat: float, frequency: float, presence: float) -> None:
    logits = logits_of(300)
    seen = [5, 7, 5, 5, 299, 0, 7]
    native = Native(("penalties", logits.size, 64, repeat, frequency, presence))
    native.accept(seen)
    left = native.apply(logits)
    penalize(
        logits,
        seen,
        Sampling(repeat_penalty=repeat, frequency_penalty=frequency, presence_penalty=presence),
    )
    np.testing.assert_allclose(logits, [left[token] for token in range(300)], rtol=1e-5, atol=1e-5)
