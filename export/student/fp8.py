"""Reads FP8 checkpoints as DeepSeek and Qwen publish them: quant_method "fp8".

Per linear: `weight` F8_E4M3 [N, K] and its scales, by which it is multiplied (despite the name "inverse"):
`weight_scale_inv`, one for each block of `weight_block_size`; without that setting one scale a tensor or a
row, in `weight_scale` or `weight_scale_inv`. Source: DeepSeek-V3's inference/fp8_cast_bf16.py, transformers'
finegrained_fp8.py, vLLM's fp8.py.

What is stored decides whether a module is quantized: `modules_to_not_convert` and `ignored_layers` list what
its writer left out, and heads and embeddings are left out without being listed. Quantized activations do not
change the weights: their scales are passed over.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from edgekit.errors import ModelFileError
from export.student.base import StudentTensor
from export.student.float8 import FLOAT8_STORAGE, decode_float8
from export.student.module_parts import ModuleParts, is_float
from export.student.scale_grid import ScaleGrid, take_scales
from export.student.weight_reader import Parts

__all__ = ["ACTIVATION_SUFFIXES", "Fp8Reader", "float8_tensor", "open_reader"]

ACTIVATION_SUFFIXES: Final = (
    *(".input_scale", ".input_zero_point", ".output_scale", ".output_zero_point", ".activation_scale"),
    *(".q_scale", ".k_scale", ".v_scale", ".kv_scale", ".prob_scale"),
    *(".q_zero_point", ".k_zero_point", ".v_zero_point"),
)
"""Endings of the scales and zeros of quantized activations and KV caches."""


class Fp8Reader:
    """Reads the matrices of an "fp8" checkpoint. Satisfies `WeightReader`."""

    quantization = "FP8"
    ignored_suffixes = ACTIVATION_SUFFIXES

    def __init__(self, block: tuple[int, int] | None) -> None:
        """`block`: rows and columns that share a scale; None: one scale a tensor or a row."""
        self._block = block

    def weight(self, module: str, shape: tuple[int, ...], parts: Parts) -> StudentTensor | None:
        if is_float(parts):
            return None
        matrix = (shape[0], shape[1])
        stored = ModuleParts(module, parts)
        if self._block is not None:
            scales = take_scales(stored, "weight_scale_inv", matrix, self._block)
        else:
            name = "weight_scale_inv" if "weight_scale_inv" in stored else "weight_scale"
            by_tensor = name in stored and parts[name].shape in ((), (1,), (1, 1))
            scales = take_scales(stored, name, matrix, matrix if by_tensor else (1, matrix[1]))
        return float8_tensor(stored, matrix, scales)


def float8_tensor(stored: ModuleParts, shape: tuple[int, int], scales: ScaleGrid) -> StudentTensor:
    """The part "weight", FP8 of `shape`, times its scales, and no part left: `<module>.weight`.

    Raises:
        ModelFileError: the weight is missing, or of a wrong type or shape, or there is another part.
    """
    weight = stored.take("weight", storage=FLOAT8_STORAGE, shapes=[shape])
    stored.finish()

    def read(rows: slice) -> NDArray[np.float32]:
        return scales.multiply(decode_float8(weight.read()[rows], weight.storage), rows)

    return StudentTensor(
        name=f"{stored.module}.weight",
        shape=shape,
        storage="FP8",
        size_bytes=stored.size_bytes,
        _read=read,
    )


def open_reader(path: Path, config: Mapping[str, Any]) -> Fp8Reader:
    """The reader for a `quantization_config` in the config.json at `path`.

    Raises:
        ModelFileError: a setting is not known.
    """
    block = config.get("weight_block_size")
    if block is None:
        return Fp8Reader(None)
    if (
        not isinstance(block, list)
        or len(block) != 2
        or not all(type(length) is int and length > 0 for length in block)
    ):
        raise ModelFileError(f"{path}: weight_block_size is {block!r}, not rows and columns")
    return Fp8Reader((block[0], block[1]))
