"""Makes a signed bundle of a student: plan, write, try, seal. All of it, or nothing at all."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Final

from edgekit.bundle.bundle import Bundle
from edgekit.bundle.manifest import SourceRecord, release_number
from edgekit.bundle.signing import SecretKey
from edgekit.errors import ExportError
from edgekit.facts import ModelFacts
from edgekit.forecast import forecast
from edgekit.gguf_header import read_gguf_header, shard_paths, stem_without_shard
from edgekit.profiles import DeviceProfile, Format
from edgekit.weight_buffers import HeldWeights, held_weights
from export.calibration.step import CalibrationChoice, importance_of, refuse_unusable, scratch_bytes
from export.emit import Emitted, emit_gguf, emit_onnx, refuse_small_disk
from export.new_directory import directory_that_appears_at, refuse_existing
from export.plan.decide import ExportPlan, make_plan
from export.plan.tensors import tensor_facts
from export.progress import Progress, silent
from export.quality.step import prove_export, refuse_misses, write_records
from export.quantize import require_llama_cpp
from export.sealing import Made, installed_versions, proof_fields, refuse_invalid, seal_export
from export.student import CheckpointStudent, DecoderStudent, GgufStudent, as_checkpoint, open_student
from export.student.lora import AdaptedStudent
from export.student.provenance import checkpoint_name
from export.trial import try_gguf, try_onnx

__all__ = ["export_bundle"]

_TOOLS: Final = ("gguf", "llama-cpp-python", "numpy", "onnx", "onnxruntime", "tokenizers")


def export_bundle(
    model: Path,
    profile: DeviceProfile,
    out: Path,
    *,
    adapter: Path | None = None,
    secret_key: SecretKey | None = None,
    quantization: str | None = None,
    format: Format | None = None,  # noqa: A002 (the word that profiles and manifests use)
    calibration: CalibrationChoice | None = None,
    name: str | None = None,
    release: int | None = None,
    allow_loss: bool = False,
    at_hand: DeviceProfile | None = None,
    progress: Progress = silent,
    clock: Callable[[], datetime] = lambda: datetime.now(timezone.utc),
) -> Bundle:
    """Export a student for a device into the new directory `out`.

    The bundle is written to a temporary directory beside `out`, tried by loading it in a child process,
    proven against the student, sealed, synced to disk and renamed. If anything fails, nothing is left.

    Args:
        model: a GGUF file, or the directory of a checkpoint, or of an adapter that names its base.
        adapter: the directory of a LoRA to merge into `model`.
        secret_key: signs the bundle; None leaves it unsigned.
        quantization, format: override the plan's choice.
        calibration: what an importance matrix for the quantizer is computed on; None: there is none.
        name: what the model is called when served; None takes the student's name.
        release: None takes the time.
        allow_loss: permit quantizing weights that were quantized before, and a proof that misses its limits.
        at_hand: the profile with readings of the device where it leaves something open, for the plan.

    Raises:
        ExportError: `out` exists, the disk is full, the result does not load or is too far from the student.
        PlanError: the model does not fit the device.
        ModelFileError: the student is damaged or of an unknown kind.
        UsageError: the name or the release is none that a manifest takes, or a calibration has no use.
    """
    refuse_existing(out)
    now = clock()
    release = release_number(now) if release is None else release
    if name is not None:
        refuse_invalid(name=name)
    refuse_invalid(release=release)
    require_llama_cpp("trying the exported model")
    student = open_student(model, adapter=adapter)
    device = at_hand or profile
    plan = make_plan(
        student.facts,
        device,
        tensors=() if isinstance(student, GgufStudent) else tensor_facts(student.tensors()),
        importance=calibration is not None,
        quantization=quantization,
        format=format,
    )
    if plan.format == "vllm":
        raise ExportError(
            f"profile {profile.name} wants a bundle for {plan.runtime}, which this edgekit cannot write yet",
            hint="what can be written is GGUF and ONNX, e.g. with --profile host",
        )
    _refuse_loss(plan, student.facts, allow_loss)
    if calibration is not None:
        refuse_unusable(calibration, plan)
    name = name or _served_name(student)
    with directory_that_appears_at(out) as directory:
        scratch = 0 if calibration is None else scratch_bytes(calibration, student)
        # What calibration writes is gone when the model is written.
        refuse_small_disk(directory, max(plan.facts.weight_bytes, scratch))
        source = student.source(progress)
        made = _make(student, plan, profile, directory, source, calibration, name, progress, allow_loss)
        sealed = seal_export(
            directory,
            made,
            plan,
            profile,
            needs=forecast(made.facts, device, plan.serve, held=_held(plan, device, directory, made)),
            source=source,
            license_text=student.license_text(),
            release=release,
            now=now,
            tools=installed_versions(_TOOLS),
            secret_key=secret_key,
            progress=progress,
        )
        if made.emitted.conversion == "copied":
            assert isinstance(student, GgufStudent)
            _check_copy(sealed, student, source)
    return Bundle(out, sealed.manifest, sealed.digest, sealed.signed_by)


def _held(plan: ExportPlan, device: DeviceProfile, directory: Path, made: Made) -> HeldWeights | None:
    """Where the weights will be in memory, exactly, where the tensors and the CPU are known."""
    if plan.format != "gguf" or device.cpu.isa is None:
        return None
    tensors = read_gguf_header(directory / made.emitted.entry).tensors
    return held_weights(tensors, set(device.cpu.isa), on_gpu=plan.serve.gpu_layers > made.facts.layers)


def _make(
    student: GgufStudent | CheckpointStudent,
    plan: ExportPlan,
    profile: DeviceProfile,
    directory: Path,
    source: SourceRecord,
    calibration: CalibrationChoice | None,
    name: str,
    progress: Progress,
    allow_loss: bool,
) -> Made:
    """Write the model, try it, prove it."""
    if isinstance(student, GgufStudent) and plan.conversion == "keep":
        emitted = emit_gguf(student, plan, directory, source, importance=None, progress=progress)
        facts, notes = _tried(plan, directory, emitted, name, None, progress)
        return Made(emitted, facts, notes, None)
    checkpoint: DecoderStudent = as_checkpoint(student) if isinstance(student, GgufStudent) else student
    importance = None
    if calibration is not None:
        importance = importance_of(student, checkpoint, calibration, source, directory, progress)
    if plan.format == "onnx":
        emitted = emit_onnx(checkpoint, plan, profile, directory, progress=progress)
    else:
        emitted = emit_gguf(student, plan, directory, source, importance=importance, progress=progress)
    own = None if isinstance(student, GgufStudent) and plan.format == "gguf" else checkpoint
    facts, notes = _tried(plan, directory, emitted, name, own, progress)
    proof = prove_export(
        checkpoint, plan, profile, directory, emitted, importance=importance, progress=progress
    )
    larger = "choose a larger --quantization"
    matrix = ", give an importance matrix with --calibration own"
    may_weigh = plan.format == "gguf" and calibration is None
    refuse_misses(proof, allow_loss=allow_loss, hint=f"{larger}{matrix if may_weigh else ''}")
    write_records(proof, name, directory, source=source, profile=profile, conversion=emitted.conversion)
    return Made(
        emitted, facts, (*_base_notes(student), *emitted.notes, *notes, *proof.misses), proof_fields(proof)
    )


def _base_notes(student: GgufStudent | CheckpointStudent) -> tuple[str, ...]:
    note = student.base_note() if isinstance(student, AdaptedStudent) else None
    return () if note is None else (note,)


def _tried(
    plan: ExportPlan,
    directory: Path,
    emitted: Emitted,
    name: str,
    checkpoint: DecoderStudent | None,
    progress: Progress,
) -> tuple[ModelFacts, tuple[str, ...]]:
    progress("trying the model", 0, 1)
    if plan.format == "onnx":
        assert checkpoint is not None
        tried = try_onnx(directory, plan.facts, name, checkpoint)
    else:
        tried = try_gguf(directory / emitted.entry, name, checkpoint)
    progress("trying the model", 1, 1)
    return tried


def _refuse_loss(plan: ExportPlan, facts: ModelFacts, allow_loss: bool) -> None:
    if plan.conversion == "requantize" and not allow_loss:
        raise ExportError(
            f"{facts.name} is {facts.quantization} already: making {plan.quantization} of it loses twice",
            hint="export the float student instead, leave out --quantization to keep "
            f"{facts.quantization}, or accept the loss with --allow-loss",
        )


def _check_copy(sealed: Bundle, student: GgufStudent, source: SourceRecord) -> None:
    sums = {file.path: file.sha256 for file in sealed.manifest.files}
    copied = [sums[str(path)] for path in shard_paths(Path(sealed.manifest.entry))]
    if student.sha256_of(copied) != source.sha256:
        raise ExportError(
            f"{source.name} changed while it was copied", hint="export it again once nothing writes to it"
        )


def _served_name(student: GgufStudent | CheckpointStudent) -> str:
    """SmolLM2-135M-Instruct.Q4_1.gguf is served as SmolLM2-135M-Instruct; a directory by its name."""
    if isinstance(student, CheckpointStudent):
        name = checkpoint_name(student.path)
    else:
        name = stem_without_shard(student.path)
        for mark in (".", "-", "_"):
            ending = f"{mark}{student.facts.quantization}"
            if name.lower().endswith(ending.lower()) and len(name) > len(ending):
                name = name[: -len(ending)]
                break
    refuse_invalid(name=name)
    return name
