"""Opens students: what users hold when they come to export, in whatever form."""

from __future__ import annotations

import re
from pathlib import Path

from edgekit.errors import MissingExtraError, ModelFileError, UsageError
from edgekit.gguf_header import first_shard

try:
    import numpy as np  # noqa: F401
except ImportError as error:
    raise MissingExtraError("numpy", extra="export", feature="reading a student") from error

from export.student.base import Student, StudentTensor
from export.student.gguf_file import GgufStudent, open_gguf
from export.student.safetensors_dir import CheckpointStudent, open_checkpoint

__all__ = ["CheckpointStudent", "GgufStudent", "Student", "StudentTensor", "open_student"]


def open_student(path: Path) -> GgufStudent | CheckpointStudent:
    """Open a GGUF, or a Hugging Face checkpoint directory of float safetensors.

    Weights are not read yet: they are memory-mapped, tensor by tensor.

    Args:
        path: a GGUF file, of a sharded model the first; or a directory that holds one model of either kind.

    Raises:
        UsageError: nothing is at `path`.
        ModelFileError: it is damaged or of no known kind.
    """
    if path.is_dir():
        if (path / "config.json").is_file():
            return open_checkpoint(path)
        models = sorted({first_shard(file) for file in path.glob("*.gguf")})
        if len(models) == 1:
            return open_gguf(models[0])
        raise ModelFileError(
            f"{path}: no checkpoint (config.json is missing) and {len(models)} GGUF models; one is needed"
        )
    if path.is_file():
        return open_gguf(path)
    if re.fullmatch(r"[\w.-]+/[\w.-]+", str(path)):
        raise UsageError(
            f"{path}: no such file or directory",
            hint=f"to get it from a model hub first: hf download {path} --local-dir {path.name}",
        )
    raise UsageError(f"{path}: no such file or directory")
