"""Takes small integers out of the 32-bit words that quantized checkpoints pack them in.

Sources: GPTQModel's `pack` (nn_modules/qlinear) and compressed-tensors' `pack_to_int32`: both fill a word
from its lowest bits. The bit patterns are spread into bytes by shifts and masks on wider words, so that numpy
works on whole vectors of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final

import numpy as np
from numpy.typing import NDArray

__all__ = ["PACKED_BITS", "unpack", "word_count"]

PACKED_BITS: Final = (2, 3, 4, 8)
"""Widths that `unpack` knows, in bits."""


def word_count(count: int, bits: int) -> int:
    """How many 32-bit words `count` integers of `bits` take without gaps."""
    return -(-count * bits // 32)


def unpack(words: NDArray[np.int32], bits: int, *, axis: int, count: int) -> NDArray[np.uint8]:
    """Integers 0 to 2^bits - 1 out of int32 words that are packed along `axis`.

    Little end first: integer i lies at bits i·bits to i·bits + bits - 1 of the stream that the words form
    along `axis`, lowest bit first. 2, 4 and 8 bits fill each word; 3 bits run across word borders, 32
    integers in three words, as GPTQ packs them.

    Returns uint8 of `words.shape` with `count` integers along `axis`. That axis is the one contiguous in
    memory: unpacking along axis 0 gives the transpose of a C-ordered array.

    Raises:
        ValueError: the width is not known, or the words are not as many as `count` integers take.
    """
    if bits not in _SPREAD:
        raise ValueError(f"{bits} bits: known are {', '.join(map(str, PACKED_BITS))}")
    if words.shape[axis] != word_count(count, bits):
        raise ValueError(f"{words.shape[axis]} words do not hold {count} integers of {bits} bits")
    lines = np.ascontiguousarray(np.moveaxis(words, axis, -1), dtype="<i4").view(np.uint8)
    return np.moveaxis(_SPREAD[bits](lines)[..., :count], -1, axis)


def _spread_2(octets: NDArray[np.uint8]) -> NDArray[np.uint8]:
    wide = octets.astype("<u4")  # ........ ........ ........ ddccbbaa
    wide |= wide << 12
    wide &= 0x000F000F
    wide |= wide << 6
    wide &= 0x03030303
    return wide.view(np.uint8)


def _spread_3(octets: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Three bytes hold eight integers."""
    gap = -octets.shape[-1] % 3
    if gap:
        octets = np.concatenate([octets, np.zeros((*octets.shape[:-1], gap), np.uint8)], axis=-1)
    triples = octets.reshape(*octets.shape[:-1], octets.shape[-1] // 3, 3)
    wide = triples[..., 2].astype("<u8")
    for index in (1, 0):
        wide <<= np.uint64(8)
        wide |= triples[..., index]
    for shift, mask in ((20, 0x00000FFF_00000FFF), (10, 0x003F003F_003F003F), (5, 0x07070707_07070707)):
        wide |= wide << np.uint64(shift)
        wide &= np.uint64(mask)
    return wide.view(np.uint8)


def _spread_4(octets: NDArray[np.uint8]) -> NDArray[np.uint8]:
    wide = octets.astype("<u2")
    wide |= wide << 4
    wide &= 0x0F0F
    return wide.view(np.uint8)


def _spread_8(octets: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return octets


_SPREAD: Final[Mapping[int, Callable[[NDArray[np.uint8]], NDArray[np.uint8]]]] = MappingProxyType(
    {2: _spread_2, 3: _spread_3, 4: _spread_4, 8: _spread_8}
)
