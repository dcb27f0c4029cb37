"""Whole exports of and to models in several files."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgekit.bundle.bundle import verify_bundle
from edgekit.engine.probe import probe_model
from edgekit.errors import ExportError
from edgekit.gguf_header import read_gguf_header
from edgekit.profiles import load_profile
from export import emit
from export.pipeline import export_bundle
from export.plan.tensors import plan_tensors, tensor_facts
from export.student import CheckpointStudent, open_student
from export.targets.gguf import write_gguf


@pytest.fixture
def shards(small: Path, tmp_path: Path) -> list[Path]:
    student = open_student(small)
    assert isinstance(student, CheckpointStudent)
    plan = plan_tensors(tensor_facts(student.tensors()), student.facts, "BF16")
    (tmp_path / "parts").mkdir()
    return write_gguf(student, tmp_path / "parts" / "Small-BF16.gguf", plan, "BF16", shard_bytes=40_000)


def test_export_bundle__sharded_gguf_is_copied_under_its_name(shards: list[Path], tmp_path: Path) -> None:
    bundle = export_bundle(shards[0].parent, load_profile("host"), tmp_path / "out", quantization="BF16")
    assert (bundle.manifest.name, bundle.manifest.plan.conversion) == ("Small", "copied")
    assert verify_bundle(tmp_path / "out", None).manifest == bundle.manifest
    copies = read_gguf_header(bundle.entry_path).files
    assert [path.read_bytes() for path in copies] == [path.read_bytes() for path in shards]


def test_export_bundle__shard_that_changes_while_copied_fails(
    shards: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = emit._copy

    def changing(*arguments: object) -> None:
        with shards[-1].open("r+b") as file:
            file.seek(-1, 2)
            last = file.read(1)[0]
            file.seek(-1, 2)
            file.write(bytes([last ^ 1]))
        copy(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(emit, "_copy", changing)
    with pytest.raises(ExportError, match="changed while it was copied"):
        export_bundle(shards[0], load_profile("host"), tmp_path / "out", quantization="BF16")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("quantization", ["Q8_0", "BF16"])
def test_export_bundle__large_checkpoint_becomes_shards_that_are_proven(
    quantization: str, small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(emit, "SHARD_BYTES", 40_000)
    bundle = export_bundle(small, load_profile("host"), tmp_path / "out", quantization=quantization)
    files = read_gguf_header(verify_bundle(tmp_path / "out", None).entry_path).files
    assert len(files) > 2 and bundle.manifest.entry == files[0].name
    assert bundle.manifest.proof is not None
    probe_model(files[0])


def test_export_bundle__sharded_gguf_is_quantized_and_proven(shards: list[Path], tmp_path: Path) -> None:
    bundle = export_bundle(shards[0], load_profile("host"), tmp_path / "out", quantization="Q8_0")
    assert bundle.manifest.entry == "model.gguf" and bundle.manifest.proof is not None
