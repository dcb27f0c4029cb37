"""The file of weights beside an ONNX graph: laid out first, then filled piece by piece.

onnx's own writer wants every tensor in memory; this one knows their sizes before it reads the first. Source
of the format: onnx.proto, TensorProto.external_data.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

import numpy as np

from edgekit.errors import ExportError, MissingExtraError
from export.progress import Progress
from export.student.base import Array

try:
    import onnx
except ImportError as error:
    raise MissingExtraError("onnx", extra="export", feature="writing an ONNX model") from error

__all__ = ["ELEMENT_TYPES", "Fill", "Put", "WeightFile"]

ELEMENT_TYPES: Final = {
    "float32": onnx.TensorProto.FLOAT,
    "float16": onnx.TensorProto.FLOAT16,
    "uint8": onnx.TensorProto.UINT8,
    "int64": onnx.TensorProto.INT64,
}

_ALIGNMENT: Final = 64
_PAGE: Final = 4096  # large tensors are mapped into memory; the specification asks for whole pages
_LARGE_BYTES: Final = 1 << 16

Put = Callable[[str, int, Array], None]
"""Writes an array into a reserved tensor, so many bytes from its start."""

Fill = Callable[[Put], None]
"""Reads a weight and puts all of it, in pieces."""


class WeightFile:
    """Where each tensor of a graph lies in the file of weights."""

    def __init__(self, name: str) -> None:
        """`name`: the file's, beside the graph."""
        self.name = name
        self.size_bytes = 0
        self.initializers: list[onnx.TensorProto] = []
        self._spans: dict[str, tuple[int, int]] = {}
        self._fills: list[tuple[Fill, int]] = []

    def reserve(self, name: str, element: str, shape: tuple[int, ...]) -> str:
        """Make room for a tensor; a numpy type's name and a shape. Returns its name."""
        size = math.prod(shape) * np.dtype(element).itemsize
        step = _PAGE if size >= _LARGE_BYTES else _ALIGNMENT
        start = -(-self.size_bytes // step) * step
        self._spans[name] = start, size
        self.size_bytes = start + size
        self._describe(name, element, shape, start, size)
        return name

    def alias(self, name: str, element: str, shape: tuple[int, ...], of: str) -> str:
        """The bytes of another tensor under a second name and shape."""
        start, size = self._spans[of]
        assert size == math.prod(shape) * np.dtype(element).itemsize, f"{name} is no view of {of}"
        self._describe(name, element, shape, start, size)
        return name

    def fill_with(self, fill: Fill, size_bytes: int) -> None:
        """Remember how a part of the file is filled; `size_bytes` is its share of the progress."""
        self._fills.append((fill, size_bytes))

    def write(self, directory: Path, progress: Progress) -> None:
        """Write the file.

        Raises:
            ExportError: it cannot be written. A part of it may be left.
            ModelFileError: whatever the fills raise.
        """
        path = directory / self.name
        done, total = 0, sum(size for _, size in self._fills)
        try:
            with path.open("wb") as file:
                file.truncate(self.size_bytes)

                def put(name: str, offset: int, values: Array) -> None:
                    start, size = self._spans[name]
                    assert offset + values.nbytes <= size, f"{name} is larger than was reserved"
                    file.seek(start + offset)
                    file.write(np.ascontiguousarray(values).data)

                for fill, size in self._fills:
                    fill(put)
                    done += size
                    progress("writing tensors", done, total)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise ExportError(f"{path}: cannot be written: {error.strerror or error}") from error

    def _describe(self, name: str, element: str, shape: tuple[int, ...], start: int, size: int) -> None:
        tensor = onnx.TensorProto(
            name=name,
            data_type=ELEMENT_TYPES[element],
            dims=shape,
            data_location=onnx.TensorProto.EXTERNAL,
        )
        for key, value in (("location", self.name), ("offset", str(start)), ("length", str(size))):
            tensor.external_data.add(key=key, value=value)
        self.initializers.append(tensor)
