"""Compares two distributions of the next token, position by position."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgekit.errors import ExportError

__all__ = ["Comparison", "compare_logits", "join_comparisons"]

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Comparison:
    """Position by position: float64 [positions], but `agrees`, which is bool."""

    kl: NDArray[np.float64]
    agrees: NDArray[np.bool_]
    student_nll: NDArray[np.float64]
    """-log of the student's probability of the token that follows."""
    artifact_nll: NDArray[np.float64]


def compare_logits(student: Floats, artifact: Floats, following: Sequence[int]) -> Comparison:
    """Compare the distributions after each position.

    Args:
        student, artifact: logits float32 [positions, vocabulary].
        following: the token that comes after each position.

    Raises:
        ExportError: the shapes differ, or the artifact's logits are not finite.
    """
    if student.shape != artifact.shape:
        raise ExportError(
            f"the artifact's logits are {list(artifact.shape)}, the student's {list(student.shape)}",
            hint="the artifact was made of another student, or its vocabulary was cut or padded",
        )
    rows, columns = np.arange(len(following)), np.asarray(following, dtype=np.int64)
    agrees = student.argmax(axis=1) == artifact.argmax(axis=1)
    student = student - student.max(axis=1, keepdims=True)
    artifact = artifact - artifact.max(axis=1, keepdims=True)
    if not np.isfinite(artifact).all():
        raise ExportError(
            "the artifact computes NaN or infinity",
            hint="its weights are damaged, or overflow the runtime's half precision",
        )
    probabilities = np.exp(student)
    # Sums in float64: what is left of the divergences of a good artifact is smaller than float32's error.
    weights = probabilities.sum(axis=1, dtype=np.float64)
    student_log = np.log(weights)
    artifact_log = np.log(np.exp(artifact).sum(axis=1, dtype=np.float64))
    nll = student_log - student[rows, columns], artifact_log - artifact[rows, columns]
    student -= artifact
    weighted = np.einsum("tv,tv->t", probabilities, student, dtype=np.float64)
    kl = weighted / weights - student_log + artifact_log
    # Rounding may leave a little less than nothing.
    return Comparison(np.maximum(kl, 0), agrees, *nll)


def join_comparisons(parts: Sequence[Comparison]) -> Comparison:
    """Comparisons of one stretch of positions after the other, as one."""
    return Comparison(
        np.concatenate([part.kl for part in parts]),
        np.concatenate([part.agrees for part in parts]),
        np.concatenate([part.student_nll for part in parts]),
        np.concatenate([part.artifact_nll for part in parts]),
    )
