"""Finds a verb's module, runs it, and turns edgekit's errors into messages and exit codes.

A verb is imported when it is called and not before: `edgekit verify` on a device must not pay for the
web server, nor `edgekit --help` for anything. Verbs of other packages register themselves under the
entry point group `edgekit.verbs`.
"""

from __future__ import annotations

import importlib
import os
import sys
from importlib.metadata import entry_points
from types import MappingProxyType
from typing import Annotated, Any, Final

import typer
from typer.core import TyperGroup

from edgekit import __version__
from edgekit.errors import EdgekitError

__all__ = ["main"]

VERBS: Final = MappingProxyType(
    {
        "bench": "edgekit.cli.bench:bench",
        "fleet": "edgekit.cli.fleet:app",
        "keygen": "edgekit.cli.keygen:keygen",
        "profiles": "edgekit.cli.profiles:profiles",
        "serve": "edgekit.cli.serve:serve",
        "verify": "edgekit.cli.verify:verify",
    }
)


class LazyVerbs(TyperGroup):
    """A command group that imports a verb when it is asked for."""

    # `Any`: typer carries its own copy of click since 0.29, older releases use click's classes.
    def list_commands(self, ctx: Any) -> list[str]:
        return sorted(_targets())

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        target = _targets().get(cmd_name)
        if target is None:
            return None
        module_name, _, attribute = target.partition(":")
        verb = getattr(importlib.import_module(module_name), attribute)
        if isinstance(verb, typer.Typer):
            command = typer.main.get_command(verb)
            command.name = cmd_name
            return command
        single = typer.Typer(add_completion=False)
        single.command(name=cmd_name)(verb)
        return typer.main.get_command(single)


def _targets() -> dict[str, str]:
    others = {entry.name: entry.value for entry in entry_points(group="edgekit.verbs")}
    return {**others, **VERBS}


app = typer.Typer(
    cls=LazyVerbs,
    help="Put a quantized DeepSeek-R1 student on Jetson, Raspberry Pi and A100: export, sign, serve, watch.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"edgekit {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Entry point of the `edgekit` command. Exit codes: 0 done, 1 failed, 2 wrong usage."""
    try:
        app()
    except EdgekitError as error:
        typer.echo(f"edgekit: {error}", err=True)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        # The reader of our output went away (`edgekit … | head`): not a failure of ours.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
