"""Where a student comes from: checksums, revision, licence, base model."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

import yaml

from edgekit.errors import ModelFileError
from export.progress import Progress, silent

__all__ = ["file_sha256", "files_sha256", "find_license_text", "find_revision", "read_model_card"]

_BLOCK_BYTES: Final = 1 << 22
_MAX_LICENSE_BYTES: Final = 1 << 20
_COMMIT: Final = re.compile(r"[0-9a-f]{40}")


def file_sha256(path: Path, progress: Progress = silent) -> str:
    """Hex sha256 of one file."""
    return _sha256s([path], progress)[0]


def files_sha256(files: Iterable[Path], progress: Progress = silent) -> str:
    """One hex sha256 for several files: of what `sha256sum` prints for them, sorted by name."""
    paths = sorted(files, key=lambda path: path.name)
    lines = [
        f"{digest}  {path.name}\n" for path, digest in zip(paths, _sha256s(paths, progress), strict=True)
    ]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _sha256s(paths: list[Path], progress: Progress) -> list[str]:
    done, total = 0, sum(path.stat().st_size for path in paths)
    digests = []
    for path in paths:
        digest = hashlib.sha256()
        with path.open("rb") as file:
            while block := file.read(_BLOCK_BYTES):
                digest.update(block)
                done += len(block)
                progress("checksum of the student", done, total)
        digests.append(digest.hexdigest())
    return digests


def find_revision(directory: Path) -> str | None:
    """The commit that a checkpoint was downloaded at, from the traces that Hugging Face's tools leave.

    Their cache names the directory by the commit; `hf download --local-dir` writes it to
    .cache/huggingface/download/<file>.metadata.
    """
    if directory.resolve().parent.name == "snapshots" and _COMMIT.fullmatch(directory.resolve().name):
        return directory.resolve().name
    trace = directory / ".cache" / "huggingface" / "download" / "config.json.metadata"
    if trace.is_file():
        lines = trace.read_text(encoding="utf-8", errors="replace").splitlines()
        if lines and _COMMIT.fullmatch(lines[0].strip()):
            return lines[0].strip()
    return None


def find_license_text(directory: Path) -> str | None:
    """The text of a LICENSE file in a checkpoint's directory."""
    for name in ("LICENSE", "LICENSE.txt", "LICENSE.md"):
        path = directory / name
        if path.is_file() and path.stat().st_size <= _MAX_LICENSE_BYTES:
            return path.read_text(encoding="utf-8", errors="replace")
    return None


def read_model_card(directory: Path) -> Mapping[str, Any]:
    """The YAML head of a checkpoint's README.md, or nothing.

    Raises:
        ModelFileError: there is a head and it is not YAML.
    """
    path = directory / "README.md"
    if not path.is_file():
        return {}
    match = re.match(
        r"---\r?\n(.*?)\r?\n---\r?\n", path.read_text(encoding="utf-8", errors="replace"), re.DOTALL
    )
    if match is None:
        return {}
    try:
        card = yaml.safe_load(match[1].replace("\t", "  "))
    except yaml.YAMLError as error:
        raise ModelFileError(
            f"{path}: the head is not YAML: {error}", hint="correct it, or remove it"
        ) from error
    return card if isinstance(card, dict) else {}
