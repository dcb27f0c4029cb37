"""Eight-bit floats to float32, by a table of their 256 bit patterns.

Sources: "FP8 Formats for Deep Learning" (arXiv 2209.05433) and the Open Compute Project's OFP8 specification.
E4M3, as torch's float8_e4m3fn, has no infinities: only 0x7F and 0xFF are NaN. E5M2 is a float16 cut to its
upper byte.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

import numpy as np
from numpy.typing import NDArray

__all__ = ["FLOAT8_STORAGE", "decode_float8"]


def _e4m3() -> NDArray[np.float32]:
    bits = np.arange(256, dtype=np.int32)
    sign = np.where(bits & 0x80, np.float32(-1), np.float32(1))
    exponent, fraction = (bits >> 3) & 0x0F, bits & 0x07
    normal = np.ldexp((8 + fraction).astype(np.float32), exponent - 10)  # 1.fff · 2^(exponent - 7)
    subnormal = np.ldexp(fraction.astype(np.float32), -9)  # 0.fff · 2^-6
    values = sign * np.where(exponent == 0, subnormal, normal)
    values[[0x7F, 0xFF]] = np.nan
    return values.astype(np.float32)


def _e5m2() -> NDArray[np.float32]:
    return (np.arange(256, dtype=np.uint16) << 8).view(np.float16).astype(np.float32)


_TABLES: Final[Mapping[str, NDArray[np.float32]]] = MappingProxyType({"F8_E4M3": _e4m3(), "F8_E5M2": _e5m2()})

FLOAT8_STORAGE: Final = tuple(_TABLES)
"""What safetensors calls the types that `decode_float8` knows."""


def decode_float8(bits: NDArray[np.uint8], storage: str) -> NDArray[np.float32]:
    """Bit patterns of `storage`, one of FLOAT8_STORAGE, as float32 of the same shape, exactly."""
    return _TABLES[storage].take(bits)
