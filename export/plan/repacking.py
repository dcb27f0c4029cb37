"""Which ggml type holds a student's integers as they are. Pure.

Each type stores a weight as scale x (integer - constant), or as scale x integer + minimum. A student's
weight is scale x (code - zero), so its integers move without being quantized again where

    Q4_0   d x (q - 8),  q 0..15        d in F16 for 32 weights
    Q5_0   d x (q - 16), q 0..31        d in F16 for 32 weights
    Q8_0   d x q, q -128..127           d in F16 for 32 weights
    Q4_1   d x q + m, q 0..15           d, m in F16 for 32 weights
    Q4_K   d x sc x q - dmin x mn       d, dmin in F16 for 256 weights; sc, mn 6 bits for 32

has room for them and the scale is shared by a multiple of the block. Source: ggml-common.h and
dequantize_row_* in ggml-quants.c of llama.cpp 0c1e57098.
"""

from __future__ import annotations

from dataclasses import dataclass

from export.student.integers import IntegerLayout

__all__ = ["Repacking", "repackings"]

_Q4_K_BLOCK = 256


@dataclass(frozen=True, slots=True)
class Repacking:
    """A ggml type that holds the integers. `exact`: every weight comes out as it was, bit for bit."""

    type_name: str
    exact: bool
    reason: str


def repackings(layout: IntegerLayout, columns: int) -> tuple[Repacking, ...]:
    """Types for a matrix with rows of `columns`, the best for a device first; none: it must be dequantized.

    Smaller goes first, and of equal ones that which ggml computes fastest on ARM: Q4_0 has interleaved
    kernels, Q4_1 has none.
    """
    if not layout.in_order or not layout.scales_fit_f16 or columns % 32:
        return ()
    per_row = layout.group_columns >= columns
    if layout.group_columns % 32 and not per_row:
        return ()
    found = []
    whole_blocks = columns % _Q4_K_BLOCK == 0 and (per_row or layout.group_columns % _Q4_K_BLOCK == 0)
    if layout.bits == 8:
        if layout.symmetric:
            found.append(Repacking("Q8_0", True, "8-bit integers around 128"))
        return tuple(found)
    if layout.bits < 4:
        # Codes and zeros of 3 bits differ by 7 (8 with GPTQ's zero of 8) at most.
        found.append(Repacking("Q4_0", True, f"{layout.bits}-bit integers widened"))
        return tuple(found)
    if layout.symmetric:
        found.append(Repacking("Q4_0", True, "4-bit integers around 8"))
    elif whole_blocks:
        found.append(Repacking("Q4_K", True, "one scale for 256 weights; the zero is the 6-bit minimum"))
    else:
        found.append(Repacking("Q4_1", False, "the minimum, -scale x zero, is rounded to F16"))
        found.append(Repacking("Q5_0", True, "integer less zero needs 5 bits"))
    return tuple(found)
