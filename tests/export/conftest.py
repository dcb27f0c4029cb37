"""Checkpoints for the export tests."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest


def _load(name: str, path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def tiny() -> ModuleType:
    """The maker of checkpoints, tiny_checkpoint.py."""
    return _load("tiny_checkpoint", Path(__file__).with_name("tiny_checkpoint.py"))


@pytest.fixture(scope="session")
def golden() -> ModuleType:
    """tests/fixtures/convert_golden/regenerate.py, for its `describe`."""
    return _load("convert_golden", Path(__file__).parents[1] / "fixtures/convert_golden/regenerate.py")


@pytest.fixture(scope="session")
def r1_family(tiny: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The checkpoint of a family with the R1 tokenizer, written once. Do not change it."""
    made: dict[str, Path] = {}

    def get(family: str) -> Path:
        if family not in made:
            made[family] = tiny.write_family(tmp_path_factory.mktemp("r1"), family)
        return made[family]

    return get


@pytest.fixture
def small(tiny: ModuleType, tmp_path: Path) -> Path:
    """A small Qwen2 checkpoint to change at will."""
    path: Path = tiny.write_small(tmp_path / "Small-Qwen2")
    return path
