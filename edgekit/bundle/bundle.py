"""Sealing a directory into a bundle, and checking that a bundle is what its maker sealed."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pydantic import ValidationError

from edgekit.bundle.files import hash_file, read_regular, scan, shown, sync_directories, write_durably
from edgekit.bundle.manifest import (
    MANIFEST_NAME,
    SCHEMA_VERSION,
    SIGNATURE_NAME,
    FileEntry,
    Manifest,
    ManifestFields,
    check_file_path,
    manifest_bytes,
    parse_manifest,
    parse_utc,
)
from edgekit.bundle.signing import PublicKey, SecretKey, sign, verify_signature
from edgekit.errors import BundleError, IntegrityError, ManifestError, SignatureError

__all__ = ["Bundle", "Progress", "open_bundle", "seal", "verify_bundle"]

_OWN_FILES: Final = (MANIFEST_NAME, SIGNATURE_NAME)
_MANIFEST_LIMIT: Final = 16 * 1024 * 1024
_SIGNATURE_LIMIT: Final = 64 * 1024
_COPY_AGAIN: Final = "copy the bundle again from where it was exported"

Progress = Callable[[int, int], None]
"""Called with the bytes hashed so far and the bytes in all."""


@dataclass(frozen=True, slots=True)
class Bundle:
    """A bundle on disk."""

    path: Path
    manifest: Manifest
    digest: str
    """SHA-256, in hex, of manifest.json: the bundle's identity."""
    signed_by: str | None
    """Id of the key whose signature was verified, 16 hex digits. None: not checked."""

    @property
    def entry_path(self) -> Path:
        """The file that the runtime opens."""
        return self.path / self.manifest.entry


def seal(
    directory: Path,
    fields: ManifestFields,
    secret_key: SecretKey | None,
    *,
    progress: Progress | None = None,
) -> Bundle:
    """Make a bundle of a directory: hash every file, write manifest.json, sign it, sync all to disk.

    The same files, fields and key give the same bundle. On an error nothing is left behind.

    Raises:
        BundleError: already sealed, or not a directory.
        IntegrityError: it holds a symbolic link or something else that is not a file.
        ManifestError: the fields and the files do not go together.
    """
    for name in _OWN_FILES:
        if os.path.lexists(directory / name):
            raise BundleError(
                f"{directory} is sealed already: it has a {name}",
                hint="export into a new directory; a sealed bundle is not changed",
            )
    sizes = scan(directory, skip=_OWN_FILES)
    for path in sizes:
        try:
            check_file_path(path)
        except ValueError as error:
            raise IntegrityError(f"{directory}: {error}") from error
    if fields.entry not in sizes:
        raise ManifestError(f"{directory}: the entry {fields.entry} is not in it")
    counter = _Counter(sum(sizes.values()), progress)
    files = []
    for path in sorted(sizes):
        size_bytes, digest = hash_file(directory / path, counter.add, sync=True)
        files.append(FileEntry(path=path, size_bytes=size_bytes, sha256=digest))
    try:
        manifest = Manifest(**dict(fields), schema_version=SCHEMA_VERSION, files=tuple(files))
    except ValidationError as error:
        raise ManifestError(f"{directory}: {error.errors()[0]['msg']}") from error
    data = manifest_bytes(manifest)
    manifest = parse_manifest(data)
    written = [(MANIFEST_NAME, data)]
    if secret_key is not None:
        comment = (
            f"timestamp:{int(parse_utc(manifest.created_utc).timestamp())}\tfile:{MANIFEST_NAME}"
            f"\tname:{manifest.name}\trelease:{manifest.release}\thashed"
        )
        # The manifest goes last: where there is one, its signature is there as well.
        written.insert(0, (SIGNATURE_NAME, sign(data, secret_key, trusted_comment=comment).encode()))
    try:
        sync_directories(directory, sizes)
        for name, content in written:
            write_durably(directory / name, content)
    except BaseException as error:
        for name, _ in written:
            (directory / name).unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise BundleError(f"{directory}: cannot write the manifest: {error.strerror}") from error
        raise
    return Bundle(directory, manifest, hashlib.sha256(data).hexdigest(), _id_of(secret_key))


def open_bundle(path: Path) -> Bundle:
    """Read a bundle's manifest. Neither its signature nor its files are checked.

    Raises:
        ManifestError: no manifest, or one that is not valid.
    """
    data = _read_manifest(path)
    return Bundle(path, _parse(path, data), hashlib.sha256(data).hexdigest(), None)


def verify_bundle(path: Path, public_key: PublicKey | None, *, progress: Progress | None = None) -> Bundle:
    """Check a bundle: the signature over the manifest's bytes, then the manifest, then every file.

    Without a key the signature is not looked at, and `signed_by` is None.

    Raises:
        SignatureError: not signed, or not by `public_key`.
        ManifestError: no manifest, or one that is not valid.
        IntegrityError: a file is missing, extra, changed, or not a regular file; the message names it.
    """
    data = _read_manifest(path)
    if public_key is not None:
        _check_signature(path, data, public_key)
    manifest = _parse(path, data)
    _check_files(path, manifest, progress)
    return Bundle(path, manifest, hashlib.sha256(data).hexdigest(), _id_of(public_key))


def _check_signature(path: Path, data: bytes, public_key: PublicKey) -> None:
    try:
        signature = read_regular(path / SIGNATURE_NAME, _SIGNATURE_LIMIT)
    except FileNotFoundError as error:
        raise SignatureError(
            f"{path} is not signed: it has no {SIGNATURE_NAME}",
            hint="export with --sign-key, or sign manifest.json with: minisign -S -m manifest.json",
        ) from error
    except OSError as error:
        raise SignatureError(f"{path / SIGNATURE_NAME}: cannot read it: {error.strerror}") from error
    try:
        verify_signature(data, signature, public_key)
    except SignatureError as error:
        raise SignatureError(f"{path}: {error.message}", hint=error.hint) from error


def _check_files(path: Path, manifest: Manifest, progress: Progress | None) -> None:
    found = scan(path, skip=_OWN_FILES)
    entries = {entry.path: entry for entry in manifest.files}
    if missing := sorted(entries.keys() - found.keys()):
        raise IntegrityError(f"{path}: {_names(missing)} missing", hint=_COPY_AGAIN)
    if extra := sorted(found.keys() - entries.keys()):
        raise IntegrityError(
            f"{path}: {_names(extra)} not in the manifest",
            hint="a bundle holds its own files only: remove what was added, or copy the bundle again",
        )
    for name, entry in entries.items():
        if found[name] != entry.size_bytes:
            raise IntegrityError(
                f"{path}: {name} has {found[name]} bytes, the manifest says {entry.size_bytes}",
                hint=_COPY_AGAIN,
            )
    counter = _Counter(manifest.size_bytes, progress)
    for name, entry in entries.items():
        if hash_file(path / name, counter.add) != (entry.size_bytes, entry.sha256):
            raise IntegrityError(
                f"{path}: {name} was changed: its SHA-256 is not the manifest's", hint=_COPY_AGAIN
            )


class _Counter:
    def __init__(self, total: int, progress: Progress | None) -> None:
        self._done = 0
        self._total = total
        self._progress = progress

    def add(self, size: int) -> None:
        self._done += size
        if self._progress is not None:
            self._progress(self._done, self._total)


def _read_manifest(path: Path) -> bytes:
    source = path / MANIFEST_NAME
    try:
        data = read_regular(source, _MANIFEST_LIMIT + 1)
    except OSError as error:
        absent = isinstance(error, (FileNotFoundError, NotADirectoryError))
        raise ManifestError(
            f"{path}: no {MANIFEST_NAME} in it" if absent else f"{source}: cannot read it: {error.strerror}",
            hint="a bundle is the directory that `edgekit export --out DIR` wrote" if absent else None,
        ) from error
    if len(data) > _MANIFEST_LIMIT:
        raise ManifestError(f"{source}: longer than {_MANIFEST_LIMIT} bytes")
    return data


def _parse(path: Path, data: bytes) -> Manifest:
    return parse_manifest(data, source=str(path / MANIFEST_NAME))


def _names(paths: list[str]) -> str:
    rest = f" and {len(paths) - 1} more are" if len(paths) > 1 else " is"
    return shown(paths[0]) + rest


def _id_of(key: SecretKey | PublicKey | None) -> str | None:
    return None if key is None else key.key_id
