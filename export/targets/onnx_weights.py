"""Matrices in the blocks of com.microsoft.MatMulNBits and GatherBlockQuantized.

A matrix [N, K] is cut along K into blocks of a power of two columns. B is uint8 [N, blocks, block·bits/8],
element 2i in the low nibble; scales are [N, blocks]; zero points uint8 [N, ceil(blocks·bits/8)], low nibble
first, left out where all are 2^(bits-1). Source: onnxruntime, docs/ContribOperators.md, matmul_nbits.cc.

A student's own integers are packed as they are; floats go through onnxruntime's quantizer. Long blocks get
zero points, which make up for much of what they lose against short ones and cost next to no time; with short
blocks they cost more than they give.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from edgekit.errors import ExportError, MissingExtraError, ModelFileError
from export.student.base import Array, StudentTensor, first_non_finite
from export.student.integers import IntegerMatrix
from export.targets.onnx_data import Put

try:
    from onnxruntime.capi._pybind_state import (  # type: ignore[import-untyped, unused-ignore]
        quantize_matmul_4bits,
        quantize_matmul_8bits,
    )
except ImportError as error:
    raise MissingExtraError("onnxruntime", extra="export", feature="writing an ONNX model") from error

__all__ = ["Blocks", "block_columns", "checked_float32", "pack", "plan_blocks", "put_packed", "row_chunks"]

SMALLEST_BLOCK: Final = 16
LARGEST_BLOCK: Final = 256
"""onnxruntime's CPU kernels have no faster path beyond (mlas, qnbitgemm.cpp)."""

_ZEROS_FROM_BLOCK: Final = 64
_CHUNK_ELEMENTS: Final = 1 << 22  # 16 MB as float32


@dataclass(frozen=True, slots=True, eq=False)
class Blocks:
    """How a matrix is cut."""

    bits: int
    block: int
    has_zeros: bool
    """Whether zero points are written."""
    order: NDArray[np.int64] | None
    """The student's columns in the order in which they are packed; None where it is the student's own."""
    exact: bool
    """Whether the student's own integers and scales are kept."""

    def count(self, columns: int) -> int:
        return -(-columns // self.block)

    def shapes(
        self, rows: int, columns: int
    ) -> tuple[tuple[int, int, int], tuple[int, int], tuple[int, int]]:
        """Of B, the scales and the zero points."""
        blocks = self.count(columns)
        return (
            (rows, blocks, self.block * self.bits // 8),
            (rows, blocks),
            (rows, -(-blocks * self.bits // 8)),
        )

    def joins(self, other: Blocks) -> bool:
        """Whether two matrices cut like this can lie on top of each other as one."""
        same_order = (
            self.order is other.order
            if self.order is None or other.order is None
            else np.array_equal(self.order, other.order)
        )
        return self.bits == other.bits and self.block == other.block and same_order


def block_columns(columns: int, at_most: int) -> int:
    """The largest block up to `at_most` that divides the columns, so that nothing is padded."""
    block = at_most
    while block > SMALLEST_BLOCK and columns % block:
        block //= 2
    return block


def plan_blocks(tensor: StudentTensor, *, bits: int, block_size: int) -> Blocks:
    """How a student's matrix is packed. Reads no codes; zero points where the student has its own.

    Args:
        bits: for floats, 4 or 8. The student's own integers of 2, 3 or 4 bits take 4, those of 8 take 8.
        block_size: for floats, a power of two.
    """
    if tensor.integers is not None:
        own = _own_blocks(tensor.integers)
        if own is not None:
            return own
    block = block_columns(tensor.shape[1], block_size)
    has_zeros = bits == 4 and block >= _ZEROS_FROM_BLOCK
    return Blocks(bits=bits, block=block, has_zeros=has_zeros, order=None, exact=False)


def _own_blocks(matrix: IntegerMatrix) -> Blocks | None:
    """None where the format cannot hold these integers."""
    columns, layout = matrix.shape[1], matrix.layout
    order = None
    if matrix.groups is None:
        bounds = np.arange(layout.group_columns, columns, layout.group_columns, dtype=np.int64)
    else:
        order = np.argsort(matrix.groups, kind="stable")
        bounds = np.flatnonzero(np.diff(matrix.groups[order])) + 1
    # The largest power of two of which every bound is a multiple.
    block = LARGEST_BLOCK
    while block > SMALLEST_BLOCK and (bounds % block).any():
        block //= 2
    if not bounds.size:
        block = block_columns(columns, block)
    if (bounds % block).any():
        return None
    bits = 8 if layout.bits == 8 else 4
    if layout.symmetric:
        return Blocks(bits=bits, block=block, has_zeros=False, order=order, exact=True)
    largest = max(int(matrix.zeros(rows).max()) for rows in row_chunks(*matrix.shape))
    if largest >= 1 << bits:
        # GPTQ stores zeros minus one, so that a zero can be one more than the codes.
        bits = 8
    if largest >= 1 << bits:
        return None
    return Blocks(bits=bits, block=block, has_zeros=True, order=order, exact=True)


def row_chunks(rows: int, columns: int) -> Iterator[slice]:
    """Rows in pieces that take a few megabytes."""
    step = max(1, _CHUNK_ELEMENTS // max(columns, 1))
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))


def pack(
    tensor: StudentTensor, blocks: Blocks, rows: slice
) -> tuple[NDArray[np.uint8], NDArray[np.float32], NDArray[np.uint8] | None]:
    """B, scales and zero points of some rows, shaped as `Blocks.shapes` says.

    Raises:
        ModelFileError: a weight or a scale is NaN or infinite.
    """
    if blocks.exact:
        assert tensor.integers is not None
        return _pack_integers(tensor, tensor.integers, blocks, rows)
    return _quantize(checked_float32(tensor, rows), blocks)


def put_packed(
    put: Put,
    parts: Sequence[tuple[StudentTensor, Blocks]],
    names: tuple[str, str, str | None],
    scale_type: str,
) -> None:
    """Pack matrices on top of each other into reserved tensors (B, scales, zero points).

    Raises:
        ModelFileError: see `pack`.
        ExportError: a scale does not fit `scale_type`.
    """
    offsets = [0, 0, 0]
    for tensor, blocks in parts:
        for rows in row_chunks(*tensor.shape):
            packed, scales, zeros = pack(tensor, blocks, rows)
            stored: list[Array | None] = [packed, _as_type(tensor, scales, scale_type), zeros]
            for index, (name, values) in enumerate(zip(names, stored, strict=True)):
                if name is not None and values is not None:
                    put(name, offsets[index], values)
                    offsets[index] += values.nbytes


def checked_float32(tensor: StudentTensor, rows: slice) -> NDArray[np.float32]:
    """Some rows of a weight as float32.

    Raises:
        ModelFileError: one is NaN or infinite.
    """
    values = tensor.read_float32(rows)
    bad = first_non_finite(values)
    if bad is not None:
        index = np.unravel_index(bad, values.shape)
        place = [int(index[0]) + (rows.start or 0), *(int(part) for part in index[1:])]
        raise ModelFileError(
            f"tensor '{tensor.name}' has the value {values[index]} at {place}",
            hint="the checkpoint is damaged: download it again",
        )
    return values


def _pack_integers(
    tensor: StudentTensor, matrix: IntegerMatrix, blocks: Blocks, rows: slice
) -> tuple[NDArray[np.uint8], NDArray[np.float32], NDArray[np.uint8] | None]:
    codes, columns = matrix.codes(rows), matrix.shape[1]
    first = np.arange(0, columns, blocks.block)  # a column of each block
    if blocks.order is not None:
        codes = codes[:, blocks.order]
    if matrix.groups is None:
        groups: NDArray[Any] = first // matrix.layout.group_columns
    else:
        assert blocks.order is not None
        groups = matrix.groups[blocks.order[first]]
    scales = np.ascontiguousarray(matrix.scales(rows)[:, groups], dtype=np.float32)
    if first_non_finite(scales) is not None:
        raise ModelFileError(
            f"tensor '{tensor.name}' has a scale that is NaN or infinite",
            hint="the checkpoint is damaged: download it again",
        )
    middle = 1 << (blocks.bits - 1)
    if matrix.layout.symmetric:
        # Fewer bits are moved to the middle of the wider code, where no zero point is needed.
        codes = codes + np.uint8(middle - (1 << (matrix.layout.bits - 1)))
        zeros = np.full(scales.shape, middle, np.uint8)
    else:
        zeros = matrix.zeros(rows)[:, groups].astype(np.uint8)
    missing = blocks.count(columns) * blocks.block - columns
    if missing:
        codes = np.pad(codes, ((0, 0), (0, missing)))  # products with nothing: any code will do
    packed = _pack_last_axis(codes, blocks.bits).reshape(blocks.shapes(codes.shape[0], columns)[0])
    return packed, scales, _pack_last_axis(zeros, blocks.bits) if blocks.has_zeros else None


def _quantize(
    values: NDArray[np.float32], blocks: Blocks
) -> tuple[NDArray[np.uint8], NDArray[np.float32], NDArray[np.uint8] | None]:
    """onnxruntime's own quantizer; it takes the transposed matrix."""
    rows, columns = values.shape
    shape, scale_shape, zero_shape = blocks.shapes(rows, columns)
    packed, scales = np.zeros(shape, np.uint8), np.zeros(scale_shape, np.float32)
    zeros = np.zeros(zero_shape, np.uint8)
    transposed = np.zeros((blocks.count(columns) * blocks.block, rows), np.float32)
    transposed[:columns] = values.T
    quantize = quantize_matmul_8bits if blocks.bits == 8 else quantize_matmul_4bits
    quantize(packed, transposed, scales, zeros, blocks.block, rows, columns, not blocks.has_zeros)
    return packed, scales, zeros if blocks.has_zeros else None


def _pack_last_axis(values: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    if bits == 8:
        return np.ascontiguousarray(values)
    if values.shape[-1] % 2:
        values = np.pad(values, [(0, 0)] * (values.ndim - 1) + [(0, 1)])
    low, high = values[..., 0::2], values[..., 1::2]
    return np.bitwise_or(low, np.left_shift(high, 4), dtype=np.uint8)


def _as_type(tensor: StudentTensor, scales: NDArray[np.float32], element: str) -> Array:
    if element == "float32":
        return scales
    with np.errstate(over="ignore"):
        halves = scales.astype(np.float16)
    if first_non_finite(halves) is not None:
        raise ExportError(
            f"tensor '{tensor.name}' has scales beyond float16's 65504", hint="export it for the CPU, as int4"
        )
    return halves
