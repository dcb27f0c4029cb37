"""GGUF students, in one file and in several."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from edgekit.errors import ModelFileError
from export.plan.tensors import plan_tensors, tensor_facts
from export.student import CheckpointStudent, GgufStudent, open_student
from export.student.provenance import files_sha256
from export.targets.gguf import write_gguf

Write = Callable[..., list[Path]]


@pytest.fixture
def write(small: Path, tmp_path: Path) -> Write:
    """Writes the small checkpoint as Q8_0 to `name`, in as many files as it takes."""

    def as_gguf(name: str, shard_bytes: int | None = None) -> list[Path]:
        student = open_student(small)
        assert isinstance(student, CheckpointStudent)
        plan = plan_tensors(tensor_facts(student.tensors()), student.facts, "Q8_0")
        (tmp_path / name).parent.mkdir(exist_ok=True)
        return write_gguf(student, tmp_path / name, plan, "Q8_0", shard_bytes=shard_bytes)

    return as_gguf


def _open(path: Path) -> GgufStudent:
    student = open_student(path)
    assert isinstance(student, GgufStudent)
    return student


def test_open_gguf__tensors_of_all_shards_are_those_of_the_single_file(write: Write) -> None:
    files = write("sharded/model.gguf", shard_bytes=20_000)
    single, sharded = _open(*write("single/model.gguf")), _open(files[0])
    assert len(files) > 3 and sharded.files == tuple(files) and sharded.path == files[0]
    assert {info.path for info in sharded.header.tensors} == set(files)
    assert list(sharded.tensors()) == list(single.tensors())
    for ours, theirs in zip(sharded.tensors(), single.tensors(), strict=True):
        assert np.array_equal(ours.read(), theirs.read()), ours.name
        assert np.array_equal(ours.read(slice(1, 3)), theirs.read()[1:3])
    assert sharded.facts == single.facts


def test_open_student__directory_of_one_sharded_model(write: Write, tmp_path: Path) -> None:
    files = write("sharded/model.gguf", shard_bytes=20_000)
    assert _open(tmp_path / "sharded").files == tuple(files)
    shutil.copy(files[0], tmp_path / "sharded" / "other.gguf")
    with pytest.raises(ModelFileError, match="and 2 GGUF models; one is needed"):
        open_student(tmp_path / "sharded")


def test_open_student__shards_that_are_not_all_there_are_named(write: Write, tmp_path: Path) -> None:
    files = write("sharded/model.gguf", shard_bytes=20_000)
    with pytest.raises(ModelFileError, match="part 2 of a model in") as caught:
        open_student(files[1])
    assert caught.value.hint is not None and str(files[0]) in caught.value.hint
    files[2].unlink()
    for path in (files[0], tmp_path / "sharded"):
        with pytest.raises(ModelFileError, match=f"{files[2].name} is missing beside it"):
            open_student(path)
    files[0].unlink()
    with pytest.raises(ModelFileError, match=f"{files[0].name}: cannot be read: No such file"):
        open_student(tmp_path / "sharded")


def test_source__checksum_is_over_all_shards(write: Write) -> None:
    files = write("sharded/model.gguf", shard_bytes=20_000)
    student = _open(files[0])
    steps: list[tuple[int, int]] = []
    record = student.source(lambda _, done, total: steps.append((done, total)))
    sums = [hashlib.sha256(path.read_bytes()).hexdigest() for path in files]
    assert record.name == files[0].name
    assert record.sha256 == files_sha256(files) == student.sha256_of(sums)
    size = sum(path.stat().st_size for path in files)
    assert steps[-1] == (size, size) and steps == sorted(steps)
    with files[-1].open("r+b") as file:
        file.seek(-40, 2)
        file.write(b"changed")
    assert student.source().sha256 != record.sha256


def test_source__checksum_of_a_single_file_is_its_own(write: Write) -> None:
    (path,) = write("single/model.gguf")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert _open(path).source().sha256 == digest == _open(path).sha256_of([digest])
