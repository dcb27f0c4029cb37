"""Scales of a matrix by blocks: one a tensor, a row, a group of columns, or a rectangle."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from export.student.base import as_float32
from export.student.integers import scales_fit_f16
from export.student.module_parts import ModuleParts
from export.student.safetensors_file import StoredTensor
from export.student.weight_reader import FLOAT_STORAGE

__all__ = ["ScaleGrid", "block_count", "grid_shapes", "rows_of_grid", "take_scales"]


@dataclass(frozen=True, slots=True)
class ScaleGrid:
    """The scales of a matrix [N, K], one for each block of `block` = (rows, columns).

    The blocks at the lower and right edges may be smaller.
    """

    shape: tuple[int, int]
    block: tuple[int, int]
    fit_f16: bool
    """Whether every scale is a normal float16 exactly."""
    _stored: StoredTensor = field(repr=False, compare=False)

    def of_rows(self, rows: slice) -> NDArray[np.float32]:
        """Scales of some rows of the matrix, float32 [rows, G], exactly as stored."""
        stored = self._stored.read().reshape(block_count(self.shape, self.block))
        return as_float32(stored[rows_of_grid(rows, self.shape[0], self.block[0])])

    def multiply(self, values: NDArray[np.float32], rows: slice) -> NDArray[np.float32]:
        """`values` [rows, K] of these rows times their scales, in place: one rounding each."""
        scales = self.of_rows(rows)
        for group, columns in enumerate(self._column_blocks()):
            values[:, columns] *= scales[:, group, None]
        return values

    def _column_blocks(self) -> Iterator[slice]:
        for start in range(0, self.shape[1], self.block[1]):
            yield slice(start, start + self.block[1])


def take_scales(parts: ModuleParts, name: str, shape: tuple[int, int], block: tuple[int, int]) -> ScaleGrid:
    """The part `name` as scales of a matrix of `shape`, one a `block` of rows and columns.

    Raises:
        ModelFileError: it is missing, of a wrong type or shape, or a scale is not finite.
    """
    stored = parts.take(name, storage=FLOAT_STORAGE, shapes=grid_shapes(shape, block))
    return ScaleGrid(shape, block, scales_fit_f16(parts.finite(name, stored)), stored)


def block_count(shape: tuple[int, int], block: tuple[int, int]) -> tuple[int, int]:
    """Blocks of a matrix, from top to bottom and from left to right."""
    return -(-shape[0] // block[0]), -(-shape[1] // block[1])


def grid_shapes(shape: tuple[int, int], block: tuple[int, int]) -> list[tuple[int, ...]]:
    """Shapes in which one value a block is stored: two dimensions, or fewer where one is enough."""
    down, across = block_count(shape, block)
    shapes: list[tuple[int, ...]] = [(down, across)]
    if across == 1:
        shapes.append((down,))
    if (down, across) == (1, 1):
        shapes.append(())
    return shapes


def rows_of_grid(rows: slice, count: int, height: int) -> slice | NDArray[np.intp]:
    """Which rows of a grid of blocks `height` rows high cover some of the `count` rows of a matrix."""
    return rows if height == 1 else np.arange(count)[rows] // height
