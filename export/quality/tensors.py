"""Tensors of an artifact beside the student's: which are the worst, and which are the very same."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Final

import numpy as np
from numpy.typing import NDArray

from edgekit.errors import ModelFileError
from edgekit.gguf_header import read_gguf_header
from export.progress import Progress, silent
from export.quality.record import ExactProof, TensorError
from export.student.base import DecoderStudent, StudentTensor
from export.student.gguf_file import GgufStudent
from export.student.gguf_names import gguf_name

__all__ = ["TensorPair", "gguf_pairs", "prove_exact", "worst_tensors"]

Floats = NDArray[np.float32]

_BLOCK_WEIGHTS: Final = 1 << 22
_LEAST_TYPICAL: Final = 1e-4
"""Floats are copied, so their median error is 0; less than this is not worth a word."""


@dataclass(frozen=True, slots=True)
class TensorPair:
    """A student's tensor and what became of it. `artifact` None: it is missing."""

    student: StudentTensor
    artifact: StudentTensor | None
    head_length: int | None = None
    """Set where the artifact has each head's rows as neighbouring pairs: llama.cpp's order for Llama."""

    def blocks(self) -> Iterator[tuple[slice, Floats, Floats]]:
        """Rows, the student's values, the artifact's values in the student's order; a few rows at a time."""
        assert self.artifact is not None
        if self.student.shape != self.artifact.shape:
            raise ModelFileError(
                f"tensor '{self.student.name}' is {list(self.artifact.shape)} in the artifact and "
                f"{list(self.student.shape)} in the student"
            )
        count = self.student.shape[0]
        width = int(np.prod(self.student.shape[1:], dtype=np.int64))
        unit = self.head_length or 1
        step = max(1, _BLOCK_WEIGHTS // width // unit) * unit
        for start in range(0, count, step):
            rows = slice(start, min(start + step, count))
            values = self.artifact.read_float32(rows)
            if self.head_length is not None:
                pairs = values.reshape(-1, self.head_length // 2, 2, width)
                values = pairs.swapaxes(1, 2).reshape(values.shape)
            yield rows, self.student.read_float32(rows), values


def gguf_pairs(student: DecoderStudent, files: Sequence[Path]) -> list[TensorPair]:
    """A student's tensors and those of its GGUF, whose files these are, the first one first.

    Raises:
        ModelFileError: a file is damaged.
    """
    artifact = GgufStudent(files[0], read_gguf_header(files[0]))
    found = {tensor.name: tensor for tensor in artifact.tensors()}
    rotated = ("q_proj", "k_proj") if student.config.architecture == "llama" else ()
    return [
        TensorPair(
            tensor,
            found.get(gguf_name(tensor.name)),
            student.config.head_length if tensor.name.split(".")[-2] in rotated else None,
        )
        for tensor in student.tensors()
    ]


def worst_tensors(
    pairs: Sequence[TensorPair],
    *,
    importance: Mapping[str, Floats] | None = None,
    most: int = 10,
    progress: Progress = silent,
) -> tuple[TensorError, ...]:
    """The tensors that stand out, the worst first; missing ones before all others.

    A type's rounding is the same for all tensors that have it. One whose error, or whose gain's distance from
    1, is many times the median of its type has something else the matter with it.

    Args:
        importance: mean squares by llama.cpp's tensor name, float32 [columns].

    Raises:
        ModelFileError: the shapes of a pair differ.
    """
    errors: list[TensorError] = []
    for done, pair in enumerate(pairs):
        progress("looking for the worst tensors", done, len(pairs))
        errors.append(_error(pair, importance or {}))
    progress("looking for the worst tensors", len(pairs), len(pairs))
    rated = [error.model_copy(update={"times_typical": _rating(error, errors)}) for error in errors]
    return tuple(sorted(rated, key=lambda error: -error.times_typical)[:most])


def prove_exact(
    pairs: Sequence[TensorPair], *, names: Collection[str] | None = None, progress: Progress = silent
) -> ExactProof:
    """Compare tensors value by value: is what was moved, not computed anew, the very same?

    Values are float32 as ggml computes them: d * (q - 8) for Q4_0, d * q + m for Q4_1. A difference is
    given in steps, the student's own scale; Q4_1 rounds m = -scale * zero to F16, which shifts a group by up
    to 0.005 steps.

    Args:
        names: the student's names of the tensors to compare; None compares all.

    Raises:
        ModelFileError: a tensor is missing, or its shape differs.
    """
    chosen = [pair for pair in pairs if names is None or pair.student.name in names]
    exact, worst, worst_name = 0, 0.0, None
    for done, pair in enumerate(chosen):
        progress("comparing weights", done, len(chosen))
        if pair.artifact is None:
            raise ModelFileError(f"tensor '{pair.student.name}' is missing from the artifact")
        steps = _largest_step(pair)
        if steps == 0:
            exact += 1
        elif steps > worst:
            worst, worst_name = steps, pair.student.name
    progress("comparing weights", len(chosen), len(chosen))
    return ExactProof(tensors=len(chosen), exact=exact, max_error_steps=worst, worst_tensor=worst_name)


def _error(pair: TensorPair, importance: Mapping[str, Floats]) -> TensorError:
    if pair.artifact is None:
        return TensorError(
            name=pair.student.name,
            storage=None,
            relative_error=1.0,
            weighted_error=None,
            gain=0.0,
            times_typical=0.0,
        )
    columns = importance.get(gguf_name(pair.student.name))
    energy = difference = product = weighted_energy = weighted_difference = 0.0
    for _, own, other in pair.blocks():
        delta = other - own
        energy += _dot(own, own)
        difference += _dot(delta, delta)
        product += _dot(own, other)
        if columns is not None:
            weighted_energy += _dot(own * columns, own)
            weighted_difference += _dot(delta * columns, delta)
    return TensorError(
        name=pair.student.name,
        storage=pair.artifact.storage,
        relative_error=_root(difference, energy),
        weighted_error=None if columns is None else _root(weighted_difference, weighted_energy),
        gain=product / energy if energy else 1.0,
        times_typical=0.0,
    )


def _rating(error: TensorError, others: Sequence[TensorError]) -> float:
    if error.storage is None:
        return 1e9
    same = [other for other in others if other.storage == error.storage]
    typical_error = max(median(other.relative_error for other in same), _LEAST_TYPICAL)
    typical_gain = max(median(abs(other.gain - 1) for other in same), typical_error / 10)
    return max(error.relative_error / typical_error, abs(error.gain - 1) / typical_gain)


def _largest_step(pair: TensorPair) -> float:
    """0 where all values are the same; otherwise the largest difference, in steps of integers, or relative
    to the tensor's largest weight where it has none."""
    integers = pair.student.integers
    largest = peak = 0.0
    for rows, own, other in pair.blocks():
        difference = np.abs(other - own)
        peak = max(peak, float(np.abs(own).max()))
        # NaN compares as different, too.
        if not (own == other).all():
            if integers is not None:
                groups = integers.groups
                if groups is None:
                    groups = np.arange(own.shape[1], dtype=np.int32) // integers.layout.group_columns
                scales = np.abs(integers.scales(rows))[:, groups]
                difference = difference / np.where(scales > 0, scales, 1)
            largest = max(largest, float(np.nan_to_num(difference, nan=np.inf).max()))
    return largest if integers is not None or peak == 0 else largest / peak


def _dot(left: Floats, right: Floats) -> float:
    return float(np.dot(left.reshape(-1), right.reshape(-1)))


def _root(difference: float, energy: float) -> float:
    return float(np.sqrt(difference / energy)) if energy else float(difference > 0)
