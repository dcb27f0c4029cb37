"""The step of an export that finds out which columns matter: text, then the student's activations on it."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgekit.bundle.manifest import SourceRecord
from edgekit.errors import UsageError
from export.calibration.tokens import calibrate, calibration_tokens
from export.plan.decide import ExportPlan
from export.progress import Progress
from export.student import DecoderStudent, GgufStudent
from export.targets.gguf import write_float_gguf

__all__ = ["CalibrationChoice", "importance_of", "refuse_unusable", "scratch_bytes"]


@dataclass(frozen=True, slots=True)
class CalibrationChoice:
    """`text`: a file to calibrate on; None: the student's own answers to the prompts that ship."""

    text: Path | None = None


def refuse_unusable(choice: CalibrationChoice, plan: ExportPlan) -> None:
    """Say now, not after hours of work, that there is no text, or nothing to use an importance matrix.

    Raises:
        UsageError: that is so.
    """
    if choice.text is not None and not choice.text.is_file():
        what = "is no file" if choice.text.exists() else "no such file"
        raise UsageError(
            f"{choice.text}: {what}",
            hint="give a UTF-8 text for --calibration, or 'own' for the student's own answers",
        )
    if plan.format != "gguf":
        raise UsageError("onnxruntime's quantizer takes no importance matrix", hint="leave --calibration out")
    if plan.conversion in ("keep", "convert"):
        raise UsageError(
            f"{plan.facts.name} becomes {plan.quantization} without a quantizer that could use an importance "
            "matrix",
            hint="leave --calibration out, or choose a --quantization",
        )


def scratch_bytes(choice: CalibrationChoice, student: GgufStudent | DecoderStudent) -> int:
    """Bytes that `importance_of` needs on the disk for a while: the student as floats, to answer."""
    if choice.text is not None or isinstance(student, GgufStudent):
        return 0
    return student.facts.parameters * (4 if student.stored_as == "F32" else 2)


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
