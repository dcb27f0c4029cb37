"""Shows how far a long step is: a bar on a terminal, a line per step elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import typer

__all__ = ["shown_progress"]

Progress = Callable[[str, int, int], None]


@contextmanager
def shown_progress(*, quiet: bool) -> Iterator[Progress | None]:
    """A callback that takes a step's name, what is done of it and what there is, and shows it on stderr."""
    if quiet:
        yield None
    elif sys.stderr.isatty():
        yield from _bars()
    else:
        yield _Lines()


class _Lines:
    def __init__(self) -> None:
        self._step = ""

    def __call__(self, step: str, done: int, total: int) -> None:
        if step != self._step:
            self._step = step
            typer.echo(f"{step} …", err=True)


def _bars() -> Iterator[Progress]:
    from rich.console import Console
    from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Bars(*columns, console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task("", total=None)
        yield lambda step, done, total: bars.update(task, description=step, completed=done, total=total)
