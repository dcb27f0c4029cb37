"""`edgekit demo`: the main job on a real student, on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["demo"]


def demo(
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where the bundle and the keys go.")] = Path(
        "build/demo"
    ),
) -> None:
    """Fetch a real student, export, sign, verify, serve, ask, and show its telemetry."""
    from export.cli.interrupt import interrupt_on_sigterm
    from export.demo import run_demo
    from export.progress import stream_progress

    interrupt_on_sigterm()
    result = run_demo(out, say=lambda text: typer.echo(text, nl=False), progress=stream_progress())
    memory = (
        "" if result.server_rss_bytes is None else f", {result.server_rss_bytes / 2**20:.0f} MiB resident"
    )
    bundle, key = result.bundle.path, result.public_key_path
    typer.echo(
        f"\ndone in {result.seconds:.0f} s: {result.tokens} tokens at "
        f"{result.decode_tokens_per_s:.1f} tok/s, first after {result.ttft_s * 1e3:.0f} ms{memory}"
    )
    typer.echo(
        "nothing is left running; try next:\n"
        f"  .venv/bin/edgekit serve {bundle} --public-key {key}\n"
        "  .venv/bin/edgekit bench http://127.0.0.1:8080        (while it serves)\n"
        "  .venv/bin/edgekit plan MODEL --profile raspberry-pi-5-8gb"
    )
