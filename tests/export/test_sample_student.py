from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from edgekit.gguf_header import model_facts, read_gguf_header
from export.cache import cache_directory, file_sha256
from export.sample_student import fetch_sample_student


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """A cache that has the student: linked from the user's, where it was fetched."""
    directory = fetch_sample_student().parent
    shutil.copytree(
        directory, tmp_path / "students" / directory.name, copy_function=lambda a, b: Path(b).symlink_to(a)
    )
    return tmp_path


def test_fetch_sample_student__is_a_real_model_with_its_licence_beside_it() -> None:
    student = fetch_sample_student()
    assert student.is_relative_to(cache_directory())
    facts = model_facts(read_gguf_header(student))
    assert (facts.architecture, facts.quantization, facts.layers) == ("llama", "Q4_1", 30)
    assert "Apache License" in (student.parent / "LICENSE").read_text()
    checksum, name = (student.parent / f"{student.name}.sha256").read_text().split()
    assert (checksum, name) == (file_sha256(student), student.name)


def test_fetch_sample_student__second_time_fetches_nothing(cache: Path) -> None:
    def no_progress(what: str, done: float, total: float | None) -> None:
        pytest.fail(f"began {what}")

    assert fetch_sample_student(cache, progress=no_progress).is_relative_to(cache)


@pytest.mark.slow
def test_fetch_sample_student__a_damaged_copy_is_fetched_again(cache: Path) -> None:
    student = fetch_sample_student(cache)
    student.unlink()
    student.write_bytes(b"GGUF, and then the disk was full")
    again = fetch_sample_student(cache)
    assert again == student
    assert again.stat().st_size == 98_362_432
