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

from export.student.base import DecoderStudent, Student, StudentTensor
from export.student.gguf_checkpoint import as_checkpoint
from export.student.gguf_file import GgufStudent, open_gguf
from export.student.lora import open_with_adapter
from export.student.lora_config import adapter_base
from export.student.safetensors_dir import CheckpointStudent, open_checkpoint

__all__ = [
    "CheckpointStudent",
    "DecoderStudent",
    "GgufStudent",
    "Student",
    "StudentTensor",
    "as_checkpoint",
    "open_student",
]


def open_student(path: Path, *, adapter: Path | None = None) -> GgufStudent | CheckpointStudent:
    """Open a GGUF, or a Hugging Face checkpoint directory of safetensors, float or packed.

    Weights are not read yet: they are memory-mapped, tensor by tensor.

    Args:
        path: a GGUF file, of a sharded model the first; or a directory that holds one model of either kind,
            or a LoRA whose adapter_config.json names its base by a local path.
        adapter: the directory of a LoRA for the checkpoint at `path`.

    Raises:
        UsageError: nothing is at `path`.
        ModelFileError: it is damaged or of no known kind.
    """
    if adapter is not None:
        return _adapted(path, adapter)
    if path.is_dir():
        if (path / "adapter_config.json").is_file() and not (path / "config.json").is_file():
            base = adapter_base(path)
            if base is None:
                raise UsageError(
                    f"{path} is a LoRA, and its base_model_name_or_path is no directory here",
                    hint=f"give the base as the MODEL: edgekit export BASE --adapter {path} ...",
                )
            return _adapted(base, path)
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


def _adapted(base: Path, adapter: Path) -> CheckpointStudent:
    student = open_student(base)
    if isinstance(student, GgufStudent):
        raise UsageError(
            f"{base} is a GGUF; a LoRA is merged into a checkpoint",
            hint="give the directory of the checkpoint that the adapter was trained on",
        )
    return open_with_adapter(student, adapter)
