"""Decides what a student becomes on a device: format, quantization, settings that fit its memory. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from edgekit.errors import PlanError
from edgekit.facts import ModelFacts
from edgekit.forecast import MIB, Forecast, forecast
from edgekit.profiles import DeviceProfile, Format, Runtime, ServeSettings
from export.plan.artifact import EXPORTABLE, Conversion, Material
from export.plan.tensors import TensorFacts, TensorPlan

__all__ = ["Conversion", "ExportPlan", "make_plan"]

LEAST_CONTEXT_TOKENS: Final = 1024
"""Below this no R1 student finishes a thought: plans do not go there by themselves."""

_KV_BLOCK: Final = 32
"""Values that a block of a q8_0 or q4_0 KV cache holds."""

_RUNTIMES: Final[dict[Format, Runtime]] = {"gguf": "llama.cpp", "onnx": "onnxruntime", "vllm": "vllm"}
"""What can be planned, and what runs it."""


@dataclass(frozen=True, slots=True)
class ExportPlan:
    """What will be exported. `facts` describe the artifact, `forecast` its needs on the device."""

    format: Format
    runtime: Runtime
    quantization: str
    conversion: Conversion
    facts: ModelFacts
    serve: ServeSettings
    forecast: Forecast
    notes: tuple[str, ...]
    tensors: tuple[TensorPlan, ...] = ()
    """What becomes of each tensor of a checkpoint in GGUF."""


def make_plan(
    facts: ModelFacts,
    profile: DeviceProfile,
    *,
    tensors: Sequence[TensorFacts] = (),
    importance: bool = False,
    quantization: str | None = None,
    format: Format | None = None,  # noqa: A002 (the word that profiles and manifests use)
) -> ExportPlan:
    """Choose a quantization and settings for a student on a device.

    A student of float weights gets the first of the profile's quantizations that fits; a quantized one keeps
    its own integers where the format holds them. Where the profile's settings do not fit, the KV cache is
    stored in q8_0, then the context halved.

    Args:
        tensors: of a checkpoint; without them a plan for GGUF has none either.
        importance: whether the quantizer will have an importance matrix.
        quantization: take this one and no other.
        format: one of the profile's; None takes the first of them that can be planned.

    Raises:
        PlanError: nothing fits, or the choice is not known. The message names the nearest that fits.
    """
    chosen_format = _format(profile, format)
    material = Material(facts, chosen_format, tuple(tensors), importance)
    if not material.is_float and not material.is_packed and chosen_format not in ("gguf", "onnx"):
        raise PlanError(
            f"{facts.name} is {facts.quantization}: {chosen_format} bundles are made of float students",
            hint="give the checkpoint's directory, or a profile for llama.cpp, such as host",
        )
    candidates, notes = _candidates(material, profile, quantization)
    for serve, changes in _settings(facts, profile.serve):
        for candidate in candidates:
            artifact = material.in_quantization(candidate)
            needs = forecast(artifact, profile, serve)
            if needs.fits is not False:
                if needs.fits is None:
                    notes = (*notes, "the device's memory is not known: nothing was checked against it")
                return ExportPlan(
                    format=chosen_format,
                    runtime=_RUNTIMES[chosen_format],
                    quantization=candidate,
                    conversion=material.conversion(candidate),
                    facts=artifact,
                    serve=serve,
                    forecast=needs,
                    notes=(*material.notes(candidate), *notes, *changes),
                    tensors=material.tensor_plans(candidate),
                )
    raise _does_not_fit(material, profile, candidates)


def _format(profile: DeviceProfile, wanted: Format | None) -> Format:
    if wanted is not None and wanted not in profile.formats:
        raise PlanError(
            f"profile {profile.name} is not for format {wanted!r}: its settings are {profile.runtime}'s",
            hint=f"its formats are {', '.join(profile.formats)}; or give another --profile",
        )
    return next(name for name in profile.formats if wanted in (None, name))


def _candidates(
    material: Material, profile: DeviceProfile, wanted: str | None
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Quantizations to try in order, and what to say about them."""
    own, exportable = material.own, EXPORTABLE[material.format]
    tuned = _tuned(profile, material.format)
    if wanted is not None:
        if wanted != own and wanted not in exportable:
            raise PlanError(
                f"quantization {wanted!r} cannot be exported", hint=f"known are {', '.join(exportable)}"
            )
        if wanted in tuned:
            return (wanted,), ()
        return (wanted,), (
            f"{wanted} is not among the quantizations that profile {profile.name} was tuned for",
        )
    if not material.is_float and own is not None:
        return (own,), () if own in tuned else (
            f"keeps {own}, which profile {profile.name} was not tuned for",
        )
    known = tuple(name for name in tuned if name in exportable)
    if not known:
        raise PlanError(
            f"profile {profile.name} wants {', '.join(tuned)}, none of which can be exported",
            hint=f"choose one of {', '.join(exportable)} with --quantization",
        )
    return known, ()


def _tuned(profile: DeviceProfile, chosen: Format) -> tuple[str, ...]:
    """What the profile prefers. Its list is for its own runtime; ONNX has one quantization for devices."""
    return ("INT4",) if chosen == "onnx" and profile.runtime != "onnxruntime" else profile.quantizations


def _settings(facts: ModelFacts, serve: ServeSettings) -> Iterator[tuple[ServeSettings, tuple[str, ...]]]:
    """The profile's settings, then ever smaller ones, each with what was changed."""
    changes: tuple[str, ...] = ()
    trained = facts.context_train_tokens
    if 0 < trained < serve.context_tokens:
        changes = (f"context {trained} instead of {serve.context_tokens}: the model was trained for no more",)
        cells = None if serve.kv_cells is None else min(serve.kv_cells, trained * serve.slots)
        serve = serve.model_copy(update={"context_tokens": trained, "kv_cells": cells})
    if facts.head_length % _KV_BLOCK and serve.kv_type in ("q8_0", "q4_0"):
        changes = (
            *changes,
            f"KV cache in f16: {serve.kv_type} stores {_KV_BLOCK} values together, and a head has "
            f"{facts.head_length}",
        )
        serve = serve.model_copy(update={"kv_type": "f16"})
    yield serve, changes
    if serve.kv_cells is not None and serve.kv_cells > serve.context_tokens:
        changes = (*changes, f"KV cache of {serve.context_tokens} tokens instead of {serve.kv_cells}, to fit")
        serve = serve.model_copy(update={"kv_cells": None})
        yield serve, changes
    quantizable = facts.head_length % _KV_BLOCK == 0 and serve.flash_attention is not False
    if serve.kv_type in ("f16", "bf16", "f32") and quantizable:
        changes = (*changes, f"KV cache in q8_0 instead of {serve.kv_type}, to fit")
        serve = serve.model_copy(update={"kv_type": "q8_0"})
        yield serve, changes
    full = serve.context_tokens
    while serve.context_tokens > LEAST_CONTEXT_TOKENS:
        smaller = max(LEAST_CONTEXT_TOKENS, serve.context_tokens // 2)
        serve = serve.model_copy(update={"context_tokens": smaller, "kv_cells": None})
        yield serve, (*changes, f"context {smaller} instead of {full}, to fit")


def _does_not_fit(material: Material, profile: DeviceProfile, tried: tuple[str, ...]) -> PlanError:
    """The error, with the nearest thing that fits."""
    facts, exportable = material.facts, EXPORTABLE[material.format]
    *_, (least, _) = _settings(facts, profile.serve)
    artifacts = {name: material.in_quantization(name) for name in (*tried, *exportable)}
    sizes = {name: forecast(artifact, profile, least) for name, artifact in artifacts.items()}
    smallest = min((sizes[name] for name in tried), key=lambda needs: needs.total_bytes)
    available = smallest.available_bytes or 0
    message = (
        f"{facts.name} does not fit {profile.name}: as {', '.join(tried)} it needs at least "
        f"{smallest.total_bytes / MIB:.0f} MiB with a context of {least.context_tokens}; "
        f"{available / MIB:.0f} MiB are available"
    )
    fitting = next((name for name in exportable if sizes[name].fits), None)
    if fitting is not None:
        lossy = " --allow-loss, or better export the float student"
        return PlanError(
            message,
            hint=f"the nearest that fits: --quantization {fitting}{'' if material.is_float else lossy}",
        )
    small = "Q4_0" if "Q4_0" in exportable else tried[0]
    weights = artifacts[small].weight_bytes
    room = available - (sizes[small].total_bytes - weights)
    billions = max(0.0, facts.parameters * room / weights / 1e9)
    return PlanError(
        message,
        hint=f"no quantization of it fits; a model of up to {billions:.1f} billion weights in {small} does",
    )
