"""Quantized linears and checkpoints that the reference libraries wrote, for the tests of their readers."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Mapping
from math import prod
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import numpy as np

from export.student.safetensors_file import StoredTensor, open_safetensors

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures"

# Stored tensors are mapped from files: those that the tests make up share this one.
_FILE: Final = tempfile.TemporaryFile()  # noqa: SIM115 (lives as long as the tests)
_NAMES: Final = {
    name: storage
    for storage, name in (
        *(("F32", "float32"), ("F16", "float16"), ("BF16", "uint16"), ("U8", "uint8")),
        *(("I8", "int8"), ("I32", "int32"), ("I64", "int64")),
    )
}

Linears = dict[str, dict[str, StoredTensor]]


def load_linears(path: Path) -> tuple[Linears, dict[str, np.ndarray]]:
    """Parts by variant and name, and the float32 weight that the library made of each variant."""
    linears: Linears = {}
    expected = {}
    for name, tensor in open_safetensors(path).tensors.items():
        variant, _, part = name.partition(".")
        if variant == "expected":
            expected[part] = tensor.read()
        else:
            linears.setdefault(variant, {})[part] = tensor
    return linears, expected


def stored(name: str, values: Any, storage: str | None = None) -> StoredTensor:
    """A stored tensor made up. `storage`: by default the one that fits the array's type."""
    array = np.asarray(values)
    offset = _FILE.seek(0, 2)
    _FILE.write(array.tobytes())
    _FILE.flush()
    return StoredTensor(name, array.shape, storage or _NAMES[array.dtype.name], array.nbytes, _FILE, offset)


def stored_zeros(name: str, shape: tuple[int, ...], dtype: Any, storage: str | None = None) -> StoredTensor:
    """A stored tensor of zeros, of any size: the file has a hole there."""
    kind = np.dtype(dtype)
    offset, size = _FILE.seek(0, 2), prod(shape) * kind.itemsize
    _FILE.truncate(offset + size)
    return StoredTensor(name, shape, storage or _NAMES[kind.name], size, _FILE, offset)


def copy_checkpoint(fixture: Path, target: Path, tiny: ModuleType) -> Path:
    """A checkpoint of a fixture, which has no tokenizer, with that of the small checkpoints."""
    tiny.write_small(target)
    for name in ("config.json", "model.safetensors"):
        shutil.copy(fixture / name, target / name)
    return target


def sha256(values: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(values).tobytes()).hexdigest()


def read_expected(path: Path) -> Mapping[str, str]:
    """Checksums of the float32 weights of a checkpoint, by tensor name."""
    expected: Mapping[str, str] = json.loads(path.read_text(encoding="utf-8"))
    return expected
