"""Virtual environments for tools whose packages do not go together with edgekit's own.

They lie in the user's cache, one per set of requirements, and can be deleted at any time. Nothing of them
is imported here: tools run as processes.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from edgekit.errors import ToolchainError
from export.cache import cache_directory, locked, scratch_directory
from export.progress import Progress, silent
from export.toolchain.run import run_build

__all__ = ["ensure_tool_venv"]

_TIMEOUT_S: Final = 300


def ensure_tool_venv(
    name: str,
    requirements: Sequence[str],
    *,
    imports: Sequence[str] = (),
    python: Path | None = None,
    cache: Path | None = None,
    offline: bool = False,
    progress: Progress = silent,
) -> Path:
    """The interpreter of an environment with `requirements`; made on first use by pip of this interpreter.

    Two processes that want the same one make it once. It appears complete under its name or not at all, and
    only if what it is for can be imported. One that does not run any more, because the Python it came from
    is gone, is made again.

    Args:
        name: of the tool, e.g. "optimum".
        requirements: with versions, e.g. "transformers==4.57.6". Only wheels are taken: nothing is built.
        imports: modules that must be importable before it counts as made.
        python: the interpreter that the environment is for; None takes this one.
        offline: refuse to fetch anything; an environment that exists is returned.

    Raises:
        ToolchainError: pip is missing or failed, a module cannot be imported, or `offline` forbids to try.
    """
    cache = cache_directory() if cache is None else cache
    python = Path(sys.executable) if python is None else python
    directory = cache / "venvs"
    key = _key(name, requirements, python)
    final, what = directory / key, f"making the environment for {name}"
    interpreter = final / "bin" / "python"
    if _runs(interpreter):
        return interpreter
    by_hand = f"{shlex.quote(sys.executable)} -m pip install {shlex.join(requirements)}"
    if offline:
        raise ToolchainError(
            f"{name} runs in an environment of its own, which is missing: {final}",
            hint=f"allow the network once, so that it can be made with: {by_hand}",
        )
    directory.mkdir(parents=True, exist_ok=True)
    log = cache / "logs" / f"venv-{key}.log"
    with locked(directory / f"{key}.lock", on_wait=lambda: progress(f"waiting: {what} elsewhere", 0, None)):
        if _runs(interpreter):  # another process has made it meanwhile
            return interpreter
        log.unlink(missing_ok=True)
        with scratch_directory(directory, key) as scratch:
            staged = scratch / "venv"
            # Debian's Python has no ensurepip: pip of this interpreter installs from outside.
            create = [str(python), "-m", "venv", "--without-pip", str(staged)]
            pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
            pip += ["--python", str(staged / "bin" / "python"), "install", "--no-input", "--no-compile"]
            try:
                run_build(create, what=f"{what}: python -m venv", log=log, progress=progress)
                run_build(
                    [*pip, "--only-binary", ":all:", *requirements], what=what, log=log, progress=progress
                )
                if imports:
                    check = [str(staged / "bin" / "python"), "-I", "-c", f"import {', '.join(imports)}"]
                    run_build(check, what=f"trying the environment for {name}", log=log, progress=progress)
            except ToolchainError as error:
                raise ToolchainError(
                    error.message,
                    hint=f"check the network and pip's configuration (pip config list); what is needed is "
                    f"{by_hand}; the whole output is in {log}",
                ) from error
            shutil.rmtree(final, ignore_errors=True)
            # One sync for all: 20,000 files one by one take minutes.
            os.sync()
            staged.rename(final)
    return interpreter


def _key(name: str, requirements: Sequence[str], python: Path) -> str:
    text = "\n".join([_version(python), *sorted(requirements)])
    return f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"


def _version(python: Path) -> str:
    """Version and place: environments link to the interpreter that made them."""
    if python == Path(sys.executable):
        return f"{sys.version} {sys.base_prefix}"
    code = "import sys; sys.stdout.write(sys.version + ' ' + sys.base_prefix)"
    try:
        return subprocess.run(
            [str(python), "-I", "-c", code], capture_output=True, text=True, timeout=_TIMEOUT_S, check=True
        ).stdout
    except (OSError, subprocess.SubprocessError) as error:
        raise ToolchainError(f"{python} is no Python that runs: {error}") from error


def _runs(interpreter: Path) -> bool:
    if not interpreter.exists():
        return False
    command = [str(interpreter), "-I", "-c", ""]
    try:
        return subprocess.run(command, capture_output=True, timeout=_TIMEOUT_S, check=False).returncode == 0
    except (OSError, subprocess.SubprocessError):
        return False
