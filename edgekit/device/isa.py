"""Finds the instruction sets that a CPU truly executes.

What /proc/cpuinfo lists is a claim: a hypervisor may report a set and not run it, and the kernel may refuse
its registers. So each claimed set is used once, in a child process, and counts when it gives the right
number. What is not claimed is not tried, even if it would run: such a virtual machine may be moved to a host
that lacks it.
"""

from __future__ import annotations

import json
import platform
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from edgekit.device.isa_code import ROUTINES, Routine

__all__ = ["IsaProbe", "probe_isa", "read_reported_isa"]

_CHILD: Final = Path(__file__).with_name("isa_child.py")


@dataclass(frozen=True, slots=True)
class IsaProbe:
    """Instruction sets, by the names of /proc/cpuinfo. Only those that edgekit has a routine for."""

    architecture: str
    """As `uname -m` prints it."""
    reported: frozenset[str]
    """What /proc/cpuinfo lists."""
    executes: frozenset[str]
    """What is listed and gave the right result."""
    refused: Mapping[str, str] = field(default_factory=dict)
    """What is listed and did not, with the reason: "SIGILL", "wrong result", "no answer in 20 s"."""


def read_reported_isa(cpuinfo: Path = Path("/proc/cpuinfo")) -> frozenset[str]:
    """The first processor's `flags` (x86_64) or `Features` (aarch64). Empty where there is no such file."""
    try:
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return frozenset()
    for line in lines:
        key, _, value = line.partition(":")
        if key.strip() in ("flags", "Features"):
            return frozenset(value.split())
    return frozenset()


def probe_isa(
    *,
    architecture: str | None = None,
    reported: frozenset[str] | None = None,
    routines: Mapping[str, Routine] | None = None,
    timeout_s: float = 20.0,
) -> IsaProbe:
    """Execute every reported instruction set once. Takes about 0.2 s; needs no compiler.

    Args:
        architecture: as `uname -m` prints it. None: this machine's.
        reported: what to try. None: what /proc/cpuinfo lists.
        routines: what to run, by name. None: all of the architecture.
        timeout_s: how long one child may run.
    """
    architecture = platform.machine() if architecture is None else architecture
    routines = ROUTINES.get(architecture, {}) if routines is None else routines
    reported = read_reported_isa() if reported is None else reported
    left = [name for name in routines if name in reported]
    executes: set[str] = set()
    refused: dict[str, str] = {}
    while left:
        finished, fatal, reason = _run({name: routines[name] for name in left}, timeout_s)
        for name, right in finished.items():
            if right:
                executes.add(name)
            else:
                refused[name] = "wrong result"
        if reason is not None:
            # With no routine begun, the child itself could not run: then none of them can.
            for name in [fatal] if fatal else [name for name in left if name not in finished]:
                refused[name] = reason
        left = [name for name in left if name not in executes and name not in refused]
    return IsaProbe(
        architecture=architecture,
        reported=frozenset(routines) & reported,
        executes=frozenset(executes),
        refused=refused,
    )


def _run(routines: Mapping[str, Routine], timeout_s: float) -> tuple[dict[str, bool], str | None, str | None]:
    """Names that finished and whether the result was right; the name that was fatal; why the child ended."""
    work = json.dumps(
        [
            [name, r.code.hex(), r.result, r.element, r.rounds, r.threads, r.tiles]
            for name, r in routines.items()
        ]
    )
    reason: str | None
    try:
        child = subprocess.run(
            [sys.executable, "-I", "-S", str(_CHILD)],
            input=work.encode(),
            capture_output=True,
            timeout=timeout_s,
            check=False,
        )
        output, reason = child.stdout, _death(child.returncode, child.stderr)
    except subprocess.TimeoutExpired as error:
        output, reason = error.stdout or b"", f"no answer in {timeout_s:g} s"
    finished: dict[str, bool] = {}
    begun: str | None = None
    for line in output.decode().splitlines():
        match line.split():
            case ["run", name]:
                begun = name
            case ["done", name, right]:
                finished[name] = right == "1"
                begun = None
    missing = [name for name in routines if name not in finished]
    if reason is None and missing:
        reason = "the child ended early"
    return finished, begun, reason


def _death(returncode: int, stderr: bytes) -> str | None:
    if returncode == 0:
        return None
    if returncode < 0:
        try:
            return signal.Signals(-returncode).name
        except ValueError:
            return f"signal {-returncode}"
    lines = stderr.decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else f"exit code {returncode}"
