"""The release of llama-cpp-python that edgekit builds, and its source."""

from __future__ import annotations

import contextlib
import tarfile
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from export.cache import file_sha256, locked
from export.pip_tool import download
from export.progress import Progress, silent

__all__ = ["LLAMA_CPP_PYTHON", "Release", "fetch_source_archive", "unpacked_source"]


@dataclass(frozen=True, slots=True)
class Release:
    """A source distribution on PyPI."""

    version: str
    sha256: str
    size_bytes: int

    @property
    def requirement(self) -> str:
        return f"llama-cpp-python=={self.version}"

    @property
    def archive_name(self) -> str:
        return f"llama_cpp_python-{self.version}.tar.gz"


# Keep the version equal to the extra `llama` in pyproject.toml (a test compares them).
LLAMA_CPP_PYTHON: Final = Release(
    version="0.3.36",
    sha256="832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e",
    size_bytes=76_589_250,
)


def fetch_source_archive(
    cache: Path, release: Release = LLAMA_CPP_PYTHON, progress: Progress = silent
) -> Path:
    """Path of the release's source archive, fetched the first time.

    Raises:
        ToolchainError: it could not be fetched or is not the pinned file.
    """
    archive = cache / "sdist" / release.archive_name
    with locked(cache / "sdist" / ".lock"):
        if not archive.is_file() or file_sha256(archive) != release.sha256:
            archive.unlink(missing_ok=True)
            download(
                release.requirement,
                sha256=release.sha256,
                size_bytes=release.size_bytes,
                source=True,
                directory=archive.parent,
                progress=progress,
            )
    return archive


@contextlib.contextmanager
def unpacked_source(archive: Path) -> Iterator[Path]:
    """The archive's top directory, unpacked for as long as the context lasts."""
    with tempfile.TemporaryDirectory(prefix="edgekit-llama-cpp-") as temporary:
        with tarfile.open(archive) as tar:
            tar.extractall(temporary, filter="data")
        (source,) = Path(temporary).iterdir()
        yield source
