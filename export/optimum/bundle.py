"""A bundle by `--exporter optimum`: planned, written, tried, proven and sealed as all others are.

optimum's float32 graph, once it gives transformers' logits, is the student that the proof compares with.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Final

from edgekit.bundle.bundle import Bundle
from edgekit.bundle.manifest import SourceRecord, release_number
from edgekit.bundle.signing import SecretKey
from edgekit.errors import ModelFileError, PlanError, UsageError
from edgekit.facts import ModelFacts
from edgekit.forecast import MIB, Forecast, forecast
from edgekit.profiles import DeviceProfile, Format
from export.emit import Emitted, refuse_small_disk
from export.new_directory import directory_that_appears_at, refuse_existing
from export.optimum.exporter import REQUIREMENTS, ensure_optimum, export_with_optimum, refuse_unsupported
from export.optimum.facts import checkpoint_facts, context_tokens, declared_token, weight_files
from export.optimum.proof import prove_graph
from export.plan.decide import ExportPlan, make_plan
from export.progress import Progress, silent
from export.quality.limits import limits_for
from export.quality.record import Proof
from export.quality.step import refuse_misses, write_records
from export.sealing import Made, installed_versions, proof_fields, refuse_invalid, seal_export
from export.student.config import read_json
from export.student.provenance import files_sha256, find_license_text, find_revision
from export.student.safetensors_dir import TOKENIZER_FILES
from export.tokenizer_guard.guard import check_onnx_tokenizer
from export.tokenizer_guard.reference import TokenizerReference

__all__ = ["export_bundle_with_optimum"]

MODEL_NAME: Final = "model.onnx"
_TOOLS: Final = ("numpy", "onnxruntime-genai", "tokenizers")
_SOURCE_PATTERNS: Final = ("*.json", "*.jinja", "tokenizer.model")


def export_bundle_with_optimum(
    model: Path,
    profile: DeviceProfile,
    out: Path,
    *,
    secret_key: SecretKey | None = None,
    quantization: str | None = None,
    format: Format | None = None,  # noqa: A002 (the word that profiles and manifests use)
    name: str | None = None,
    release: int | None = None,
    allow_loss: bool = False,
    at_hand: DeviceProfile | None = None,
    python: Path | None = None,
    cache: Path | None = None,
    offline: bool = False,
    progress: Progress = silent,
    clock: Callable[[], datetime] = lambda: datetime.now(timezone.utc),
) -> Bundle:
    """Export a checkpoint of any decoder architecture that optimum knows into the new directory `out`.

    As `export_bundle`, but to ONNX only. Needs memory for the weights in float32 twice.

    Args:
        model: the directory of a checkpoint of float weights, in safetensors files.
        quantization: INT4 or F32; None takes INT4 if the profile does not say otherwise.
        allow_loss: permit a proof that misses its limits.
        at_hand: the profile with readings of the device where it leaves something open, for the plan.
        python, cache, offline: see `export_with_optimum`.

    Raises:
        ExportError: `out` exists, the disk is full, the architecture is not one of optimum's, its graph
            computes something else than transformers, or the int4 form is too far from it.
        PlanError: the model does not fit the device, or the profile is not for ONNX.
        ModelFileError: the checkpoint is damaged, or has no tokenizer.json.
        ToolchainError: optimum's environment is missing and cannot be made.
        UsageError: `model` is no directory, or the format, the name or the release will not do.
    """
    refuse_existing(out)
    now = clock()
    release = release_number(now) if release is None else release
    refuse_invalid(release=release, **({} if name is None else {"name": name}))
    if format not in (None, "onnx"):
        raise UsageError(f"optimum exports to ONNX, not to {format}", hint="leave --format out")
    checkpoint = _open(model)
    name = name or checkpoint.facts.name
    refuse_invalid(name=name)
    device = at_hand or profile
    facts = checkpoint.facts if quantization == "F32" else _with_head(checkpoint.facts)
    plan = make_plan(facts, device, quantization=quantization, format="onnx")
    python = python or ensure_optimum(cache=cache, offline=offline, progress=progress)
    with directory_that_appears_at(out) as directory:
        # optimum writes float32, and for a while twice, before anything becomes smaller.
        refuse_small_disk(directory, plan.facts.weight_bytes + 2 * 4 * plan.facts.parameters)
        source = checkpoint.source(progress)
        made, proof = _make(checkpoint, plan, profile, directory, python, name, progress)
        needs = forecast(made.facts, device, plan.serve)
        _refuse_larger(made.facts, device, needs)
        refuse_misses(proof, allow_loss=allow_loss, hint="export it with --quantization F32")
        write_records(
            proof, name, directory, source=source, profile=profile, conversion=made.emitted.conversion
        )
        sealed = seal_export(
            directory,
            made,
            plan,
            profile,
            needs=needs,
            source=source,
            license_text=find_license_text(model),
            release=release,
            now=now,
            tools={**installed_versions(_TOOLS), **dict(pin.split("==") for pin in REQUIREMENTS)},
            secret_key=secret_key,
            progress=progress,
        )
    return Bundle(out, sealed.manifest, sealed.digest, sealed.signed_by)


@dataclass(frozen=True, slots=True)
class _Checkpoint:
    """A checkpoint of any architecture: what is known of it without knowing its tensors."""

    path: Path
    config: Mapping[str, Any]
    facts: ModelFacts

    def tokenizer_files(self) -> dict[str, bytes]:
        paths = [self.path / name for name in TOKENIZER_FILES]
        return {path.name: path.read_bytes() for path in paths if path.is_file()}

    def tokenizer(self) -> TokenizerReference:
        return TokenizerReference(str(self.path), self.tokenizer_files())

    def end_tokens(self) -> Set[int]:
        ids = declared_token(self.path, self.config, "eos")
        return frozenset(ids if isinstance(ids, list) else () if ids is None else (ids,))

    def source(self, progress: Progress) -> SourceRecord:
        files = [path for pattern in _SOURCE_PATTERNS for path in self.path.glob(pattern)]
        return SourceRecord(
            name=self.facts.name,
            kind="safetensors",
            sha256=files_sha256([*weight_files(self.path), *files], progress),
            revision=find_revision(self.path / "config.json"),
            license=self.facts.license,
            base_model=self.facts.base_model,
        )


def _open(model: Path) -> _Checkpoint:
    if not model.is_dir():
        what = "is a file" if model.exists() else "no such directory"
        raise UsageError(
            f"{model}: {what}", hint="give the directory of a checkpoint; hf download gets one from a hub"
        )
    config = read_json(model / "config.json")
    refuse_unsupported(model, config)
    checkpoint = _Checkpoint(model, config, checkpoint_facts(model, config))
    if not (model / "tokenizer.json").is_file():
        raise ModelFileError(
            f"{model}: tokenizer.json is missing",
            hint="download it with the checkpoint, or make it with transformers: "
            "AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR)",
        )
    checkpoint.tokenizer()
    return checkpoint


def _make(
    checkpoint: _Checkpoint,
    plan: ExportPlan,
    profile: DeviceProfile,
    directory: Path,
    python: Path,
    name: str,
    progress: Progress,
) -> tuple[Made, Proof]:
    """Write the model, try its tokenizer, prove it."""
    floats = plan.quantization == "F32"
    with tempfile.TemporaryDirectory(prefix=".float32-", dir=directory) as kept:
        configured = export_with_optimum(
            checkpoint.path,
            directory,
            precision="fp32" if floats else "int4",
            python=python,
            keep_float32=Path(kept),
            progress=progress,
        )
        progress("trying the model", 0, 1)
        notes = _notes(checkpoint, configured)
        notes += check_onnx_tokenizer(directory, checkpoint)
        progress("trying the model", 1, 1)
        proof = prove_graph(
            directory,
            directory if floats else Path(kept),
            checkpoint.tokenizer(),
            ends=checkpoint.end_tokens(),
            context_tokens=context_tokens(checkpoint.config),
            quantization=plan.quantization,
            limits=limits_for(plan.quantization, profile.proof.get(plan.quantization)),
            progress=progress,
        )
    own = checkpoint.facts.quantization
    conversion = f"exported with optimum from {own}" + ("" if floats else ", quantized by onnxruntime")
    emitted = Emitted(MODEL_NAME, conversion)
    facts = _facts_as_written(checkpoint.facts, plan, name, directory)
    return Made(emitted, facts, (*notes, *proof.misses), proof_fields(proof)), proof


def _notes(checkpoint: _Checkpoint, configured: bool) -> tuple[str, ...]:
    notes: tuple[str, ...] = ()
    if checkpoint.tokenizer().template is None:
        notes += ("the model has no chat template: it completes texts and answers no chats",)
    if not configured:
        notes += ("onnxruntime-genai does not know how its KV cache is laid out: run it by onnxruntime",)
    return notes


def _with_head(facts: ModelFacts) -> ModelFacts:
    """The model as int4 graphs have it: a head that was the embedding is stored apart from it."""
    if not facts.tied_embeddings:
        return facts
    parameters = facts.parameters + facts.vocabulary * facts.embedding_length
    return facts.model_copy(update={"tied_embeddings": False, "parameters": parameters})


def _facts_as_written(facts: ModelFacts, plan: ExportPlan, name: str, directory: Path) -> ModelFacts:
    """What lies in the directory; `facts` are the student's."""
    size = sum(path.stat().st_size for path in directory.glob(f"{MODEL_NAME}*"))
    stored = plan.facts
    embedding = round(size * facts.vocabulary * facts.embedding_length / stored.parameters)
    looked_up = 0 if stored.tied_embeddings else embedding
    update = {"name": name, "weight_bytes": size, "bytes_per_token": max(1, size - looked_up)}
    return stored.model_copy(update={**update, "parameters": facts.parameters})


def _refuse_larger(facts: ModelFacts, device: DeviceProfile, needs: Forecast) -> None:
    """The plan went by what is usual; only now it is known what the quantizer left alone."""
    if needs.fits is False:
        raise PlanError(
            f"{facts.name} came out larger than planned, {facts.weight_bytes / MIB:.0f} MiB: it does not "
            f"fit {device.name}; {(needs.shortfall_bytes or 0) / MIB:.0f} MiB are missing",
            hint="choose a smaller model, or a profile with a smaller context",
        )
