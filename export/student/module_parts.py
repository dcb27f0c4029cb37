"""The stored parts of one quantized module, taken one by one.

What is missing, of a wrong type or shape, or left over is an error that names the module and the part.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray

from edgekit.errors import ModelFileError
from export.student.base import as_float32, first_non_finite
from export.student.safetensors_file import StoredTensor
from export.student.weight_reader import FLOAT_STORAGE, Parts

__all__ = ["ModuleParts", "is_float"]


def is_float(parts: Parts) -> bool:
    """Whether a module holds nothing but an ordinary float weight: it was left unquantized."""
    return parts.keys() == {"weight"} and parts["weight"].storage in FLOAT_STORAGE


class ModuleParts:
    """What is stored of one module; every part has to be taken."""

    def __init__(self, module: str, parts: Parts) -> None:
        self.module = module
        self.size_bytes = sum(part.size_bytes for part in parts.values())
        self._left = dict(parts)

    def __contains__(self, name: str) -> bool:
        """Whether a part of this name is there and has not been taken."""
        return name in self._left

    def take(
        self, name: str, *, storage: Iterable[str], shapes: Iterable[tuple[int, ...]] | None = None
    ) -> StoredTensor:
        """The part of this name, of one of the storage types and, unless None, one of the shapes.

        Raises:
            ModelFileError: it is missing, or of another type or shape.
        """
        part = self._left.pop(name, None)
        if part is None:
            self.fail(f"'{name}' is missing")
        if part.storage not in (known := tuple(storage)):
            self.fail(f"'{name}' is of type {part.storage}, expected {' or '.join(known)}")
        if shapes is not None and part.shape not in (fitting := tuple(shapes)):
            expected = " or ".join(str(list(shape)) for shape in fitting)
            self.fail(f"'{name}' has shape {list(part.shape)}, expected {expected}")
        return part

    def finite(self, name: str, part: StoredTensor) -> NDArray[np.float32]:
        """The values of a small float part as float32.

        Raises:
            ModelFileError: one of them is NaN or infinite.
        """
        values = as_float32(part.read())
        index = first_non_finite(values)
        if index is not None:
            self.fail(f"'{name}' holds {values.reshape(-1)[index]} at index {index}")
        return values

    def finish(self) -> None:
        """Raises:
        ModelFileError: a part was not taken.
        """
        for name in self._left:
            self.fail(f"'{name}' is of no known use", hint="the checkpoint may be damaged or too new")

    def fail(self, problem: str, *, hint: str | None = None) -> NoReturn:
        """Raise what is wrong with this module."""
        raise ModelFileError(f"module '{self.module}': {problem}", hint=hint)
