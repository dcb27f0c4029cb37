"""`edgekit runtime`: build llama.cpp for this machine, and install it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from export.toolchain import BuiltWheel

__all__ = ["app"]

app = typer.Typer(
    name="runtime", help="Build llama-cpp-python for a device, and install it.", no_args_is_help=True
)

_Profile = Annotated[str, typer.Option(metavar="P", help="Device profile: its name, or a YAML file.")]
_Jobs = Annotated[
    int | None, typer.Option(min=1, metavar="N", help="Compilers at once; default: one per CPU.")
]


@app.command()
def build(
    profile: _Profile = "host",
    tools: Annotated[
        bool, typer.Option("--tools", help="Also build llama-bench, llama-server and llama-quantize.")
    ] = False,
    jobs: _Jobs = None,
) -> None:
    """Build the wheel into the user's cache, unless it is there, and print its path."""
    from export.progress import stream_progress
    from export.toolchain import build_tools

    built = _built(profile, jobs)
    typer.echo(str(built.path))
    if tools:
        typer.echo(str(build_tools(built, jobs=jobs, progress=stream_progress(), log=_log)))


@app.command()
def install(profile: _Profile = "host", jobs: _Jobs = None) -> None:
    """Install the wheel into this Python environment; build it first where it has not been built."""
    from export.toolchain import install_wheel

    install_wheel(_built(profile, jobs), log=_log)


def _built(profile: str, jobs: int | None) -> BuiltWheel:
    from edgekit.profiles import load_profile
    from export.progress import stream_progress
    from export.toolchain import build_wheel, choose_flag_sets

    flag_sets = choose_flag_sets(load_profile(profile))
    return build_wheel(flag_sets, jobs=jobs, progress=stream_progress(), log=_log)


def _log(line: str) -> None:
    typer.echo(f"runtime: {line}", err=True)
