"""The largest of many logits, without sorting them."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

__all__ = ["likeliest", "nucleus"]

_BLOCK: Final = 256


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
