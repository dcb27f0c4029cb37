"""Reads AWQ weights in the GEMM layout: checkpoints of AutoAWQ, and of GPTQModel with the method "awq".

A module [N, K] is stored as

    qweight  I32 [K, N/8]   codes of 4 bits, packed along N
    qzeros   I32 [G, N/8]   zeros, packed alike
    scales   F16, BF16 or F32 [G, N]

with value[n, k] = scale[g, n] · (code[k, n] - zero[g, n]), g = k // group_size. The eight slots of a word,
from its lowest bits, hold columns 0, 2, 4, 6, 1, 3, 5, 7. Zeros are stored as they are.

Source: `WQLinear_GEMM.from_linear` (awq/modules/linear/gemm.py) and `dequantize_gemm`
(awq/utils/packing_utils.py) of AutoAWQ 0.2.9; `AwqGEMMLinear` (nn_modules/qlinear/gemm_awq.py) of GPTQModel
7.7.0.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from edgekit.errors import ModelFileError
from export.student.base import StudentTensor, as_float32
from export.student.integers import IntegerLayout, IntegerMatrix
from export.student.packed_parts import check_parts, check_scales, is_packed, part, row_span
from export.student.packed_settings import DynamicRules, PackedSettings
from export.student.weight_reader import FLOAT_STORAGE, Parts

__all__ = ["AwqReader", "open_reader"]

BITS: Final = 4
PER_WORD: Final = 32 // BITS
SYMMETRIC_ZERO: Final = 1 << (BITS - 1)
# Columns in the low and in the high halves of a word's four bytes.
LOW_COLUMNS: Final = (0, 4, 1, 5)
HIGH_COLUMNS: Final = (2, 6, 3, 7)
LOW_HALVES: Final = np.int32(0x0F0F0F0F)
AGAIN_HINT: Final = (
    "save it again with version 'gemm' and 4 bits with AutoAWQ or GPTQModel, "
    "or give the checkpoint that it was quantized from"
)
PARTS: Final = ("qweight", "qzeros", "scales", "bias")


class AwqReader:
    """Reads the modules of one AWQ checkpoint. Satisfies `WeightReader`.

    What is packed is seen in the files: `modules_to_not_convert` names are matched loosely by those that
    write them, and are not needed here.
    """

    quantization: Final = "AWQ"
    ignored_suffixes: Final[tuple[str, ...]] = ()

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        self._settings = PackedSettings(path, settings, AGAIN_HINT)
        self._dynamic = DynamicRules(path, settings)
        for overrides in ({}, *self._dynamic.overrides()):
            self._group_size(overrides)

    def weight(self, module: str, shape: tuple[int, ...], parts: Parts) -> StudentTensor | None:
        if not is_packed(parts):
            return None
        overrides = self._dynamic.for_packed(module)
        if module.endswith("embed_tokens"):
            raise ModelFileError(
                f"module '{module}': the embedding is packed by AWQ, which is not read", hint=AGAIN_HINT
            )
        check_parts(module, parts, PARTS)
        has_zeros = "qzeros" in parts or self._settings.get("zero_point", True)
        return _tensor(module, (shape[0], shape[1]), parts, self._group_size(overrides), bool(has_zeros))

    def _group_size(self, overrides: Mapping[str, Any]) -> int:
        """Checks the settings. -1: one group a row."""
        settings = self._settings.replaced(overrides)
        name = settings.storage_format(("version", "format", "checkpoint_format"), default="gemm")
        if settings.get("backend") == "llm-awq":
            name = "llm-awq"
        if name != "gemm":
            settings.fail(f"the version is {name!r}; only 'gemm' is known")
        bits = settings.get("bits", settings.get("w_bit"))
        if bits != BITS or type(bits) is not int:
            settings.fail(f"bits is {bits!r}; AWQ is read with {BITS}")
        settings.refuse_unknown_packing("rotation")
        return settings.group_columns("q_group_size" if "q_group_size" in settings.values else "group_size")


def open_reader(path: Path, settings: Mapping[str, Any]) -> AwqReader:
    """The reader for a checkpoint's `quantization_config`; `path` is where that is from, for errors.

    Raises:
        ModelFileError: a setting is missing or not known: another layout such as gemv, another width.
    """
    return AwqReader(path, settings)


def _tensor(
    module: str, shape: tuple[int, int], parts: Parts, group_size: int, has_zeros: bool
) -> StudentTensor:
    rows, columns = shape
    if rows % PER_WORD:
        raise ModelFileError(f"module '{module}': AWQ packs rows by {PER_WORD}; there are {rows}")
    group_size = columns if group_size == -1 else group_size
    groups = -(-columns // group_size)
    says = f"groups of {group_size}"
    qweight = part(module, parts, "qweight", ("I32",), (columns, rows // PER_WORD), f"{BITS} bits")
    qzeros = part(module, parts, "qzeros", ("I32",), (groups, rows // PER_WORD), says) if has_zeros else None
    scales = part(module, parts, "scales", FLOAT_STORAGE, (groups, rows), says)

    def read_codes(span: slice) -> NDArray[np.uint8]:
        return _unpack(qweight.read(), row_span(span, rows))

    def read_scales(span: slice) -> NDArray[np.float32]:
        return np.ascontiguousarray(as_float32(scales.read()[:, row_span(span, rows)]).T)

    def read_zeros(span: slice) -> NDArray[np.int16]:
        inside = row_span(span, rows)
        if qzeros is None:
            return np.full((inside.stop - inside.start, groups), SYMMETRIC_ZERO, np.int16)
        return _unpack(qzeros.read(), inside).astype(np.int16)

    def read_nibbles(span: slice) -> NDArray[np.uint8]:
        return _unpack_pairs(qweight.read(), row_span(span, rows))

    layout = IntegerLayout(
        bits=BITS,
        group_columns=group_size,
        symmetric=bool((read_zeros(slice(None)) == SYMMETRIC_ZERO).all()),
        in_order=True,
        scales_fit_f16=check_scales(module, scales),
    )
    matrix = IntegerMatrix(
        shape,
        layout,
        None,
        read_codes,
        read_scales,
        read_zeros,
        _nibbles=None if columns % 2 else read_nibbles,
    )
    return StudentTensor(
        name=f"{module}.weight",
        shape=shape,
        storage=f"INT{BITS}",
        size_bytes=sum(stored.size_bytes for stored in parts.values()),
        _read=matrix.dequantized,
        integers=matrix,
    )


def _lines(words: NDArray[np.int32], span: slice) -> tuple[NDArray[np.int32], slice]:
    """Words that hold the columns `span`, [N/8 of them, K], and where the span lies in their columns."""
    first = span.start // PER_WORD
    lines = np.ascontiguousarray(words[:, first : -(-span.stop // PER_WORD)].T, dtype="<i4")
    return lines, slice(span.start - first * PER_WORD, span.stop - first * PER_WORD)


def _unpack(words: NDArray[np.int32], span: slice) -> NDArray[np.uint8]:
    """The columns `span` out of words [K, N/8], as rows: uint8 [columns of the span, K]."""
    lines, inside = _lines(words, span)
    return _rows(lines & LOW_HALVES, (lines >> BITS) & LOW_HALVES)[inside]


def _unpack_pairs(words: NDArray[np.int32], span: slice) -> NDArray[np.uint8]:
    """The same, of each two codes along K the first in a byte's low half: [columns of the span, K/2]."""
    lines, inside = _lines(words, span)
    first, second = lines[:, 0::2], lines[:, 1::2]
    low = (first & LOW_HALVES) | ((second & LOW_HALVES) << BITS)
    high = ((first >> BITS) & LOW_HALVES) | (second & ~LOW_HALVES)
    return _rows(low, high)[inside]


def _rows(low: NDArray[np.int32], high: NDArray[np.int32]) -> NDArray[np.uint8]:
    """Bytes of the words of LOW_COLUMNS and HIGH_COLUMNS as rows, in the order of the columns."""
    rows = np.empty((low.shape[0], PER_WORD, low.shape[1]), np.uint8)
    for words, columns in ((low, LOW_COLUMNS), (high, HIGH_COLUMNS)):
        octets = words.view(np.uint8).reshape(*words.shape, 4)
        for octet, column in enumerate(columns):
            rows[:, column] = octets[..., octet]
    return rows.reshape(low.shape[0] * PER_WORD, low.shape[1])
