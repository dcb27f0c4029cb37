"""A bundle's files on disk: listed and read without following links, written so that they last."""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
import stat
from collections.abc import Callable, Iterable
from pathlib import Path, PurePosixPath
from typing import BinaryIO, Final

from edgekit.errors import BundleError, IntegrityError

__all__ = [
    "hash_file",
    "read_regular",
    "scan",
    "shown",
    "sync_directories",
    "sync_directory",
    "write_durably",
]

_CHUNK: Final = 1024 * 1024


def scan(directory: Path, *, skip: tuple[str, ...] = ()) -> dict[str, int]:
    """Path, relative and with slashes, to size in bytes of every file below a directory.

    Hidden files count, empty directories do not. `skip` names files at the top to leave out.

    Raises:
        IntegrityError: a symbolic link, or something else that is neither a file nor a directory.
        BundleError: a directory cannot be listed.
    """
    sizes: dict[str, int] = {}
    pending = [""]
    while pending:
        prefix = pending.pop()
        try:
            with os.scandir(directory / prefix) as entries:
                for entry in entries:
                    name = prefix + entry.name
                    status = entry.stat(follow_symlinks=False)
                    if stat.S_ISDIR(status.st_mode):
                        pending.append(f"{name}/")
                    elif stat.S_ISREG(status.st_mode):
                        if name not in skip:
                            sizes[name] = status.st_size
                    else:
                        kind = "a symbolic link" if entry.is_symlink() else "neither a file nor a directory"
                        raise IntegrityError(
                            f"{directory}: {shown(name)} is {kind}", hint="a bundle holds regular files only"
                        )
        except OSError as error:
            raise BundleError(f"{directory / prefix}: cannot list it: {error.strerror}") from error
    return sizes


def hash_file(path: Path, advance: Callable[[int], None], *, sync: bool = False) -> tuple[int, str]:
    """Size in bytes and SHA-256 in hex of a regular file. `sync` makes sure that it is on the disk.

    `advance` is called with the bytes of each piece read.

    Raises:
        IntegrityError: it cannot be read, or is not a regular file.
    """
    digest = hashlib.sha256()
    size = 0
    try:
        with _open_regular(path) as stream:
            while chunk := stream.read(_CHUNK):
                digest.update(chunk)
                size += len(chunk)
                advance(len(chunk))
            if sync:
                os.fsync(stream.fileno())
    except OSError as error:
        raise IntegrityError(f"{path}: cannot read it: {error.strerror}") from error
    return size, digest.hexdigest()


def read_regular(path: Path, limit: int) -> bytes:
    """The first `limit` bytes of a regular file.

    Raises:
        OSError: it cannot be read, or is not a regular file.
    """
    try:
        with _open_regular(path) as stream:
            parts = []
            while limit > 0 and (part := stream.read(limit)):
                parts.append(part)
                limit -= len(part)
            return b"".join(parts)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise OSError(
                errno.ELOOP, "it is a symbolic link, and a bundle holds regular files only"
            ) from error
        raise


def write_durably(path: Path, content: bytes) -> None:
    """Write a file under another name, sync it, rename it, and sync its directory."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    try:
        with open(descriptor, "wb") as stream:  # noqa: PTH123 (a descriptor, not a path)
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.rename(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Have the kernel write a directory's entries to the disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_directories(directory: Path, files: Iterable[str]) -> None:
    """Sync every directory that leads to one of `files`, which are relative to `directory`."""
    below = {parent for name in files for parent in PurePosixPath(name).parents}
    for name in below:
        sync_directory(directory / name)


def shown(path: str) -> str:
    """A path for a message, escaped when a terminal could not show it."""
    return path if path.isprintable() else repr(path)


def _open_regular(path: Path) -> BinaryIO:
    # O_NONBLOCK: opening a FIFO that was put in the file's place must not wait for a writer.
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "not a regular file")
        return open(descriptor, "rb", buffering=0)  # noqa: PTH123 (a descriptor, not a path)
    except OSError:
        os.close(descriptor)
        raise
