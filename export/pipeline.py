"""Makes a signed bundle of a student: plan, write, try, seal. All of it, or nothing at all."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError

from edgekit import __version__
from edgekit.bundle.bundle import Bundle, seal
from edgekit.bundle.manifest import (
    ManifestFields,
    PlanRecord,
    ProfileRef,
    SourceRecord,
    format_utc,
    release_number,
)
from edgekit.bundle.signing import SecretKey
from edgekit.engine.chat_template import ChatTemplate, ChatTemplateError
from edgekit.engine.probe import probe_model
from edgekit.errors import ExportError, ModelFileError, UsageError
from edgekit.facts import ModelFacts
from edgekit.forecast import forecast
from edgekit.gguf_header import GgufHeader, model_facts, read_gguf_header, validate_model
from edgekit.profiles import DeviceProfile, Format, profile_sha256
from export.emit import emit_gguf, refuse_small_disk
from export.new_directory import directory_that_appears_at, refuse_existing
from export.plan import ExportPlan, make_plan
from export.progress import Progress, silent
from export.quantize import require_llama_cpp
from export.student import CheckpointStudent, GgufStudent, open_student
from export.student.provenance import checkpoint_name
from export.tensor_plan import tensor_facts

__all__ = ["export_bundle"]

LICENSE_NAME: Final = "LICENSE"
_TOOLS: Final = ("gguf", "llama-cpp-python", "numpy")


def export_bundle(
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
    memory_mib: int | None = None,
    progress: Progress = silent,
    clock: Callable[[], datetime] = lambda: datetime.now(timezone.utc),
) -> Bundle:
    """Export a student for a device into the new directory `out`.

    The bundle is written to a temporary directory beside `out`, tried by loading it in a child process,
    sealed, synced to disk and renamed. If anything fails, nothing is left.

    Args:
        model: a GGUF file, or the directory of a checkpoint.
        secret_key: signs the bundle; None leaves it unsigned.
        quantization, format: override the plan's choice.
        name: what the model is called when served; None takes the student's name.
        release: None takes the time.
        allow_loss: permit quantizing weights that were quantized before.
        memory_mib: the device's memory where the profile leaves it open.

    Raises:
        ExportError: `out` exists, the disk is full, or the result does not load.
        PlanError: the model does not fit the device.
        ModelFileError: the student is damaged or of an unknown kind.
        UsageError: the name or the release is none that a manifest takes.
    """
    refuse_existing(out)
    now = clock()
    release = release_number(now) if release is None else release
    if name is not None:
        _refuse_invalid(name=name)
    _refuse_invalid(release=release)
    require_llama_cpp("trying the exported model")
    student = open_student(model)
    plan = make_plan(
        student.facts,
        profile.resolved(memory_mib=memory_mib),
        tensors=() if isinstance(student, GgufStudent) else tensor_facts(student.tensors()),
        quantization=quantization,
        format=format,
    )
    if plan.format != "gguf":
        raise ExportError(
            f"profile {profile.name} wants a bundle for {plan.runtime}, which this edgekit cannot write yet",
            hint="what can be written is GGUF, e.g. with --profile host; `edgekit plan` shows the rest",
        )
    _refuse_loss(plan, student.facts, allow_loss)
    name = name or _served_name(student)
    with directory_that_appears_at(out) as directory:
        refuse_small_disk(directory, plan)
        source = student.source(progress)
        emitted = emit_gguf(student, plan, directory, source, importance=None, progress=progress)
        if (text := student.license_text()) is not None:
            (directory / LICENSE_NAME).write_text(text, encoding="utf-8")
        progress("trying the model", 0, 1)
        facts, warnings = _tried(directory / emitted.entry, name)
        progress("trying the model", 1, 1)
        fields = ManifestFields(
            name=facts.name,
            release=release,
            created_utc=format_utc(now),
            runtime=plan.runtime,
            format=plan.format,
            entry=emitted.entry,
            model=facts,
            profile=ProfileRef(name=profile.name, sha256=profile_sha256(profile)),
            plan=PlanRecord(
                quantization=plan.quantization,
                conversion=emitted.conversion,
                serve=plan.serve,
                forecast=forecast(facts, profile.resolved(memory_mib=memory_mib), plan.serve),
                notes=(*plan.notes, *warnings),
            ),
            source=source,
            tools=_tool_versions(),
        )
        sealed = seal(
            directory, fields, secret_key, progress=lambda done, total: progress("sealing", done, total)
        )
        if emitted.conversion == "copied":
            _check_copy(sealed, source)
    return Bundle(out, sealed.manifest, sealed.digest, sealed.signed_by)


def _refuse_invalid(**fields: Any) -> None:
    """Ask the manifest's own rules now, not after hours of work."""
    try:
        ManifestFields.model_validate(fields)
    except ValidationError as error:
        for problem in error.errors(include_url=False):
            field = str(problem["loc"][0])
            if field in fields:
                what = problem["msg"].removeprefix("Value error, ")
                raise UsageError(
                    f"{field} {fields[field]!r}: {what[:1].lower()}{what[1:]}", hint=f"give another --{field}"
                ) from None


def _refuse_loss(plan: ExportPlan, facts: ModelFacts, allow_loss: bool) -> None:
    if plan.conversion == "requantize" and not allow_loss:
        raise ExportError(
            f"{facts.name} is {facts.quantization} already: making {plan.quantization} of it loses twice",
            hint="export the float student instead, leave out --quantization to keep "
            f"{facts.quantization}, or accept the loss with --allow-loss",
        )


def _check_copy(sealed: Bundle, source: SourceRecord) -> None:
    copied = next(file.sha256 for file in sealed.manifest.files if file.path == sealed.manifest.entry)
    if copied != source.sha256:
        raise ExportError(
            f"{source.name} changed while it was copied", hint="export it again once nothing writes to it"
        )


def _tried(path: Path, name: str) -> tuple[ModelFacts, tuple[str, ...]]:
    """Load what was written, as a device will, and say what it is, and what its users should know."""
    header = read_gguf_header(path)
    validate_model(header)
    warnings = _chat_tried(header)
    probe_model(path)
    return model_facts(header, name=name), warnings


def _chat_tried(header: GgufHeader) -> tuple[str, ...]:
    source = header.metadata.get("tokenizer.chat_template")
    if not isinstance(source, str) or not source:
        return ("the model has no chat template: it completes texts and answers no chats",)
    try:
        template = ChatTemplate(
            source, bos_token=_token(header, "bos_token_id"), eos_token=_token(header, "eos_token_id")
        )
        template.render([{"role": "user", "content": "Hello"}])
    except (ModelFileError, ChatTemplateError) as error:
        raise ModelFileError(
            f"no chat is possible with this model: {error.message}",
            hint="correct the template in the student: chat_template.jinja, or tokenizer_config.json",
        ) from error
    return ()


def _token(header: GgufHeader, key: str) -> str:
    """Text of a special token; empty where the model has none."""
    tokens, number = header.metadata["tokenizer.ggml.tokens"], header.metadata.get(f"tokenizer.ggml.{key}")
    if isinstance(tokens, tuple) and isinstance(number, int) and 0 <= number < len(tokens):
        return str(tokens[number])
    return ""


def _served_name(student: GgufStudent | CheckpointStudent) -> str:
    """SmolLM2-135M-Instruct.Q4_1.gguf is served as SmolLM2-135M-Instruct; a directory by its name."""
    if isinstance(student, CheckpointStudent):
        name = checkpoint_name(student.path)
    else:
        name = student.path.stem
        for mark in (".", "-", "_"):
            ending = f"{mark}{student.facts.quantization}"
            if name.lower().endswith(ending.lower()) and len(name) > len(ending):
                name = name[: -len(ending)]
                break
    _refuse_invalid(name=name)
    return name


def _tool_versions() -> dict[str, str]:
    tools = {"edgekit": __version__}
    for name in _TOOLS:
        with contextlib.suppress(PackageNotFoundError):
            tools[name] = version(name)
    return tools
