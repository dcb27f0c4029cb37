"""The user's cache: what takes long to fetch or build and can be had again.

$XDG_CACHE_HOME/edgekit (or ~/.cache/edgekit)
├── sdist/      the released source of llama-cpp-python
├── wheels/     one directory per build: the wheel and what was built (record.json)
├── tools/      one directory per build: llama-bench, llama-server, llama-quantize
├── logs/       output of the latest builds
└── students/   sample students
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

__all__ = ["cache_directory", "file_sha256", "locked", "publish_directory", "scratch_directory", "sync_path"]


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


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync_path(path: Path) -> None:
    """Have the kernel write a file's data, or a directory's entries, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def publish_directory(staged: Path, final: Path) -> None:
    """Sync all files of `staged` and rename it to `final`, which must not exist: all of it, or nothing."""
    for path in staged.rglob("*"):
        if path.is_file():
            sync_path(path)
    sync_path(staged)
    staged.rename(final)
    sync_path(final.parent)
