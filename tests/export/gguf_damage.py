"""Damages single tensors of a GGUF file, as a faulty exporter might."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from edgekit.gguf_header import read_gguf_header


def change_tensor(path: Path, name: str, change: Callable[[np.ndarray], np.ndarray]) -> None:
    """Replace a tensor by what `change` makes of it: float32 [rows, columns] of an F32 tensor, bytes uint8
    [rows, row bytes] of any other."""
    tensor = next(tensor for tensor in read_gguf_header(path).tensors if tensor.name == name)
    data = np.memmap(
        path, np.uint8, "r+", tensor.offset, (tensor.shape[1], tensor.size_bytes // tensor.shape[1])
    )
    rows = data.view(np.float32) if tensor.type_name == "F32" else data
    rows[:] = change(np.array(rows))
    data.flush()


def zeroed(rows: np.ndarray) -> np.ndarray:
    """All weights 0."""
    return np.zeros_like(rows)


def scaled(rows: np.ndarray) -> np.ndarray:
    """Five per cent too large; F32, or Q8_0 by its scales."""
    if rows.dtype == np.float32:
        return rows * np.float32(1.05)
    blocks = rows.reshape(rows.shape[0], -1, 34)
    scales = np.ascontiguousarray(blocks[..., :2]).view(np.float16)
    blocks[..., :2] = (scales.astype(np.float32) * 1.05).astype(np.float16).view(np.uint8)
    return blocks.reshape(rows.shape)


def halves_first(head_length: int) -> Callable[[np.ndarray], np.ndarray]:
    """Llama's q or k rows in the order of the checkpoint, which llama.cpp does not want."""

    def change(rows: np.ndarray) -> np.ndarray:
        pairs = rows.reshape(-1, head_length // 2, 2, rows.shape[1])
        return pairs.swapaxes(1, 2).reshape(rows.shape)

    return change
