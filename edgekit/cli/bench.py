"""`edgekit bench`: how fast a server answers, one stream or many, compared with another if wanted."""

from __future__ import annotations

from typing import Annotated

import typer

__all__ = ["bench"]


def bench(
    url: Annotated[
        str, typer.Argument(help="Base URL of an OpenAI-style server, e.g. http://127.0.0.1:8080")
    ],
    streams: Annotated[
        list[int] | None, typer.Option("--streams", "-s", help="Streams at once; may be given several times.")
    ] = None,
    requests: Annotated[int, typer.Option(help="Requests of each stream.", min=1)] = 3,
    max_tokens: Annotated[int, typer.Option(help="Tokens of each answer.", min=2)] = 128,
    against: Annotated[
        str | None, typer.Option(help="Another server, measured in turn; prints ratios.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="Model name to ask for.")] = None,
    json_output: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Measure tokens/s, time to first token and time between tokens of a running server."""
    import json
    from dataclasses import asdict

    from edgekit.http_load import Load, compare, measure

    rows = []
    for count in streams or [1, 8]:
        load = Load(streams=count, requests_per_stream=requests, max_tokens=max_tokens, model=model)
        # In turn, so that a machine that slows down does so for both.
        ours = measure(url, load)
        rows.append((ours, measure(against, load) if against is not None else None))
    if json_output:
        document = [
            {"measured": asdict(ours), "against": None if theirs is None else asdict(theirs)}
            for ours, theirs in rows
        ]
        typer.echo(json.dumps(document, indent=2))
        return
    typer.echo(
        f"{'streams':>7} {'tok/s':>8} {'TTFT p50':>9} {'p95':>8} {'gap p50':>8} {'p95':>8} {'p99':>8}  server"
    )
    for ours, theirs in rows:
        for figures, name in ((ours, url), (theirs, against)):
            if figures is not None:
                typer.echo(
                    f"{figures.streams:7d} {figures.tokens_per_s:8.1f} {figures.ttft_p50_ms:7.0f}ms "
                    f"{figures.ttft_p95_ms:6.0f}ms {figures.gap_p50_ms:6.1f}ms {figures.gap_p95_ms:6.1f}ms "
                    f"{figures.gap_p99_ms:6.1f}ms  {name}"
                )
        if theirs is not None:
            typer.echo(f"{'':7} {compare(ours, theirs)}")
