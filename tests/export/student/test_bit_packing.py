"""Integers in 32-bit words, against a packer that sets one bit at a time."""

from __future__ import annotations

import time

import numpy as np
import pytest
from numpy.typing import NDArray

from export.student.bit_packing import PACKED_BITS, unpack, word_count


def pack_bit_by_bit(lines: list[list[int]], bits: int) -> NDArray[np.int32]:
    """Each line of integers as one stream of bits, cut into words."""
    packed = []
    for line in lines:
        stream = 0
        for index, value in enumerate(line):
            stream |= value << (index * bits)
        words = -(-len(line) * bits // 32)
        packed.append([(stream >> (32 * word)) & 0xFFFFFFFF for word in range(words)])
    return np.array(packed, np.uint32).view(np.int32)


@pytest.mark.parametrize("bits", PACKED_BITS)
@pytest.mark.parametrize("count", [32, 96, 40, 7])
def test_unpack__gives_what_was_packed_along_either_axis(bits: int, count: int) -> None:
    values = np.random.default_rng(bits).integers(0, 1 << bits, (5, count))
    words = pack_bit_by_bit(values.tolist(), bits)
    along_rows = unpack(words, bits, axis=1, count=count)
    assert along_rows.dtype == np.uint8 and np.array_equal(along_rows, values)
    along_columns = unpack(words.T, bits, axis=0, count=count)
    assert np.array_equal(along_columns, values.T)
    assert along_columns.T.strides[-1] == 1


def test_unpack__three_bit_integers_cross_word_borders() -> None:
    # GPTQ: the 11th integer has two bits in the first word and one in the second, the 22nd one and two.
    first, second, third = 1 << 30 | 1 << 31, 1 | 1 << 31, 0
    words = np.array([[first, second, third]], np.uint32).view(np.int32)
    assert np.flatnonzero(unpack(words, 3, axis=1, count=32)).tolist() == [10, 21]
    assert unpack(words, 3, axis=1, count=32)[0, [10, 21]].tolist() == [7, 1]


def test_unpack__does_not_change_the_words() -> None:
    words = pack_bit_by_bit([[3] * 8, [5] * 8], 4)
    words.flags.writeable = False
    assert unpack(words, 4, axis=1, count=8).tolist() == [[3] * 8, [5] * 8]


@pytest.mark.parametrize(("bits", "count"), [(4, 24), (4, 7), (3, 33), (5, 8)])
def test_unpack__words_that_do_not_hold_the_count_are_refused(bits: int, count: int) -> None:
    with pytest.raises(ValueError, match="bits"):
        unpack(np.zeros((2, 2), np.int32), bits, axis=1, count=count)


def test_word_count__is_the_ceiling() -> None:
    assert [word_count(count, 3) for count in (1, 10, 11, 32, 33)] == [1, 1, 2, 3, 4]


@pytest.mark.parametrize("bits", PACKED_BITS)
def test_unpack__a_large_matrix_takes_a_fraction_of_a_second(bits: int) -> None:
    words = np.random.default_rng(1).integers(-(2**31), 2**31, (8960 * bits // 32, 1536), dtype=np.int32)
    started_s = time.process_time()
    assert unpack(words, bits, axis=0, count=8960).shape == (8960, 1536)
    assert (
        time.process_time() - started_s < 2
    )  # 0.05 s on an idle desktop: the bound is for loops over values
