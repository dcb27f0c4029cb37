"""Writes the model files of a bundle as a plan says."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from edgekit import __version__
from edgekit.bundle.manifest import SourceRecord
from edgekit.errors import ExportError
from edgekit.gguf_header import numbered
from edgekit.profiles import DeviceProfile
from export.plan.decide import ExportPlan
from export.progress import Progress
from export.quantize import quantize_gguf
from export.student import GgufStudent
from export.student.base import DecoderStudent
from export.targets.gguf import write_gguf

if TYPE_CHECKING:
    from export.targets.onnx import Precision

__all__ = ["GGUF_NAME", "Emitted", "emit_gguf", "emit_onnx", "refuse_small_disk"]

GGUF_NAME: Final = "model.gguf"
SHARD_BYTES: Final = 16 << 30
"""Larger models are split: a transfer repeats a part of it, not the whole."""
_COPY_BYTES: Final = 1 << 22

Importance = Mapping[str, NDArray[np.float32]]


@dataclass(frozen=True, slots=True)
class Emitted:
    """`entry`: the file that the runtime opens. `conversion`: how the weights became what they are."""

    entry: str
    conversion: str
    notes: tuple[str, ...] = ()


def refuse_small_disk(directory: Path, needed: int) -> None:
    """Raise ExportError before hours of work, not after. `needed`: bytes that will be written."""
    free = shutil.disk_usage(directory).free
    if needed > free:
        raise ExportError(
            f"{directory.parent}: {free / 1e9:.1f} GB are free; this export needs {needed / 1e9:.1f} GB",
            hint="free some, or give an --out on another disk",
        )


def emit_gguf(
    student: GgufStudent | DecoderStudent,
    plan: ExportPlan,
    directory: Path,
    source: SourceRecord,
    *,
    importance: Importance | None,
    progress: Progress,
) -> Emitted:
    """Write the GGUF of a plan into `directory`.

    Raises:
        ExportError, ModelFileError: see `write_gguf` and `quantize_gguf`.
    """
    target, own = directory / GGUF_NAME, student.facts.quantization
    if isinstance(student, GgufStudent):
        if plan.conversion == "keep":
            copies = numbered(target, len(student.files))
            _copy(student.files, copies, progress)
            return Emitted(copies[0].name, "copied")
        quantize_gguf(
            student.path,
            target,
            plan.quantization,
            allow_requantize=plan.conversion == "requantize",
            importance=importance,
            progress=progress,
        )
        return Emitted(GGUF_NAME, f"{plan.conversion.removesuffix('e')}ed from {own}")
    conversion = {
        "keep": f"converted from safetensors, {own}",
        "convert": f"converted from safetensors, {own}",
        "repack": f"repacked from {own}",
        "quantize": f"quantized from {own}",
        "dequantize": f"dequantized from {own} and quantized",
        "requantize": f"requantized from {own}",
    }[plan.conversion]
    files = write_gguf(
        student,
        target,
        plan.tensors,
        plan.quantization,
        importance=importance,
        provenance=_provenance(source, own, conversion),
        shard_bytes=SHARD_BYTES if plan.facts.weight_bytes > SHARD_BYTES else None,
        progress=progress,
    )
    return Emitted(files[0].name, conversion)


def emit_onnx(
    student: DecoderStudent, plan: ExportPlan, profile: DeviceProfile, directory: Path, *, progress: Progress
) -> Emitted:
    """Write the ONNX model of a plan into `directory`.

    Raises:
        ExportError, ModelFileError: see `write_onnx`.
    """
    from export.targets.onnx import BLOCK_SIZE, MODEL_NAME, write_onnx
    from export.targets.onnx_weights import plan_blocks

    precision: Precision = "fp32"
    if plan.quantization != "F32":
        precision = "int4" if profile.accelerator is None else "fp16-int4"
    write_onnx(
        student,
        directory,
        precision=precision,
        # What the student's own quantizer left alone keeps 8 bits.
        matrix_bits=8 if plan.conversion == "repack" else 4,
        head_bits=8,
        context_tokens=plan.serve.context_tokens,
        threads=plan.serve.threads,
        progress=progress,
    )
    own = student.facts.quantization
    conversion = {
        "convert": f"converted from {own}",
        "repack": f"repacked from {own}",
        "dequantize": f"dequantized from {own} and quantized",
        "requantize": f"requantized from {own}",
    }.get(plan.conversion, f"quantized from {own}")
    again = [
        tensor.name
        for tensor in student.tensors()
        if tensor.integers is not None and not plan_blocks(tensor, bits=4, block_size=BLOCK_SIZE).exact
    ]
    notes = (
        (f"{len(again)} matrices, such as {again[0]}, are quantized again: MatMulNBits has no such groups",)
        if again and plan.quantization != "F32"
        else ()
    )
    return Emitted(MODEL_NAME, conversion, notes)


def _provenance(source: SourceRecord, quantization: str, conversion: str) -> dict[str, str]:
    """Keys of the GGUF's metadata that say where it comes from, should it be taken out of its bundle."""
    values = {
        "edgekit.version": __version__,
        "edgekit.student.name": source.name,
        "edgekit.student.sha256": source.sha256,
        "edgekit.student.revision": source.revision,
        "edgekit.student.quantization": quantization,
        "edgekit.conversion": conversion,
    }
    return {key: value for key, value in values.items() if value}


def _copy(sources: Sequence[Path], targets: Sequence[Path], progress: Progress) -> None:
    done, total = 0, sum(source.stat().st_size for source in sources)
    for source, target in zip(sources, targets, strict=True):
        with source.open("rb") as reader, target.open("wb") as writer:
            while block := reader.read(_COPY_BYTES):
                writer.write(block)
                done += len(block)
                progress("copying", done, total)
