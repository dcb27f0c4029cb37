"""The user's cache: what takes long to fetch or build and can be had again.

$XDG_CACHE_HOME/edgekit (or ~/.cache/edgekit)
├── sdist/        the released source of llama-cpp-python
├── wheels/       one directory per build: the wheel and what was built (record.json)
├── tools/        one directory per build: llama-bench, llama-server, llama-quantize
├── logs/         output of the latest builds
├── students/     sample students
├── calibration/  what students answered
├── imatrix/      which of their columns mattered
└── venvs/        environments of tools that edgekit runs, such as optimum
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Final

from edgekit.bundle.files import sync_directory

__all__ = ["cache_directory", "file_sha256", "locked", "publish_directory", "scratch_directory"]

_BLOCK_BYTES: Final = 1 << 22


def cache_directory(environ: Mapping[str, str] | None = None) -> Path:
    """edgekit's directory in the user's cache (XDG Base Directory Specification 0.8)."""
    environ = os.environ if environ is None else environ
    base = Path(environ.get("XDG_CACHE_HOME", ""))
    # The specification: a relative path is to be ignored.
    return (base if base.is_absolute() else Path.home() / ".cache") / "edgekit"


@contextlib.contextmanager
def locked(path: Path, on_wait: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Hold an exclusive lock on `path`, waiting for whoever has it. The lock ends with the process.

    Args:
        on_wait: called once when another process holds it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            on_wait()
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def scratch_directory(parent: Path, name: str) -> Iterator[Path]:
    """An empty directory in `parent` for as long as the context lasts; to be used under a lock.

    Whoever was killed before left theirs: those go first.
    """
    for stale in parent.glob(f".{name}-*"):
        shutil.rmtree(stale, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=f".{name}-", dir=parent) as temporary:
        yield Path(temporary)


def file_sha256(path: Path, progress: Callable[[int], None] = lambda done: None) -> str:
    """SHA-256 of a file, in hex. `progress` is called with the bytes read so far."""
    digest, done = hashlib.sha256(), 0
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
            done += len(block)
            progress(done)
    return digest.hexdigest()


def publish_directory(staged: Path, final: Path) -> None:
    """Sync all files of `staged` and rename it to `final`, which must not exist: all of it, or nothing."""
    for path in staged.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
    sync_directory(staged)
    staged.rename(final)
    sync_directory(final.parent)
