"""Packing against ggml's own dequantizer."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from export.plan.repacking import repackings
from export.student.integers import IntegerLayout, IntegerMatrix
from export.targets.ggml import dequantize_rows, row_bytes
from export.targets.gguf_packing import PACKED_TYPES, pack_rows

ROWS, COLUMNS = 6, 512


def make_matrix(bits: int, group: int, *, symmetric: bool, columns: int = COLUMNS) -> IntegerMatrix:
    """Random codes that use the whole range, zeros up to 2^bits (GPTQ v1 has them), F16 scales."""
    random = np.random.default_rng([bits, group, symmetric])
    groups = -(-columns // group)
    codes = random.integers(0, 1 << bits, (ROWS, columns)).astype(np.uint8)
    codes[0, :2] = 0, (1 << bits) - 1
    zeros = random.integers(0, (1 << bits) + 1, (ROWS, groups)).astype(np.int16)
    zeros[0, 0], zeros[-1, 0] = 0, 1 << bits
    if symmetric:
        zeros[:] = 1 << (bits - 1)
    scales = random.uniform(1e-4, 0.1, (ROWS, groups)).astype(np.float16).astype(np.float32)
    layout = IntegerLayout(bits, group, symmetric=symmetric, in_order=True, scales_fit_f16=True)
    return IntegerMatrix(
        (ROWS, columns), layout, None, lambda r: codes[r], lambda r: scales[r], lambda r: zeros[r]
    )


CASES = [
    (bits, group, symmetric, found.type_name, found.exact)
    for bits, group, symmetric in product((2, 3, 4, 8), (32, 64, 128, 256, COLUMNS), (True, False))
    for found in repackings(IntegerLayout(bits, group, symmetric, True, True), COLUMNS)
]


def test_cases__every_packed_type_is_among_them() -> None:
    assert {case[3] for case in CASES} == PACKED_TYPES


@pytest.mark.parametrize(("bits", "group", "symmetric", "type_name", "exact"), CASES)
def test_pack_rows__ggml_reads_the_students_values(
    bits: int, group: int, symmetric: bool, type_name: str, exact: bool
) -> None:
    matrix = make_matrix(bits, group, symmetric=symmetric)
    packed = pack_rows(matrix, type_name)
    assert packed.shape == (ROWS, row_bytes(type_name, COLUMNS))
    values, wanted = dequantize_rows(packed, type_name, COLUMNS), matrix.dequantized()
    if exact:
        assert np.array_equal(values, wanted)
    else:
        steps = np.repeat(matrix.scales(), group, axis=1)[:, :COLUMNS]
        # Half a unit in the last place of m = -scale x zero, in steps: 2^-11 x zero, zero <= 16.
        assert np.abs((values - wanted) / steps).max() <= 16 * 2**-11 * 1.01
        assert not np.array_equal(values, wanted)


def test_pack_rows__some_rows_are_those_of_the_whole() -> None:
    matrix = make_matrix(4, 128, symmetric=False)
    assert np.array_equal(pack_rows(matrix, "Q4_1", slice(2, 5)), pack_rows(matrix, "Q4_1")[2:5])


@pytest.mark.parametrize(
    "layout",
    [
        IntegerLayout(4, 128, symmetric=True, in_order=False, scales_fit_f16=True),
        IntegerLayout(4, 128, symmetric=True, in_order=True, scales_fit_f16=False),
        IntegerLayout(4, 16, symmetric=True, in_order=True, scales_fit_f16=True),
        IntegerLayout(8, 128, symmetric=False, in_order=True, scales_fit_f16=True),
    ],
    ids=["activation order", "tiny BF16 scales", "groups of 16", "8 bit with zeros"],
)
def test_repackings__what_no_type_holds_has_none(layout: IntegerLayout) -> None:
    assert repackings(layout, COLUMNS) == ()


def test_repackings__rows_that_no_block_divides_have_none() -> None:
    assert repackings(IntegerLayout(4, 48, True, True, True), 48) == ()


def test_repackings__asymmetric_4_bit_offers_a_small_type_and_an_exact_one() -> None:
    found = repackings(IntegerLayout(4, 128, symmetric=False, in_order=True, scales_fit_f16=True), 1536)
    assert [(one.type_name, one.exact) for one in found] == [("Q4_1", False), ("Q5_0", True)]
