"""Decides what a student becomes on a device: format, quantization, settings that fit its memory. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal

from edgekit.errors import PlanError
from edgekit.facts import ModelFacts
from edgekit.forecast import MIB, Forecast, forecast
from edgekit.gguf_header.tensor_types import FLOAT_TYPES
from edgekit.profiles import DeviceProfile, Format, Runtime, ServeSettings
from export.quantization_mix import QUANTIZATIONS, quantized_facts

__all__ = ["Conversion", "ExportPlan", "make_plan"]

Conversion = Literal["keep", "convert", "quantize", "requantize"]
"""keep: the student's own type. convert: from one float type to another. quantize: from float weights.
requantize: from weights that were quantized before, which adds a second loss to the first."""

LEAST_CONTEXT_TOKENS: Final = 1024
"""Below this no R1 student finishes a thought: plans do not go there by themselves."""

_RUNTIMES: Final[dict[Format, Runtime]] = {"gguf": "llama.cpp", "vllm": "vllm"}
"""What can be planned, and what runs it."""

_QUANTIZATIONS: Final[dict[Format, tuple[str, ...]]] = {
    "gguf": QUANTIZATIONS,
    "vllm": tuple(name for name in QUANTIZATIONS if name in FLOAT_TYPES),
}
"""What can be planned in a format, largest first."""


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


def make_plan(
    facts: ModelFacts,
    profile: DeviceProfile,
    *,
    quantization: str | None = None,
    format: Format | None = None,  # noqa: A002 (the word that profiles and manifests use)
) -> ExportPlan:
    """Choose a quantization and settings for a student on a device.

    A student of float weights gets the first of the profile's quantizations that fits; a quantized one keeps
    its own. Where the profile's settings do not fit, the KV cache is stored in q8_0, then the context halved.

    Args:
        quantization: take this one and no other.
        format: one of the profile's; None takes the first of them that can be planned.

    Raises:
        PlanError: nothing fits, or the choice is not known. The message names the nearest that fits.
    """
    chosen_format = _format(profile, format)
    known = _QUANTIZATIONS[chosen_format]
    if facts.quantization not in (*FLOAT_TYPES, *known) and chosen_format != "gguf":
        raise PlanError(
            f"{facts.name} is {facts.quantization}: {chosen_format} bundles are made of float students",
            hint="give the checkpoint's directory, or a profile for llama.cpp, such as host",
        )
    candidates, notes = _candidates(facts, profile, quantization, known)
    for serve, changes in _settings(facts, profile.serve):
        for candidate in candidates:
            artifact = facts if candidate == facts.quantization else quantized_facts(facts, candidate)
            needs = forecast(artifact, profile, serve)
            if needs.fits is not False:
                if needs.fits is None:
                    notes = (*notes, "the device's memory is not known: nothing was checked against it")
                return ExportPlan(
                    format=chosen_format,
                    runtime=_RUNTIMES[chosen_format],
                    quantization=candidate,
                    conversion=_conversion(facts.quantization, candidate),
                    facts=artifact,
                    serve=serve,
                    forecast=needs,
                    notes=(*notes, *changes),
                )
    raise _does_not_fit(facts, profile, candidates, known)


def _format(profile: DeviceProfile, wanted: Format | None) -> Format:
    if wanted is not None and wanted not in profile.formats:
        raise PlanError(
            f"profile {profile.name} is not for format {wanted!r}: its settings are {profile.runtime}'s",
            hint=f"its formats are {', '.join(profile.formats)}; or give another --profile",
        )
    for name in profile.formats if wanted is None else (wanted,):
        if _RUNTIMES.get(name) == profile.runtime:
            return name
    raise PlanError(
        f"profile {profile.name}: {wanted or ', '.join(profile.formats)} cannot be exported for "
        f"{profile.runtime} yet",
        hint=f"what can be: {', '.join(f'{name} for {runtime}' for name, runtime in _RUNTIMES.items())}",
    )


def _candidates(
    facts: ModelFacts, profile: DeviceProfile, wanted: str | None, exportable: tuple[str, ...]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Quantizations to try in order, and what to say about them."""
    own = facts.quantization
    if wanted is not None:
        if wanted != own and wanted not in exportable:
            raise PlanError(
                f"quantization {wanted!r} cannot be exported", hint=f"known are {', '.join(exportable)}"
            )
        notes = []
        if _conversion(own, wanted) == "requantize":
            notes.append(f"requantized from {own}: the loss of both quantizations adds up")
        if wanted not in profile.quantizations:
            notes.append(f"{wanted} is not among the quantizations that profile {profile.name} was tuned for")
        return (wanted,), tuple(notes)
    if own not in FLOAT_TYPES:
        if own in profile.quantizations:
            return (own,), ()
        return (own,), (f"keeps {own}, which profile {profile.name} was not tuned for",)
    known = tuple(name for name in profile.quantizations if name in exportable)
    if not known:
        raise PlanError(
            f"profile {profile.name} wants {', '.join(profile.quantizations)}, none of which can be exported",
            hint=f"choose one of {', '.join(exportable)} with --quantization",
        )
    return known, ()


def _conversion(own: str, wanted: str) -> Conversion:
    if own == wanted:
        return "keep"
    if own not in FLOAT_TYPES:
        return "requantize"
    return "convert" if wanted in FLOAT_TYPES else "quantize"


def _settings(facts: ModelFacts, serve: ServeSettings) -> Iterator[tuple[ServeSettings, tuple[str, ...]]]:
    """The profile's settings, then ever smaller ones, each with what was changed."""
    changes: tuple[str, ...] = ()
    trained = facts.context_train_tokens
    if 0 < trained < serve.context_tokens:
        changes = (f"context {trained} instead of {serve.context_tokens}: the model was trained for no more",)
        cells = None if serve.kv_cells is None else min(serve.kv_cells, trained * serve.slots)
        serve = serve.model_copy(update={"context_tokens": trained, "kv_cells": cells})
    yield serve, changes
    if serve.kv_cells is not None and serve.kv_cells > serve.context_tokens:
        changes = (*changes, f"KV cache of {serve.context_tokens} tokens instead of {serve.kv_cells}, to fit")
        serve = serve.model_copy(update={"kv_cells": None})
        yield serve, changes
    if serve.kv_type in ("f16", "bf16", "f32") and serve.flash_attention is not False:
        changes = (*changes, f"KV cache in q8_0 instead of {serve.kv_type}, to fit")
        serve = serve.model_copy(update={"kv_type": "q8_0"})
        yield serve, changes
    full = serve.context_tokens
    while serve.context_tokens > LEAST_CONTEXT_TOKENS:
        smaller = max(LEAST_CONTEXT_TOKENS, serve.context_tokens // 2)
        serve = serve.model_copy(update={"context_tokens": smaller, "kv_cells": None})
        yield serve, (*changes, f"context {smaller} instead of {full}, to fit")


def _does_not_fit(
    facts: ModelFacts, profile: DeviceProfile, tried: tuple[str, ...], exportable: tuple[str, ...]
) -> PlanError:
    """The error, with the nearest thing that fits."""
    *_, (least, _) = _settings(facts, profile.serve)
    sizes = {name: forecast(_as(facts, name), profile, least) for name in (*tried, *exportable)}
    smallest = min((sizes[name] for name in tried), key=lambda needs: needs.total_bytes)
    available = smallest.available_bytes or 0
    message = (
        f"{facts.name} does not fit {profile.name}: as {', '.join(tried)} it needs at least "
        f"{smallest.total_bytes / MIB:.0f} MiB with a context of {least.context_tokens}; "
        f"{available / MIB:.0f} MiB are available"
    )
    fitting = next((name for name in exportable if sizes[name].fits), None)
    if fitting is not None:
        lossy = (
            " --allow-loss, or better export the float student"
            if facts.quantization not in FLOAT_TYPES
            else ""
        )
        return PlanError(message, hint=f"the nearest that fits: --quantization {fitting}{lossy}")
    small = "Q4_0" if "Q4_0" in exportable else tried[0]
    weights = _as(facts, small).weight_bytes
    room = available - (sizes[small].total_bytes - weights)
    billions = max(0.0, facts.parameters * room / weights / 1e9)
    return PlanError(
        message,
        hint=f"no quantization of it fits; a model of up to {billions:.1f} billion weights in {small} does",
    )


def _as(facts: ModelFacts, quantization: str) -> ModelFacts:
    return facts if quantization == facts.quantization else quantized_facts(facts, quantization)
