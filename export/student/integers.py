"""Weights as small integers times scales: what GPTQ, AWQ and their kin store, however they pack them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

__all__ = ["ALL_ROWS", "IntegerLayout", "IntegerMatrix", "scales_fit_f16"]

ALL_ROWS: Final = slice(None)


@dataclass(frozen=True, slots=True)
class IntegerLayout:
    """What a target must know of an integer matrix to tell whether it can hold it exactly."""

    bits: int
    """2, 3, 4 or 8."""
    group_columns: int
    """Columns that share a scale; the whole row where there is one scale a row."""
    symmetric: bool
    """Whether every zero is 2^(bits-1)."""
    in_order: bool
    """Whether column k belongs to group k // group_columns. False: activation order."""
    scales_fit_f16: bool
    """Whether every scale is a normal float16 exactly. Those of BF16 students may be too small."""


@dataclass(frozen=True, slots=True)
class IntegerMatrix:
    """A matrix [N, K] with value[n, k] = scale[n, g] * (code[n, k] - zero[n, g]), g the group of column k.

    Groups G = ceil(K / group_columns). `groups` is int32 [K], the group of each column, or None where
    `layout.in_order`.
    """

    shape: tuple[int, int]
    layout: IntegerLayout
    groups: NDArray[np.int32] | None
    _codes: Callable[[slice], NDArray[np.uint8]] = field(repr=False, compare=False)
    _scales: Callable[[slice], NDArray[np.float32]] = field(repr=False, compare=False)
    _zeros: Callable[[slice], NDArray[np.int16]] = field(repr=False, compare=False)
    _nibbles: Callable[[slice], NDArray[np.uint8]] | None = field(default=None, repr=False, compare=False)
    """Where the student stores 4-bit codes so that `nibbles` need not be packed again."""

    def codes(self, rows: slice = ALL_ROWS) -> NDArray[np.uint8]:
        """Integers from 0 to 2^bits - 1, uint8 [rows, K], in the student's order of columns."""
        return self._codes(rows)

    def nibbles(self, rows: slice = ALL_ROWS) -> NDArray[np.uint8]:
        """4-bit codes two to a byte, uint8 [rows, K / 2]: of each pair, the first is the low half."""
        if self._nibbles is not None:
            return self._nibbles(rows)
        codes = self._codes(rows)
        return codes[:, 0::2] | (codes[:, 1::2] << np.uint8(4))

    def scales(self, rows: slice = ALL_ROWS) -> NDArray[np.float32]:
        """float32 [rows, G], exactly as stored."""
        return self._scales(rows)

    def zeros(self, rows: slice = ALL_ROWS) -> NDArray[np.int16]:
        """int16 [rows, G]; from 0 to 2^bits."""
        return self._zeros(rows)

    def dequantized(self, rows: slice = ALL_ROWS) -> NDArray[np.float32]:
        """The values, float32 [rows, K]: one multiplication in float32 each."""
        codes, scales, zeros = self.codes(rows), self.scales(rows), self.zeros(rows)
        if self.groups is not None:
            steps = codes.astype(np.int16) - zeros[:, self.groups]
            shuffled: NDArray[np.float32] = steps.astype(np.float32) * scales[:, self.groups]
            return shuffled
        values = codes.astype(np.float32)
        width = self.layout.group_columns
        for group in range(scales.shape[1]):
            part = values[:, group * width : (group + 1) * width]
            part -= zeros[:, group, None]
            part *= scales[:, group, None]
        return values


def scales_fit_f16(scales: NDArray[np.float32]) -> bool:
    """Whether float16 holds every scale exactly, none of them subnormal."""
    with np.errstate(over="ignore"):
        halves = scales.astype(np.float16)
    normal = (np.abs(halves) >= np.finfo(np.float16).smallest_normal) | (scales == 0)
    return bool((normal & (halves.astype(np.float32) == scales)).all())
