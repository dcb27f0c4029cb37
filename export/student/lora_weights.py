"""Weights of a base with a LoRA merged into them, in float32, computed by rows when they are read.

    W + scale * B @ A                                  LoRA
    m / |W + scale * B @ A| * (W + scale * B @ A)      DoRA; the norm of each output, or embedding dimension

Source: peft 0.21, tuners/lora/layer.py (get_delta_weight), tuners/lora/variants.py (merge_safe).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod

import numpy as np
from numpy.typing import NDArray

from export.student.base import StudentTensor
from export.student.integers import ALL_ROWS

__all__ = ["LowRank", "Magnitude", "adapted", "same_values"]

Floats = NDArray[np.float32]

_CHUNK_ELEMENTS = 1 << 22  # bounds what a merge needs beside its result: 16 MiB a matrix


@dataclass(frozen=True, slots=True)
class LowRank:
    """An update of a matrix [N, K]: scale * up @ down, up [N, rank], down [rank, K], read when asked for."""

    up: Callable[[slice], Floats]
    down: Callable[[], Floats]
    scale: float

    def rows(self, rows: slice) -> Floats:
        delta: Floats = self.up(rows) @ self.down()
        delta *= np.float32(self.scale)
        return delta


@dataclass(frozen=True, slots=True)
class Magnitude:
    """DoRA's trained norms: float32 [N] of the rows, or [K] of the columns of an embedding."""

    values: Callable[[], Floats]
    of_columns: bool


def adapted(
    base: StudentTensor,
    *,
    size_bytes: int,
    low_rank: LowRank | None = None,
    magnitude: Magnitude | None = None,
    new_rows: Mapping[int, Callable[[], Floats]] | None = None,
    plus: Callable[[], Floats] | None = None,
) -> StudentTensor:
    """`base` with what an adapter adds, as a float32 tensor.

    Args:
        size_bytes: what the tensor takes on disk, in the base's files and the adapter's.
        low_rank, magnitude: the update of a matrix; a magnitude needs a `low_rank`.
        new_rows: rows of an embedding that were trained as a whole, by token id.
        plus: an addition to a vector.
    """
    weights = _Adapted(base, low_rank, magnitude, new_rows or {}, plus)
    return StudentTensor(
        name=base.name, shape=base.shape, storage="F32", size_bytes=size_bytes, _read=weights.read
    )


class _Adapted:
    def __init__(
        self,
        base: StudentTensor,
        low_rank: LowRank | None,
        magnitude: Magnitude | None,
        new_rows: Mapping[int, Callable[[], Floats]],
        plus: Callable[[], Floats] | None,
    ) -> None:
        self._base = base
        self._low_rank = low_rank
        self._magnitude = magnitude
        self._new_rows = new_rows
        self._plus = plus

    def read(self, rows: slice) -> Floats:
        indices = range(self._base.shape[0])[rows]
        values = np.empty((len(indices), *self._base.shape[1:]), np.float32)
        for place, chunk in _chunks(indices, self._base.shape):
            values[place] = self._merged(chunk)
            if self._magnitude is not None:
                values[place] *= self._factors(chunk, values[place])
        for index, row in self._new_rows.items():
            if index in indices:
                values[indices.index(index)] = row()
        if self._plus is not None:
            values += self._plus()[rows]
        return values

    def _merged(self, rows: slice) -> Floats:
        base = self._base.read_float32(rows)
        return base if self._low_rank is None else base + self._low_rank.rows(rows)

    def _factors(self, rows: slice, merged: Floats) -> Floats:
        """What DoRA scales merged rows with: [rows, 1], or [1, K]."""
        assert self._magnitude is not None
        magnitude = self._magnitude.values()
        with np.errstate(divide="ignore", invalid="ignore"):
            if self._magnitude.of_columns:
                columns: Floats = (magnitude / self._column_norms)[np.newaxis]
                return columns
            norms: Floats = np.linalg.norm(merged, axis=1)
            factors: Floats = (magnitude[rows] / norms)[:, np.newaxis]
            return factors

    @cached_property
    def _column_norms(self) -> Floats:
        """Norms over all rows of the matrix, which are read once for them."""
        squares = np.zeros(self._base.shape[1], np.float64)
        for _, chunk in _chunks(range(self._base.shape[0]), self._base.shape):
            merged = self._merged(chunk)
            squares += np.einsum("nk,nk->k", merged, merged)
        return np.sqrt(squares).astype(np.float32)


def same_values(first: StudentTensor, second: StudentTensor) -> bool:
    """Whether two tensors hold the same float32 values. Reads both up to the first difference."""
    if first.shape != second.shape:
        return False
    return all(
        np.array_equal(first.read_float32(chunk), second.read_float32(chunk))
        for _, chunk in _chunks(range(first.shape[0]), first.shape)
    )


def _chunks(indices: range, shape: tuple[int, ...]) -> Iterator[tuple[slice, slice]]:
    """A range of rows in parts: where a part goes in the result, and the rows that it is made of."""
    if indices.step < 0:
        yield ALL_ROWS, slice(indices.start, indices.stop if indices.stop >= 0 else None, indices.step)
        return
    step = max(1, _CHUNK_ELEMENTS // max(1, prod(shape[1:])))
    for start in range(0, len(indices), step):
        part = indices[start : start + step]
        yield slice(start, start + len(part)), slice(part.start, part.stop, part.step)
