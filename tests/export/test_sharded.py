"""Models in several files, from the writer to the server: the same model as in one."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import numpy as np
import psutil
import pytest
from live_server import running_server, wait_until_ready

from edgekit.bundle.bundle import Bundle, seal, verify_bundle
from edgekit.bundle.manifest import ManifestFields, PlanRecord, ProfileRef
from edgekit.engine.llama import LlamaRunner
from edgekit.engine.llama_library import built_isa
from edgekit.engine.probe import probe_model
from edgekit.errors import IntegrityError, ModelFileError
from edgekit.gguf_header import first_shard, read_gguf_header
from edgekit.profiles import ServeSettings, load_profile
from edgekit.server.loading import load_bundle
from edgekit.weight_buffers import held_weights
from export.emit import Emitted, emit_gguf
from export.plan.decide import ExportPlan, make_plan
from export.plan.tensors import plan_tensors, tensor_facts
from export.progress import silent
from export.quantize import quantize_gguf
from export.runtimes.llama_session import LlamaSession
from export.student import CheckpointStudent, GgufStudent, open_student
from export.targets.gguf import write_gguf

SETTINGS = ServeSettings(threads=1, context_tokens=256, slots=1, batch_tokens=64, ubatch_tokens=64)


@dataclass(frozen=True)
class Written:
    """A checkpoint as BF16, in one file and in several."""

    single: Path
    shards: list[Path]

    @property
    def student(self) -> GgufStudent:
        opened = open_student(self.shards[0])
        assert isinstance(opened, GgufStudent)
        return opened


@pytest.fixture(scope="module")
def written(tiny: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Written:
    directory = tmp_path_factory.mktemp("sharded")
    student = open_student(tiny.write_small(directory / "Small-Qwen2"))
    assert isinstance(student, CheckpointStudent)
    plan = plan_tensors(tensor_facts(student.tensors()), student.facts, "BF16")
    (single,) = write_gguf(student, directory / "Small.gguf", plan, "BF16")
    (directory / "parts").mkdir()
    shards = write_gguf(student, directory / "parts" / "Small.gguf", plan, "BF16", shard_bytes=40_000)
    assert len(shards) > 3
    return Written(single, shards)


def _bundle(directory: Path, student: GgufStudent, emitted: Emitted) -> Bundle:
    fields = ManifestFields(
        name="small",
        release=7,
        created_utc="2026-03-31T08:05:00Z",
        runtime="llama.cpp",
        format="gguf",
        entry=emitted.entry,
        model=student.facts,
        profile=ProfileRef(name="host", sha256="ab" * 32),
        plan=PlanRecord(quantization="BF16", conversion=emitted.conversion, serve=SETTINGS, forecast=None),
        source=student.source(),
        tools={},
    )
    return seal(directory, fields, None)


def _plan(student: GgufStudent, quantization: str = "BF16") -> ExportPlan:
    return make_plan(student.facts, load_profile("host").resolved(), quantization=quantization)


def _emit(student: GgufStudent, plan: ExportPlan, directory: Path) -> Emitted:
    directory.mkdir()
    return emit_gguf(student, plan, directory, student.source(), importance=None, progress=silent)


def test_probe_model__first_shard_loads_and_decodes(written: Written) -> None:
    probe_model(written.shards[0])


def test_shards__logits_and_answers_are_those_of_the_single_file(written: Written) -> None:
    prompt = [263, *range(40, 60)]
    found = []
    for path in (written.single, written.shards[0]):
        with LlamaSession(path, cells=128, threads=1) as session:
            logits = np.concatenate(list(session.logits(prompt)))
            found.append((logits, session.answers([prompt], answer_tokens=12)))
    (logits, answers), (sharded_logits, sharded_answers) = found
    assert logits.shape == (21, 272) and np.ptp(logits) > 0.1
    assert np.array_equal(logits, sharded_logits)
    assert answers == sharded_answers and len(answers[0]) > 0


def _mapped(path: Path) -> set[str]:
    """Files of a model that are mapped while it is loaded."""
    runner = LlamaRunner(path, SETTINGS)
    try:
        maps = psutil.Process().memory_maps()
        return {entry.path for entry in maps if first_shard(Path(entry.path)) == Path(os.path.realpath(path))}
    finally:
        runner.close()


def test_llama_runner__all_shards_are_mapped(written: Written) -> None:
    assert _mapped(written.shards[0]) == {os.path.realpath(path) for path in written.shards}


def test_llama_runner__weights_that_are_copied_are_not_mapped_as_well(
    written: Written, tmp_path: Path
) -> None:
    # Every build that rearranges anything rearranges Q4_0.
    quantize_gguf(written.single, tmp_path / "model.gguf", "Q4_0", threads=1)
    isa = built_isa()
    assert isa is not None
    copied = held_weights(read_gguf_header(tmp_path / "model.gguf").tensors, set(isa)).copied_bytes > 0
    assert bool(_mapped(tmp_path / "model.gguf")) is not copied


def test_quantize_gguf__of_the_first_shard_is_that_of_the_single_file(
    written: Written, tmp_path: Path
) -> None:
    for source, name in ((written.single, "single"), (written.shards[0], "sharded")):
        quantize_gguf(source, tmp_path / name, "Q4_0", threads=1)
    assert (tmp_path / "sharded").read_bytes() == (tmp_path / "single").read_bytes()


def test_emit_gguf__sharded_student_is_quantized_to_one_file(written: Written, tmp_path: Path) -> None:
    emitted = _emit(written.student, _plan(written.student, "Q8_0"), tmp_path / "out")
    assert emitted == Emitted("model.gguf", "quantized from BF16")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["model.gguf"]
    probe_model(tmp_path / "out" / "model.gguf")


def test_emit_gguf__single_file_is_copied_under_one_name(written: Written, tmp_path: Path) -> None:
    student = open_student(written.single)
    assert isinstance(student, GgufStudent)
    assert _emit(student, _plan(student), tmp_path / "out") == Emitted("model.gguf", "copied")
    assert (tmp_path / "out" / "model.gguf").read_bytes() == written.single.read_bytes()


@pytest.fixture(scope="module")
def bundle(written: Written, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle of the sharded student as it is."""
    directory = tmp_path_factory.mktemp("sharded-bundle") / "out"
    emitted = _emit(written.student, _plan(written.student), directory)
    return _bundle(directory, written.student, emitted)


def test_emit_gguf__all_shards_are_copied(written: Written, bundle: Bundle) -> None:
    count = len(written.shards)
    names = [f"model-{number:05}-of-{count:05}.gguf" for number in range(1, count + 1)]
    assert bundle.manifest.entry == names[0] and bundle.manifest.plan.conversion == "copied"
    assert sorted(path.name for path in bundle.path.iterdir()) == ["manifest.json", *names]
    for name, path in zip(names, written.shards, strict=True):
        assert (bundle.path / name).read_bytes() == path.read_bytes()
    sums = {file.path: file.sha256 for file in bundle.manifest.files}
    assert written.student.sha256_of([sums[name] for name in names]) == bundle.manifest.source.sha256
    assert read_gguf_header(bundle.entry_path).files == tuple(bundle.path / name for name in names)


def test_verify_bundle__every_shard_counts(written: Written, bundle: Bundle, tmp_path: Path) -> None:
    assert verify_bundle(bundle.path, None).entry_path == bundle.entry_path
    directory = tmp_path / "out"
    damaged = _bundle(directory, written.student, _emit(written.student, _plan(written.student), directory))
    last = read_gguf_header(damaged.entry_path).files[-1]
    content = last.read_bytes()
    last.write_bytes(content[:-40] + bytes([content[-40] ^ 1]) + content[-39:])
    with pytest.raises(IntegrityError, match=f"{last.name} was changed"):
        verify_bundle(directory, None)
    last.unlink()
    with pytest.raises(IntegrityError, match=f"{last.name} is missing"):
        verify_bundle(directory, None)
    with pytest.raises(ModelFileError, match=f"{last.name} is missing beside it"):
        load_bundle(damaged, SETTINGS)


def test_server__serves_a_sharded_bundle_as_the_single_file(
    written: Written, bundle: Bundle, tmp_path: Path
) -> None:
    student = open_student(written.single)
    assert isinstance(student, GgufStudent)
    alone = _bundle(tmp_path / "out", student, _emit(student, _plan(student), tmp_path / "out"))
    answers = [_answer(verify_bundle(made.path, None)) for made in (bundle, alone)]
    assert answers[0]["usage"]["completion_tokens"] > 0
    assert answers[0]["choices"] == answers[1]["choices"]


def _answer(bundle: Bundle) -> Any:
    request = {"messages": [{"role": "user", "content": "the tin"}], "max_tokens": 8, "temperature": 0}
    with running_server(lambda: load_bundle(bundle, SETTINGS)) as url:
        wait_until_ready(url)
        response = httpx.post(f"{url}/v1/chat/completions", json=request, timeout=30)
        assert response.status_code == 200, response.text
        return response.json()
