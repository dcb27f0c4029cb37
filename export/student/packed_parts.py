"""The stored parts of a module that GPTQ or AWQ packed: checked on the way out.

What is missing, of a wrong type or shape, or of no known kind is an error that names the module or tensor.
"""

from __future__ import annotations

from collections.abc import Iterable

from edgekit.errors import ModelFileError
from export.student.base import as_float32, first_non_finite
from export.student.integers import scales_fit_f16
from export.student.safetensors_file import StoredTensor
from export.student.weight_reader import Parts

__all__ = ["check_parts", "check_scales", "is_packed", "part", "row_span"]


def is_packed(parts: Parts) -> bool:
    """Whether a module was packed; otherwise it has an ordinary weight."""
    return "weight" not in parts or "qweight" in parts


def row_span(rows: slice, count: int) -> slice:
    """`rows` of a matrix of `count` rows with both ends given.

    Raises:
        ValueError: the slice has a step.
    """
    start, stop, step = rows.indices(count)
    if step != 1:
        raise ValueError(f"rows are read in one span, not with a step of {step}")
    return slice(start, max(start, stop))


def check_parts(module: str, parts: Parts, known: Iterable[str]) -> None:
    """Check that all stored parts of a module are known, and that a bias the model has no use for is zero.

    AutoGPTQ before 0.7 gave every module a bias, of zeros where the model has none.

    Raises:
        ModelFileError: a part is of an unknown kind, or the bias would be lost.
    """
    for name, stored in parts.items():
        if name not in known:
            raise ModelFileError(
                f"module '{module}': the part '{name}' is not known beside its packed weight"
            )
        if name == "bias" and as_float32(stored.read()).any():
            raise ModelFileError(f"module '{module}' has a bias, which is not part of the model")


def part(
    module: str, parts: Parts, name: str, storages: Iterable[str], shape: tuple[int, ...], says: str
) -> StoredTensor:
    """The part `name`, checked. `says`: what the shape follows from, for errors.

    Raises:
        ModelFileError: it is missing, or of another type or shape.
    """
    stored = parts.get(name)
    if stored is None:
        raise ModelFileError(f"module '{module}': its part '{name}' is missing")
    if stored.storage not in storages:
        raise ModelFileError(
            f"tensor '{stored.name}' is of type {stored.storage}; known are {', '.join(storages)}"
        )
    if stored.shape != shape:
        raise ModelFileError(
            f"tensor '{stored.name}' has shape {list(stored.shape)}; {says} make it {list(shape)}"
        )
    return stored


def check_scales(module: str, scales: StoredTensor) -> bool:
    """Whether all scales are normal float16 exactly.

    Raises:
        ModelFileError: one is NaN or infinite.
    """
    values = scales.read()
    bad = first_non_finite(values)
    if bad is not None:
        group, row = divmod(bad, values.shape[1])
        raise ModelFileError(
            f"module '{module}': the scale of row {row}, group {group}, is not a finite number",
            hint="the checkpoint is damaged or was quantized badly; take another",
        )
    return scales_fit_f16(as_float32(values))
