"""Loads raw_gguf.py, which pytest's importlib mode does not put on the path."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="session")
def raw() -> ModuleType:
    """The maker of GGUF files, whole and damaged."""
    if "raw_gguf" not in sys.modules:
        spec = importlib.util.spec_from_file_location("raw_gguf", Path(__file__).with_name("raw_gguf.py"))
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules["raw_gguf"] = module  # dataclasses look their module up
        spec.loader.exec_module(module)
    return sys.modules["raw_gguf"]
