"""The rows of one tensor as a GGUF file stores them: reordered, converted, packed or quantized."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache

import numpy as np
from numpy.typing import NDArray

from edgekit.errors import ModelFileError
from export.plan.tensors import TensorPlan
from export.student.base import Array, StudentTensor, as_float32, first_non_finite
from export.student.config import CheckpointConfig
from export.targets.ggml import quantize_rows
from export.targets.gguf_packing import pack_rows

__all__ = ["converted_rows"]

_CHUNK_WEIGHTS = 1 << 21
"""Weights converted at a time, by each thread: 8 MiB of float32."""
_THREADS = len(os.sched_getaffinity(0))


def converted_rows(
    config: CheckpointConfig,
    tensor: StudentTensor,
    plan: TensorPlan,
    importance: NDArray[np.float32] | None,
) -> Iterator[Array]:
    """What is to be written of a tensor, a few rows at a time: C-contiguous, to be written as bytes.

    Raises:
        ModelFileError: a weight is NaN or infinite, or does not fit the type.
    """
    head_length = config.head_length if _is_rotated(config, tensor.name) else 1

    def convert(part: slice) -> Array:
        values = _converted(tensor, plan, part, importance)
        return values if head_length == 1 else _pairs_side_by_side(values, head_length)

    rows, width = tensor.shape[0], int(np.prod(tensor.shape[1:], dtype=np.int64))
    # Whole heads: reordering stays within one.
    step = max(1, _CHUNK_WEIGHTS // max(1, width) // head_length) * head_length
    yield from _ahead(convert, [slice(start, min(start + step, rows)) for start in range(0, rows, step)])


def _ahead(convert: Callable[[slice], Array], parts: Sequence[slice]) -> Iterator[Array]:
    """Results in order, computed on all processors a few parts ahead of whoever takes them.

    numpy and ggml let go of the interpreter where the work is.
    """
    waiting: deque[Future[Array]] = deque()
    try:
        for part in parts:
            waiting.append(_pool().submit(convert, part))
            if len(waiting) > _THREADS:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(_THREADS, thread_name_prefix="convert")


def _is_rotated(config: CheckpointConfig, name: str) -> bool:
    return config.architecture == "llama" and name.split(".")[-2] in ("q_proj", "k_proj")


def _pairs_side_by_side(rows: Array, head_length: int) -> Array:
    """Reorder each head's rows from (first halves, second halves) to interleaved pairs.

    Checkpoints rotate row i with row i + head_length/2; llama.cpp's "llama" rotates neighbours.
    """
    halves = rows.reshape(-1, 2, head_length // 2, *rows.shape[1:])
    reordered: Array = np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(rows.shape)
    return reordered


def _converted(
    tensor: StudentTensor, plan: TensorPlan, rows: slice, importance: NDArray[np.float32] | None
) -> Array:
    if plan.method == "repack":
        assert tensor.integers is not None
        return pack_rows(tensor.integers, plan.type_name, rows)
    values = tensor.read(rows)
    _refuse_non_finite(tensor, values, rows)
    if plan.method == "copy":
        return values
    floats = as_float32(values)
    if plan.type_name == "F32":
        return floats
    if plan.type_name == "BF16":
        return _to_bf16(tensor, floats)
    if plan.type_name == "F16":
        return _to_f16(tensor, floats)
    return quantize_rows(floats, plan.type_name, importance=importance)


def _to_f16(tensor: StudentTensor, floats: NDArray[np.float32]) -> Array:
    with np.errstate(over="ignore"):
        halves = floats.astype(np.float16)
    if first_non_finite(halves) is not None:
        raise ModelFileError(
            f"tensor '{tensor.name}' has values beyond F16's 65504", hint="export it as BF16 or F32"
        )
    return halves


def _to_bf16(tensor: StudentTensor, floats: NDArray[np.float32]) -> Array:
    """Round float32 to the nearest BF16, ties to even; the result is uint16 bit patterns."""
    bits = floats.view(np.uint32)
    rounded: Array = ((bits + (0x7FFF + ((bits >> 16) & 1))) >> 16).astype(np.uint16)
    if first_non_finite(rounded) is not None:
        raise ModelFileError(
            f"tensor '{tensor.name}' has values that BF16 rounds to infinity", hint="export it as F32"
        )
    return rounded


def _refuse_non_finite(tensor: StudentTensor, values: Array, rows: slice) -> None:
    index = first_non_finite(values)
    if index is not None:
        position = [int(part) for part in np.unravel_index(index, values.shape)]
        position[0] += rows.start
        raise ModelFileError(
            f"tensor '{tensor.name}' holds NaN or infinity at {position}",
            hint="the checkpoint is damaged, or its training diverged: get another one",
        )
