"""What a token is drawn from: logits as the settings of a request leave them. No vocabulary is sorted."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from edgekit.engine.base import Sampling

__all__ = ["distribution", "is_greedy", "likeliest", "nucleus", "penalize", "penalizes"]

_BLOCK: Final = 256
_COLDEST: Final = 1e-6
"""Temperatures below it would overflow float32, and draw nothing but the likeliest token anyway."""


def is_greedy(sampling: Sampling) -> bool:
    """Whether the likeliest token is taken."""
    return sampling.temperature <= 0 or sampling.top_k == 1


def penalizes(sampling: Sampling) -> bool:
    """Whether tokens that were seen become less likely."""
    return (
        sampling.repeat_penalty != 1.0
        or sampling.frequency_penalty != 0.0
        or sampling.presence_penalty != 0.0
    )


def penalize(logits: NDArray[np.float32], seen: Iterable[int], sampling: Sampling) -> None:
    """Make tokens that were seen less likely, in place: as llama-sampler.cpp, llama_sampler_penalties."""
    counts = Counter(seen)
    tokens = np.fromiter(counts.keys(), np.intp, len(counts))
    times = np.fromiter(counts.values(), np.float32, len(counts))
    values, repeat = logits[tokens], np.float32(sampling.repeat_penalty)
    values = np.where(values <= 0, values * repeat, values / repeat)
    logits[tokens] = values - times * sampling.frequency_penalty - sampling.presence_penalty


def distribution(
    logits: NDArray[np.float32], sampling: Sampling
) -> tuple[NDArray[np.intp] | None, NDArray[np.float32]]:
    """What there is to draw from after top-k, top-p, min-p and temperature, in this order.

    Returns:
        Indices of the logits that are left, None for all; and their weights, the largest of which is 1.
    """
    indices: NDArray[Any] | None = None
    if 0 < sampling.top_k < logits.size:
        indices = likeliest(logits, sampling.top_k)
        logits = logits[indices]
    if sampling.top_p < 1:
        kept = nucleus(logits, sampling.top_p)
        indices, logits = kept if indices is None else indices[kept], logits[kept]
    if sampling.min_p > 0:
        kept = np.flatnonzero(logits >= logits.max() + np.float32(math.log(sampling.min_p)))
        indices, logits = kept if indices is None else indices[kept], logits[kept]
    temperature = np.float32(max(sampling.temperature, _COLDEST))
    return indices, np.exp((logits - logits.max()) / temperature)


def likeliest(values: NDArray[np.float32], count: int) -> NDArray[np.intp]:
    """Indices of the `count` largest values, largest first; of equals, the first.

    As many blocks have their largest value at or above the `count`-th largest of all blocks' largest: so the
    values sought are all at or above it, and few others are.
    """
    blocks = values.size // _BLOCK
    if count >= values.size:
        candidates = np.arange(values.size)
    else:
        tops = values
        if blocks >= 2 * count:
            tops = values[: blocks * _BLOCK].reshape(blocks, _BLOCK).max(axis=1)
        candidates = np.flatnonzero(values >= np.partition(tops, tops.size - count)[tops.size - count])
    order = np.argsort(-values[candidates], kind="stable")
    return candidates[order[:count]]


def nucleus(values: NDArray[np.float32], mass: float) -> NDArray[np.intp]:
    """Indices of the likeliest tokens that have a probability of `mass` together, likeliest first.

    Args:
        values: logits of all tokens there are to draw from.
        mass: 0 to 1. One token is kept at least.
    """
    weights = np.exp(values - values.max())
    wanted = mass * float(weights.sum(dtype=np.float64))
    count = 64
    while True:
        found = likeliest(values, count)
        reached = np.cumsum(weights[found], dtype=np.float64)
        if reached[-1] >= wanted or found.size == values.size:
            return found[: int(np.searchsorted(reached, wanted)) + 1]
        count *= 8
