"""Where a student comes from: checksums, revision, licence, base model."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final

import yaml

from edgekit.errors import ModelFileError
from export.cache import file_sha256
from export.progress import Progress, silent

__all__ = [
    "CHECKSUM",
    "card_facts",
    "checkpoint_name",
    "files_sha256",
    "find_license_text",
    "find_revision",
    "read_model_card",
]

CHECKSUM: Final = "checksum of the student"
_MAX_LICENSE_BYTES: Final = 1 << 20
_COMMIT: Final = re.compile(r"[0-9a-f]{40}")


def files_sha256(files: Iterable[Path], progress: Progress = silent) -> str:
    """One hex sha256 for several files: of what `sha256sum` prints for them, sorted by name."""
    paths = sorted(files, key=lambda path: path.name)
    done, total = 0, sum(path.stat().st_size for path in paths)
    lines = []
    for path in paths:
        part = partial(_advance, progress, done, total)
        lines.append(f"{file_sha256(path, part)}  {path.name}\n")
        done += path.stat().st_size
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _advance(progress: Progress, before: int, total: int, done: int) -> None:
    progress(CHECKSUM, before + done, total)


def checkpoint_name(directory: Path) -> str:
    """A directory's name; in Hugging Face's cache, which names it by the commit, the repository's."""
    path = directory.resolve()
    repository = path.parent.parent.name
    if _is_snapshot(path) and repository.startswith("models--"):
        return repository.rpartition("--")[2]
    return path.name


def find_revision(file: Path) -> str | None:
    """The commit that a file was downloaded at, from the traces that Hugging Face's tools leave.

    Their cache names the directory by the commit; `hf download --local-dir` writes it to
    .cache/huggingface/download/<file>.metadata.
    """
    directory = file.parent.resolve()
    if _is_snapshot(directory):
        return directory.name
    trace = directory / ".cache" / "huggingface" / "download" / f"{file.name}.metadata"
    if trace.is_file():
        lines = trace.read_text(encoding="utf-8", errors="replace").splitlines()
        if lines and _COMMIT.fullmatch(lines[0].strip()):
            return lines[0].strip()
    return None


def _is_snapshot(directory: Path) -> bool:
    return directory.parent.name == "snapshots" and _COMMIT.fullmatch(directory.name) is not None


def find_license_text(directory: Path) -> str | None:
    """The text of a LICENSE file in a directory."""
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


def card_facts(directory: Path) -> tuple[str | None, str | None]:
    """Licence and base model, as a checkpoint's model card names them.

    Raises:
        ModelFileError: see `read_model_card`.
    """
    card = read_model_card(directory)
    bases = card.get("base_model")
    base = bases[0] if isinstance(bases, list) and bases else bases
    name = card.get("license_name") if card.get("license") == "other" else card.get("license")
    return (str(name) if name else None), (base if isinstance(base, str) else None)
