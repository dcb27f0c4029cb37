"""Packs a student's own integers into ggml's blocks, by numpy alone. What fits: export/plan/repacking.py."""

from __future__ import annotations

from collections.abc import Callable
from types import MappingProxyType
from typing import Final

import numpy as np
from numpy.typing import NDArray

from export.student.integers import ALL_ROWS, IntegerMatrix

__all__ = ["PACKED_TYPES", "pack_rows"]

Steps = NDArray[np.int16]
Halves = NDArray[np.float16]
Bytes = NDArray[np.uint8]


def pack_rows(matrix: IntegerMatrix, type_name: str, rows: slice = ALL_ROWS) -> Bytes:
    """Some rows as uint8 [rows, row bytes] of a type that `repackings` names for the matrix."""
    columns, layout = matrix.shape[1], matrix.layout
    if type_name == "Q4_0" and layout.bits == 4 and layout.symmetric:
        return _q4_0_from_nibbles(matrix, rows)
    codes, scales, zeros = matrix.codes(rows), matrix.scales(rows).astype(np.float16), matrix.zeros(rows)
    block = 256 if type_name == "Q4_K" else 32
    # The group of each block: a group that is as long as the row may end with it.
    groups = np.arange(0, columns, block) // layout.group_columns
    codes = codes.reshape(codes.shape[0], -1, block)
    packed = _PACKERS[type_name](codes, scales[:, groups], zeros[:, groups])
    return packed.reshape(packed.shape[0], -1)


def _q4_0_from_nibbles(matrix: IntegerMatrix, rows: slice) -> Bytes:
    """The codes are Q4_0's own; only their order within a block of 32, which is four words, differs."""
    nibbles, scales = np.ascontiguousarray(matrix.nibbles(rows)), matrix.scales(rows).astype(np.float16)
    words = nibbles.view("<u4").reshape(nibbles.shape[0], -1, 4)
    packed = np.empty((*words.shape[:2], 18), np.uint8)
    groups = np.arange(words.shape[1]) * 32 // matrix.layout.group_columns
    packed[..., :2] = scales[:, groups, None].view(np.uint8)
    # Weights 0..15 become the low halves of the bytes, 16..31 the high ones.
    paired = _spread(words[..., 2:])
    paired <<= np.uint64(4)
    paired |= _spread(words[..., :2])
    packed[..., 2:] = paired.view(np.uint8)
    return packed.reshape(packed.shape[0], -1)


def _spread(words: NDArray[np.uint32]) -> NDArray[np.uint64]:
    """The eight nibbles of a word as eight bytes."""
    wide = words.astype("<u8")
    for shift, mask in ((16, 0x0000FFFF_0000FFFF), (8, 0x00FF00FF_00FF00FF), (4, 0x0F0F0F0F_0F0F0F0F)):
        wide |= wide << np.uint64(shift)
        wide &= np.uint64(mask)
    return wide


def _q4_0(codes: Bytes, scales: Halves, zeros: Steps) -> Bytes:
    return _joined(scales, _nibbles(_shifted(codes, zeros, 8)))


def _q4_1(codes: Bytes, scales: Halves, zeros: Steps) -> Bytes:
    minimums = (-scales.astype(np.float32) * zeros).astype(np.float16)
    return _joined(scales, minimums, _nibbles(codes))


def _q5_0(codes: Bytes, scales: Halves, zeros: Steps) -> Bytes:
    shifted = _shifted(codes, zeros, 16)
    # Bit j of the 32-bit word is the fifth bit of weight j.
    fifth = np.packbits(shifted >> np.uint8(4), axis=-1, bitorder="little")
    return _joined(scales, fifth, _nibbles(shifted & np.uint8(15)))


def _q8_0(codes: Bytes, scales: Halves, zeros: Steps) -> Bytes:
    return _joined(scales, _shifted(codes, zeros, 0).view(np.uint8))


def _q4_k(codes: Bytes, scales: Halves, zeros: Steps) -> Bytes:
    # dmin = d and all eight sc are 1, so that w = d x q - d x zero.
    # get_scale_min_k4 of ggml-quants.c: bytes 0..3 hold sc of sub-blocks 0..3 and, in the two high bits, the
    # rest of those of 4..7; bytes 4..7 the same of mn; bytes 8..11 the low four bits of sc and mn of 4..7.
    minimums = zeros.astype(np.uint8)
    low, high = minimums & np.uint8(15), minimums >> np.uint8(4)
    one = np.ones_like(minimums)
    six_bit = np.stack(
        [one] * 4 + [minimums | (high << np.uint8(6))] * 4 + [one | (low << np.uint8(4))] * 4, axis=-1
    )
    # Of each 64 weights, the first 32 are the low nibbles.
    parts = codes.reshape(*codes.shape[:-1], 4, 2, 32)
    nibbles = (parts[..., 0, :] | (parts[..., 1, :] << np.uint8(4))).reshape(*codes.shape[:-1], 128)
    return _joined(scales, scales, six_bit, nibbles)


def _shifted(codes: Bytes, zeros: Steps, middle: int) -> Bytes:
    """code - zero + middle; as int8's bits where middle is 0."""
    shifted: Bytes = (codes - (zeros[..., None] - middle).astype(np.int16)).astype(np.int8).view(np.uint8)
    return shifted


def _nibbles(codes: Bytes) -> Bytes:
    """Byte j of a block: weight j low, weight j + 16 high."""
    low, high = codes[..., :16], codes[..., 16:]
    return low | (high << np.uint8(4))


def _joined(*parts: NDArray[np.float16] | Bytes) -> Bytes:
    """Parts of a block side by side, [rows, blocks, bytes]; halves are [rows, blocks]."""
    return np.concatenate(
        [part[..., None].view(np.uint8) if part.dtype == np.float16 else part for part in parts], axis=-1
    )


_PACKERS: Final = MappingProxyType[str, Callable[[Bytes, Halves, Steps], Bytes]](
    {"Q4_0": _q4_0, "Q4_1": _q4_1, "Q5_0": _q5_0, "Q8_0": _q8_0, "Q4_K": _q4_k}
)
PACKED_TYPES: Final = frozenset(_PACKERS)
