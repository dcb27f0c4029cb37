"""A directory that appears complete under its name, or not at all."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import glob
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from edgekit.bundle.files import sync_directory
from edgekit.errors import ExportError

__all__ = ["directory_that_appears_at", "refuse_existing"]

_SUFFIX: Final = ".partial"
_STALE_S: Final = 24 * 3600
_FULL: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def refuse_existing(out: Path) -> None:
    """Raise ExportError if anything is at `out`."""
    if os.path.lexists(out):
        raise ExportError(
            f"{out} exists already; a bundle is never overwritten",
            hint="give another --out, or remove the directory first",
        )


@contextmanager
def directory_that_appears_at(out: Path) -> Iterator[Path]:
    """A temporary directory beside `out` that gets its name at the end; an error removes it.

    One that an earlier export to `out` left because it was killed is removed as well, after a day.

    Raises:
        ExportError: something is at `out` at the end, or an OSError occurred, here or in the block.
    """
    parent = out.absolute().parent
    made: list[Path] = []
    temporary = None
    try:
        _make_parents(parent, made)
        _remove_stale(parent, out.name)
        temporary = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=_SUFFIX, dir=parent))
        temporary.chmod(0o755)
        with _locked(temporary):
            yield temporary
        refuse_existing(out)
        temporary.rename(out)
        sync_directory(parent)
    except BaseException as error:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
        for directory in reversed(made):
            with contextlib.suppress(OSError):
                directory.rmdir()
        if isinstance(error, OSError):
            raise ExportError(
                f"{out}: cannot be written: {error.strerror or error}",
                hint="free some space, or give an --out on another disk" if error.errno in _FULL else None,
            ) from error
        raise


def _make_parents(directory: Path, made: list[Path]) -> None:
    """Make a directory and those above it that are missing; each is appended to `made` as soon as it is."""
    missing = []
    while not directory.exists():
        missing.append(directory)
        directory = directory.parent
    for parent in reversed(missing):
        parent.mkdir(exist_ok=True)
        made.append(parent)


def _remove_stale(parent: Path, name: str) -> None:
    for stale in parent.glob(f".{glob.escape(name)}.*{_SUFFIX}"):
        with contextlib.suppress(OSError):
            if time.time() - stale.lstat().st_mtime > _STALE_S:
                with _locked(stale):
                    shutil.rmtree(stale, ignore_errors=True)


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Mark a directory as in use; the mark ends with the process. OSError: another process uses it."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)
