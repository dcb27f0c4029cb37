"""`edgekit export`: make a signed bundle of a student for a device."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgekit.cli.json_output import json_document
from edgekit.errors import UsageError

if TYPE_CHECKING:
    from edgekit.bundle.bundle import Bundle
    from edgekit.bundle.signing import SecretKey
    from export.calibration.step import CalibrationChoice

__all__ = ["export"]


def export(
    model: Annotated[
        Path, typer.Argument(metavar="MODEL", help="A .gguf file, or a checkpoint's directory.")
    ],
    profile: Annotated[str, typer.Option(metavar="P", help="Device profile: its name, or a YAML file.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Directory to make; must not exist.")],
    adapter: Annotated[
        Path | None, typer.Option(metavar="DIR", help="A LoRA to merge into MODEL's weights.")
    ] = None,
    quantization: Annotated[
        str | None, typer.Option(metavar="Q", help="E.g. Q4_K_M; otherwise the profile's first that fits.")
    ] = None,
    export_format: Annotated[
        str | None, typer.Option("--format", metavar="F", help="gguf or onnx; otherwise the profile's first.")
    ] = None,
    calibration: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT",
            help="GGUF: weigh columns by an importance matrix, of a text file, or 'own' for MODEL's answers.",
        ),
    ] = None,
    sign_key: Annotated[
        Path | None, typer.Option(metavar="K", help="Secret key from `edgekit keygen`; signs the bundle.")
    ] = None,
    password_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Its first line decrypts the secret key.")
    ] = None,
    exporter: Annotated[
        str,
        typer.Option(
            metavar="E",
            help="own; or optimum: ONNX of any decoder architecture that optimum knows, "
            "in an environment of its own, which the first run makes.",
        ),
    ] = "own",
    offline: Annotated[
        bool, typer.Option("--offline", help="Fetch nothing: optimum's environment must be there already.")
    ] = False,
    name: Annotated[str | None, typer.Option(help="Name that the model is served under.")] = None,
    release: Annotated[
        int | None, typer.Option(metavar="N", help="Number that grows with every release; default: the time.")
    ] = None,
    allow_loss: Annotated[
        bool,
        typer.Option(
            "--allow-loss", help="Permit quantizing what was quantized before, and a proof that fails."
        ),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Export MODEL for a device into a bundle: planned, quantized, tried, proven, hashed and signed."""
    from edgekit.profiles import load_profile
    from export.cli.interrupt import interrupt_on_sigterm
    from export.cli.plan import known_format
    from export.progress import silent, stream_progress
    from export.this_machine import of_this_machine

    interrupt_on_sigterm()
    with json_document(as_json) as document:
        export_bundle = _exporter(exporter, adapter, _calibration(calibration), offline=offline)
        device = load_profile(profile)
        bundle = export_bundle(
            model,
            device,
            out,
            at_hand=of_this_machine(device),
            secret_key=_secret_key(sign_key, password_file),
            quantization=quantization,
            format=known_format(export_format),
            name=name,
            release=release,
            allow_loss=allow_loss,
            progress=silent if as_json else stream_progress(),
        )
        document.update(_facts(bundle))
    if not as_json:
        _report(bundle)


def _exporter(
    name: str, adapter: Path | None, calibration: CalibrationChoice | None, *, offline: bool
) -> Callable[..., Bundle]:
    """The function that makes the bundle, with the options that only it takes."""
    if name == "own":
        from export.pipeline import export_bundle

        return partial(export_bundle, adapter=adapter, calibration=calibration)
    if name != "optimum":
        raise UsageError(f"no exporter {name!r}", hint="exporters: own, optimum")
    if adapter is not None:
        raise UsageError(
            "optimum merges no LoRA",
            hint="merge it before, with peft's merge_and_unload, and leave out --adapter",
        )
    if calibration is not None:
        raise UsageError("onnxruntime's quantizer takes no importance matrix", hint="leave --calibration out")
    from export.optimum.bundle import export_bundle_with_optimum

    return partial(export_bundle_with_optimum, offline=offline)


def _secret_key(path: Path | None, password_file: Path | None) -> SecretKey | None:
    if path is None:
        return None
    from edgekit.bundle.signing import load_secret_key, read_password

    return load_secret_key(path, None if password_file is None else read_password(password_file))


def _calibration(choice: str | None) -> CalibrationChoice | None:
    if choice is None:
        return None
    from export.calibration.step import CalibrationChoice

    return CalibrationChoice(None if choice == "own" else Path(choice))


def _facts(bundle: Bundle) -> dict[str, Any]:
    manifest = bundle.manifest
    return {
        "bundle": str(bundle.path),
        "name": manifest.name,
        "release": manifest.release,
        "digest": bundle.digest,
        "quantization": manifest.plan.quantization,
        "conversion": manifest.plan.conversion,
        "size_bytes": manifest.size_bytes,
        "signed_by": bundle.signed_by,
        "plan": manifest.plan.model_dump(mode="json"),
        "model": manifest.model.model_dump(mode="json"),
        "proof": manifest.proof,
    }


def _report(bundle: Bundle) -> None:
    manifest = bundle.manifest
    typer.echo(f"bundle    {bundle.path}  ({manifest.size_bytes / 2**20:.1f} MiB)")
    typer.echo(
        f"model     {manifest.name}, release {manifest.release}: {manifest.plan.quantization}, "
        f"{manifest.plan.conversion}"
    )
    typer.echo(f"device    {manifest.profile.name}: {_needs(bundle)}")
    typer.echo(f"proof     {_proof(bundle)}")
    for note in manifest.plan.notes:
        typer.echo(f"note      {note}")
    if bundle.signed_by is not None:
        typer.echo(f"signed    by key {bundle.signed_by}")
        typer.echo(f"next      edgekit verify {bundle.path} --public-key KEY.pub")
        return
    typer.echo("signed    no: devices will not install it, and nobody can tell who made it")
    typer.echo(
        f"next      edgekit keygen --out KEY, then export again with --sign-key KEY.key; "
        f"or sign it: minisign -S -s KEY.key -m {bundle.path}/manifest.json"
    )


def _needs(bundle: Bundle) -> str:
    plan = bundle.manifest.plan
    if plan.forecast is None:
        return f"context {plan.serve.context_tokens}"
    speed = plan.forecast.decode_tokens_per_s
    expected = "" if speed is None else f", about {speed:.0f} tokens/s expected"
    return (
        f"context {plan.serve.context_tokens}, {plan.serve.slots} streams, "
        f"{plan.forecast.total_bytes / 2**20:.0f} MiB{expected}"
    )


def _proof(bundle: Bundle) -> str:
    proof = bundle.manifest.proof
    if proof is None:
        return "the student's own file, bit for bit"
    text = (
        f"KL divergence {proof['mean_kl']:.4f} nats (99 %: {proof['kl_p99']:.3f}), same first choice "
        f"{proof['top1_agreement']:.1%}, perplexity x {proof['perplexity_ratio']:.3f}"
    )
    if exact := proof.get("exact"):
        text += f"; {exact['exact']} of {exact['tensors']} moved tensors bit for bit"
    return text
