"""Runs a build: its output goes to a log, its progress to whoever watches."""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, TextIO

from edgekit.errors import ToolchainError
from export.progress import Progress

__all__ = ["run_build"]

# Ninja: "[30/83] c++ ...". Make: "[ 30%] Building ...".
_NINJA: Final = re.compile(r"^\s*\[(\d+)/(\d+)\]")
_MAKE: Final = re.compile(r"^\s*\[\s*(\d+)%\]")
_FAILURE: Final = re.compile(r"\berror\b|\bFAILED\b|CMake Error|No such file|Killed", re.IGNORECASE)
_SHOWN_LINES: Final = 8


def run_build(
    command: Sequence[str],
    *,
    what: str,
    log: Path,
    progress: Progress,
    environ: Mapping[str, str] | None = None,
    directory: Path | None = None,
) -> None:
    """Run a build command to its end, appending its output to `log`.

    Args:
        what: the step, for the progress and the error.
        environ: the whole environment. None: this process's.

    Raises:
        ToolchainError: the command is missing or failed; shows the lines that tell why, and names the log.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a", encoding="utf-8") as output:
        output.write(f"$ {shlex.join(command)}\n")
        output.flush()
        try:
            child = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                env=environ,
                cwd=directory,
            )
        except FileNotFoundError:
            raise ToolchainError(
                f"{what}: {command[0]} is not on the PATH",
                hint=f"on Debian and Ubuntu: apt install {command[0]}",
            ) from None
        with child:
            telling = _watch(child, output, what, progress)
    if child.returncode != 0:
        raise ToolchainError(
            f"{what} failed with exit code {child.returncode}:\n"
            + "\n".join(f"  {line}" for line in telling),
            hint=f"the whole output is in {log}",
        )
    progress(what, 1, 1)


def _watch(child: subprocess.Popen[str], output: TextIO, what: str, progress: Progress) -> list[str]:
    """Follow the output. Lines that tell of a failure, or else the last ones."""
    telling: list[str] = []
    latest: list[str] = []
    progress(what, 0, 1)
    try:
        for line in child.stdout or ():
            output.write(line)
            text = line.strip()[:300]
            if step := _NINJA.match(line):
                progress(what, min(int(step[1]), int(step[2]) - 1), int(step[2]))
            elif step := _MAKE.match(line):
                progress(what, min(int(step[1]), 99), 100)
            elif text:
                latest = [*latest[1 - _SHOWN_LINES :], text]
            if _FAILURE.search(text) and not _NINJA.match(line) and len(telling) < _SHOWN_LINES:
                telling.append(text)
    except BaseException:
        child.terminate()
        raise
    return telling or latest
