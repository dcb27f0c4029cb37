"""The step of an export that finds out which columns matter: text, then the student's activations on it."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgekit.bundle.manifest import SourceRecord
from export.calibration.tokens import calibrate, calibration_tokens
from export.progress import Progress
from export.student import DecoderStudent, GgufStudent
from export.targets.gguf import write_float_gguf

__all__ = ["CalibrationChoice", "importance_of"]


@dataclass(frozen=True, slots=True)
class CalibrationChoice:
    """`text`: a file to calibrate on; None: the student's own answers to the prompts that ship."""

    text: Path | None = None


def importance_of(
    student: GgufStudent | DecoderStudent,
    checkpoint: DecoderStudent,
    choice: CalibrationChoice,
    source: SourceRecord,
    directory: Path,
    progress: Progress,
) -> Mapping[str, NDArray[np.float32]]:
    """By GGUF name, float32 [columns]: the mean square of what each matrix is multiplied with.

    Args:
        student: as it was opened.
        checkpoint: the same in Hugging Face's terms.
        directory: has room for the student as floats for a while, where it is asked for answers.
    """
    with tempfile.TemporaryDirectory(prefix=".student-", dir=directory) as scratch:

        def as_floats() -> Path:
            if isinstance(student, GgufStudent):
                return student.path
            path = Path(scratch) / "student.gguf"
            write_float_gguf(student, path, progress=progress)
            return path

        tokens = calibration_tokens(
            checkpoint, text=choice.text, model=as_floats, student_sha256=source.sha256, progress=progress
        )
    return calibrate(checkpoint, tokens, student_sha256=source.sha256, progress=progress).importance()
