"""ggml's own quantizer and dequantizer, called row by row: the bytes are those that llama-quantize writes."""

from __future__ import annotations

import ctypes
from functools import cache
from types import MappingProxyType
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from edgekit.errors import ExportError
from edgekit.gguf_header.tensor_types import TENSOR_TYPES, TensorType

__all__ = ["TYPES", "dequantize_rows", "quantize_rows", "row_bytes"]

TYPES: Final[MappingProxyType[str, TensorType]] = MappingProxyType(
    {kind.name: kind for kind in TENSOR_TYPES.values()}
)
_NUMBERS: Final = MappingProxyType({kind.name: number for number, kind in TENSOR_TYPES.items()})


def row_bytes(type_name: str, columns: int) -> int:
    """Bytes of one row.

    Raises:
        ExportError: the type's block does not divide the row.
    """
    kind = TYPES[type_name]
    if columns % kind.block_length:
        raise ExportError(
            f"{type_name} stores {kind.block_length} weights together; a row of {columns} is no multiple",
            hint="choose a quantization with blocks of 32, such as Q4_0 or Q8_0",
        )
    return columns // kind.block_length * kind.block_bytes


def quantize_rows(
    values: NDArray[np.float32],
    type_name: str,
    *,
    importance: NDArray[np.float32] | None = None,
) -> NDArray[np.uint8]:
    """Quantize float32 [rows, columns] to uint8 [rows, row bytes], on the calling thread.

    ctypes lets go of the interpreter meanwhile: whoever has several parts can have them quantized together.

    Args:
        importance: float32 [columns], how much each column matters: the mean square of what the matrix is
            multiplied with. None: ggml weighs by the weights themselves.

    Raises:
        ExportError: the type's block does not divide the rows.
    """
    rows, columns = values.shape
    values = np.ascontiguousarray(values, dtype=np.float32)
    packed = np.empty((rows, row_bytes(type_name, columns)), np.uint8)
    weights = None if importance is None else np.ascontiguousarray(importance, dtype=np.float32)
    if weights is not None and weights.shape != (columns,):
        raise ValueError(f"importance of shape {weights.shape} for rows of {columns}")
    native = _native()

    number = _NUMBERS[type_name]
    native.ggml_quantize_init(number)
    native.ggml_quantize_chunk(
        number,
        values.ctypes.data,
        packed.ctypes.data,
        0,
        rows,
        columns,
        None if weights is None else weights.ctypes.data,
    )
    return packed


def dequantize_rows(packed: NDArray[np.uint8], type_name: str, columns: int) -> NDArray[np.float32]:
    """The inverse: uint8 [rows, row bytes] to float32 [rows, columns], as ggml itself computes it."""
    packed = np.ascontiguousarray(packed)
    values = np.empty((packed.shape[0], columns), np.float32)
    if type_name == "F32":
        values[:] = packed.view(np.float32).reshape(values.shape)
        return values
    to_float = _native().ggml_get_type_traits(_NUMBERS[type_name]).contents.to_float

    to_float(packed.ctypes.data, values.ctypes.data, values.size)
    return values


class _TypeTraits(ctypes.Structure):
    """struct ggml_type_traits of ggml.h."""

    _fields_ = [
        ("type_name", ctypes.c_char_p),
        ("blck_size", ctypes.c_int64),
        ("blck_size_interleave", ctypes.c_int64),
        ("type_size", ctypes.c_size_t),
        ("is_quantized", ctypes.c_bool),
        ("to_float", ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)),
        ("from_float_ref", ctypes.c_void_p),
    ]


@cache
def _native() -> Any:
    from edgekit.engine.llama_library import load_library

    native = load_library()._lib
    native.ggml_quantize_chunk.argtypes = [
        ctypes.c_int,
        ctypes.c_void_p,
        ctypes.c_void_p,
        ctypes.c_int64,
        ctypes.c_int64,
        ctypes.c_int64,
        ctypes.c_void_p,
    ]
    native.ggml_quantize_chunk.restype = ctypes.c_size_t
    native.ggml_quantize_init.argtypes = [ctypes.c_int]
    native.ggml_quantize_init.restype = None
    native.ggml_get_type_traits.argtypes = [ctypes.c_int]
    native.ggml_get_type_traits.restype = ctypes.POINTER(_TypeTraits)
    return native
