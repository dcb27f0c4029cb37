"""What a student is, whatever files it comes as: facts, where it came from, and named tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edgekit.bundle.manifest import SourceRecord
from edgekit.facts import ModelFacts
from export.progress import Progress, silent
from export.student.config import CheckpointConfig
from export.student.integers import ALL_ROWS, IntegerMatrix
from export.student.tokenizer import CheckpointTokenizer

__all__ = ["Array", "DecoderStudent", "Student", "StudentTensor", "as_float32", "first_non_finite"]

Array = NDArray[Any]


@dataclass(frozen=True, slots=True)
class StudentTensor:
    """One weight of a student, read when asked for.

    `shape` is in numpy's order: rows first, the fastest dimension last. `storage` is "BF16", "F16" or
    "F32"; the name of a ggml block type such as "Q4_1"; or what a quantized checkpoint packs, such as "INT4",
    "FP8" or "NF4". `size_bytes` is what it takes on disk, scales and zeros included. `integers` is there
    where the values are integers times scales.
    """

    name: str
    shape: tuple[int, ...]
    storage: str
    size_bytes: int
    _read: Callable[[slice], Array] = field(repr=False, compare=False)
    integers: IntegerMatrix | None = field(default=None, repr=False, compare=False)

    def read(self, rows: slice = ALL_ROWS) -> Array:
        """Values of some rows, [rows, ...].

        Float weights as they are stored, memory-mapped and read-only: float32, float16, or uint16 for BF16's
        bit patterns. All others dequantized to float32.
        """
        return self._read(rows)

    def read_float32(self, rows: slice = ALL_ROWS) -> NDArray[np.float32]:
        """Values of some rows as float32, exactly."""
        return as_float32(self.read(rows))


class Student(Protocol):
    """A language model as its authors left it on disk."""

    @property
    def path(self) -> Path: ...

    @property
    def facts(self) -> ModelFacts: ...

    def tensors(self) -> Iterator[StudentTensor]:
        """All weights, in the order of the files, under the names that the files give them."""

    def source(self, progress: Progress = silent) -> SourceRecord:
        """Where the student comes from. Reads all its files once, for their checksum."""

    def license_text(self) -> str | None:
        """The text of the licence file that came with the student."""


class DecoderStudent(Student, Protocol):
    """A student in the terms of a Hugging Face checkpoint: its config, its tokenizer, its tensors' names."""

    @property
    def config(self) -> CheckpointConfig: ...

    @property
    def tokenizer(self) -> CheckpointTokenizer: ...

    @property
    def stored_as(self) -> str:
        """Type of its float matrices: "BF16", "F16" or "F32"."""

    def tokenizer_files(self) -> dict[str, bytes]:
        """tokenizer.json, tokenizer_config.json and what else of its kind there is: name to content."""


def as_float32(values: Array) -> NDArray[np.float32]:
    """Values as float32, exactly. uint16 is taken for BF16: the upper half of a float32."""
    if values.dtype == np.uint16:
        widened: NDArray[np.float32] = (values.astype(np.uint32) << 16).view(np.float32)
        return widened
    return values.astype(np.float32, copy=False)


def first_non_finite(values: Array) -> int | None:
    """Flat index of the first NaN or infinity in float or BF16 values, or None."""
    flat = values.reshape(-1)
    step = 1 << 22  # bounds the memory that the masks take
    for start in range(0, flat.size, step):
        part = flat[start : start + step]
        finite = (part & 0x7F80) != 0x7F80 if part.dtype == np.uint16 else np.isfinite(part)
        if not finite.all():
            return start + int(np.argmin(finite))
    return None
