"""Eight-bit floats against torch, bit pattern by bit pattern."""

from __future__ import annotations

import numpy as np
import pytest
from quantized_fixture import FIXTURES

from export.student.float8 import FLOAT8_STORAGE, decode_float8
from export.student.safetensors_file import open_safetensors


@pytest.mark.parametrize("storage", FLOAT8_STORAGE)
def test_decode_float8__equals_torch_for_all_bit_patterns(storage: str) -> None:
    expected = open_safetensors(FIXTURES / "compressed_tensors/float8.safetensors").tensors[storage].read()
    values = decode_float8(np.arange(256, dtype=np.uint8), storage)
    assert values.dtype == np.float32
    assert np.array_equal(values, expected, equal_nan=True)
    finite = np.isfinite(expected)
    assert np.array_equal(values[finite].view(np.uint32), expected[finite].view(np.uint32))


def test_decode_float8__keeps_the_shape() -> None:
    bits = np.array([[0x38, 0xB8, 0x7E], [0x01, 0x00, 0xFF]], np.uint8)
    values = decode_float8(bits, "F8_E4M3")
    assert values[0].tolist() == [1.0, -1.0, 448.0]
    assert values[1, :2].tolist() == [2.0**-9, 0.0]
    assert np.isnan(values[1, 2])
