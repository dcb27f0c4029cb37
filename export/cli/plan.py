"""`edgekit plan`: what an export for a device would choose, and what it would need there."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgekit.cli.json_output import json_document
from edgekit.errors import UsageError

if TYPE_CHECKING:
    from edgekit.profiles import DeviceProfile, Format
    from export.plan.decide import ExportPlan

__all__ = ["known_format", "plan"]


def plan(
    model: Annotated[
        Path, typer.Argument(metavar="MODEL", help="A .gguf file, or a checkpoint's directory.")
    ],
    profile: Annotated[str, typer.Option(metavar="P", help="Device profile: its name, or a YAML file.")],
    adapter: Annotated[
        Path | None, typer.Option(metavar="DIR", help="A LoRA to merge into MODEL's weights.")
    ] = None,
    quantization: Annotated[str | None, typer.Option(metavar="Q", help="Plan for this one only.")] = None,
    export_format: Annotated[
        str | None,
        typer.Option("--format", metavar="F", help="gguf, onnx or vllm; otherwise the profile's first."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Show format, quantization, memory and speed of MODEL on a device. Writes nothing."""
    from edgekit.profiles import load_profile
    from export.plan.decide import make_plan
    from export.plan.tensors import tensor_facts
    from export.student import GgufStudent, open_student
    from export.this_machine import of_this_machine

    with json_document(as_json) as document:
        device = load_profile(profile)
        student = open_student(model, adapter=adapter)
        made = make_plan(
            student.facts,
            of_this_machine(device),
            tensors=() if isinstance(student, GgufStudent) else tensor_facts(student.tensors()),
            quantization=quantization,
            format=known_format(export_format),
        )
        document.update(_document(made, device))
    if not as_json:
        _report(made, device)


def known_format(name: str | None) -> Format | None:
    """A format as given on the command line.

    Raises:
        UsageError: there is no such format.
    """
    from typing import get_args

    from edgekit.profiles import Format

    if name is not None and name not in get_args(Format):
        raise UsageError(f"no format {name!r}", hint=f"formats: {', '.join(get_args(Format))}")
    return name  # type: ignore[return-value]


def _document(made: ExportPlan, profile: DeviceProfile) -> dict[str, Any]:
    return {
        "profile": profile.name,
        "format": made.format,
        "runtime": made.runtime,
        "quantization": made.quantization,
        "conversion": made.conversion,
        "model": made.facts.model_dump(mode="json"),
        "serve": made.serve.model_dump(mode="json"),
        "forecast": made.forecast.model_dump(mode="json"),
        "notes": list(made.notes),
        "tensors": [asdict(item) for item in made.tensors],
    }


def _report(made: ExportPlan, profile: DeviceProfile) -> None:
    needs, serve = made.forecast, made.serve
    typer.echo(f"model      {made.facts.name}: {made.facts.parameters / 1e9:.2f} billion weights")
    typer.echo(f"device     {profile.name}: {profile.summary}")
    typer.echo(f"format     {made.format} for {made.runtime}, {made.quantization} ({made.conversion})")
    typer.echo(
        f"service    context {serve.context_tokens}, {serve.slots} streams, KV cache in {serve.kv_type}"
    )
    for label, size in (
        ("weights", needs.weights_bytes),
        ("copies", needs.copies_bytes),
        ("KV cache", needs.kv_bytes),
        ("compute", needs.compute_bytes),
        ("runtime", needs.runtime_bytes),
        ("total", needs.total_bytes),
        ("available", needs.available_bytes),
    ):
        typer.echo(f"{label:<10} {'unknown' if size is None else f'{size / 2**20:8.0f} MiB'}")
    for label, speed in (("decode", needs.decode_tokens_per_s), ("prefill", needs.prefill_tokens_per_s)):
        typer.echo(f"{label:<10} {'unknown' if speed is None else f'{speed:8.1f} tokens/s'}")
    for note in made.notes:
        typer.echo(f"note       {note}")
