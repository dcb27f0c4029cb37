"""`edgekit profiles`: what devices edgekit knows, and what was tuned for them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import RenderableType

    from edgekit.profiles import DeviceProfile

__all__ = ["profiles"]


def profiles(
    name: Annotated[
        str | None, typer.Argument(help="One profile, by its name or by the path of a YAML file.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """List the device profiles, or show one in full."""
    import json

    from edgekit.profiles import load_profile, profile_names, profile_sha256, profiles_directory

    def document(profile: DeviceProfile) -> dict[str, Any]:
        return {**profile.model_dump(mode="json"), "sha256": profile_sha256(profile)}

    if name is None:
        known = [load_profile(each) for each in profile_names()]
        if as_json:
            typer.echo(json.dumps([document(profile) for profile in known], indent=2))
        else:
            _show(_overview(known))
            typer.echo(f"Every value's source is in {profiles_directory()}; edgekit profiles NAME shows all.")
        return
    profile = load_profile(name)
    if as_json:
        typer.echo(json.dumps(document(profile), indent=2))
    else:
        _show(_details(profile))


def _show(table: RenderableType) -> None:
    import sys

    from rich.console import Console

    # A pipe has no width: give it one that cuts nothing off.
    width = None if sys.stdout.isatty() else 200
    Console(width=width, markup=False, highlight=False).print(table)


def _overview(known: list[DeviceProfile]) -> RenderableType:
    from rich.table import Table

    from edgekit.profiles import resolve_host

    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("Profile", no_wrap=True)
    for heading in ("Usable memory", "Bandwidth", "Runtime", "Formats", "Quantizations"):
        table.add_column(heading)
    for profile in known:
        here = resolve_host(profile) if profile.name == "host" else profile
        usable = here.memory.usable_bytes
        sustained, peak = here.memory.sustained_gb_per_s, here.memory.peak_gb_per_s
        table.add_row(
            profile.name,
            "unknown" if usable is None else f"{usable / 1024**3:.1f} GiB",
            "unknown" if sustained is None or peak is None else f"{sustained:g} of {peak:g} GB/s",
            profile.runtime,
            ", ".join(profile.formats),
            ", ".join(profile.quantizations),
        )
    return table


def _details(profile: DeviceProfile) -> RenderableType:
    from rich.table import Table

    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column()
    for key, value in _flatten(profile.model_dump(mode="json"), ""):
        table.add_row(key, _text(value))
    return table


def _flatten(section: dict[str, Any], prefix: str) -> list[tuple[str, Any]]:
    rows: list[tuple[str, Any]] = []
    for key, value in section.items():
        if isinstance(value, dict):
            rows += _flatten(value, f"{prefix}{key}.")
        else:
            rows.append((prefix + key, value))
    return rows


def _text(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "true" if value else "false"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
