"""`edgekit fleet`: what the devices tell."""

from __future__ import annotations

from typing import Annotated

import typer

__all__ = ["app"]

app = typer.Typer(help="Watch the devices of a fleet.", no_args_is_help=True)


@app.callback()
def _fleet() -> None:
    pass


@app.command()
def watch(
    url: Annotated[
        str,
        typer.Argument(
            help="The broker: mqtt://user:password@host:port (user and port may be left out), or mqtts://…"
        ),
    ],
    fleet: Annotated[str, typer.Option(help="Only this fleet; + for all.")] = "+",
    count: Annotated[int | None, typer.Option(min=1, help="End after this many messages.")] = None,
    timeout: Annotated[float | None, typer.Option(min=0, help="End after this many seconds.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print each message as one line of JSON.")] = False,
) -> None:
    """Print a line for each message of the fleet, until interrupted."""
    import logging

    from edgekit.errors import TelemetryError
    from edgekit.fleet.subscriber import FleetSubscriber
    from edgekit.fleet.watch import printable, to_json, to_line

    # The connection's ups and downs, on stderr; stdout is for messages.
    logging.basicConfig(format="edgekit: %(message)s", level=logging.WARNING)

    def report(topic: str, problem: str) -> None:
        typer.echo(f"edgekit: ignored on {topic!r}: {printable(problem)}", err=True)

    seen = 0
    with FleetSubscriber(url, fleet=fleet, on_rejected=report) as subscriber:
        for received in subscriber.messages(timeout_s=timeout):
            typer.echo(to_json(received) if as_json else to_line(received))
            seen += 1
            if seen == count:
                return
    if count is not None:
        raise TelemetryError(
            f"{seen} of {count} messages came within {timeout:g} s",
            hint="check that the devices publish to this broker, and the name of the fleet",
        )
