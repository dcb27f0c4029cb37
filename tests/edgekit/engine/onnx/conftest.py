"""Real ONNX bundles, made by the exporter: tiny ones of random weights, and the student's own."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from edgekit.engine.onnx.runner import OnnxRunner
from edgekit.engine.scheduler import Scheduler
from edgekit.profiles import ServeSettings
from export.student import CheckpointStudent, GgufStudent, open_student
from export.student.gguf_checkpoint import as_checkpoint
from export.targets.onnx import write_onnx

TESTS = Path(__file__).resolve().parents[3]

WriteTiny = Callable[..., Path]
"""Export a small checkpoint; keyword arguments go to write_onnx."""


def _load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def write_tiny(tmp_path_factory: pytest.TempPathFactory) -> WriteTiny:
    maker = _load(TESTS / "export" / "tiny_checkpoint.py")
    made: dict[str, Path] = {}

    def write(family: str = "R1-Tiny-Qwen2", **settings: Any) -> Path:
        key = f"{family} {sorted(settings.items())}"
        if key not in made:
            root = tmp_path_factory.mktemp("tiny")
            student = open_student(maker.write_small(root / "checkpoint", family))
            assert isinstance(student, CheckpointStudent)
            made[key] = root / "onnx"
            made[key].mkdir()
            write_onnx(
                student,
                made[key],
                **{"context_tokens": 256, "precision": "int4", "block_size": 32, **settings},
            )
        return made[key]

    return write


@pytest.fixture(scope="session")
def tiny_onnx(write_tiny: WriteTiny) -> Path:
    """A directory with a small Qwen2 as int4. Do not change it."""
    return write_tiny()


@pytest.fixture(scope="session")
def student_onnx(student: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with SmolLM2-135M-Instruct as int4, in blocks of 32 columns."""
    gguf = open_student(student)
    assert isinstance(gguf, GgufStudent)
    directory = tmp_path_factory.mktemp("student-onnx")
    write_onnx(as_checkpoint(gguf), directory, precision="int4", block_size=32, context_tokens=1024)
    return directory


@contextmanager
def serving(directory: Path, **settings: Any) -> Iterator[Scheduler]:
    """A bundle's graph behind the scheduler."""
    chosen = ServeSettings(**{"threads": 2, "context_tokens": 256, "slots": 4, "kv_cells": 1024, **settings})
    runner = OnnxRunner(directory / "model.onnx", chosen)
    scheduler = Scheduler(runner, context_tokens=runner.context_tokens)
    try:
        yield scheduler
    finally:
        scheduler.close()


@pytest.fixture(scope="session")
def serve_graph() -> Callable[..., Any]:
    return serving


@pytest.fixture(scope="session")
def student_engine(student_onnx: Path) -> Iterator[Scheduler]:
    """The real student behind the real scheduler, on onnxruntime."""
    with serving(student_onnx, context_tokens=512, slots=8, kv_cells=4096) as scheduler:
        yield scheduler
