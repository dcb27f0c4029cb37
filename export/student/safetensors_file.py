"""Reads one safetensors file without trusting it.

Source: https://github.com/huggingface/safetensors, "Format": eight bytes of header length, a JSON header,
then the tensors' bytes without holes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from types import MappingProxyType
from typing import Any, BinaryIO, Final

import numpy as np
from numpy.typing import NDArray

from edgekit.errors import ModelFileError

__all__ = ["SafetensorsFile", "StoredTensor", "open_safetensors"]

MAX_HEADER_BYTES: Final = 100_000_000  # the reference implementation's limit
MAX_DIMENSIONS: Final = 8

# BF16 has no numpy type: its bits travel as uint16. So do those of the two FP8 types, as uint8.
_DTYPES: Final[Mapping[str, np.dtype[Any]]] = MappingProxyType(
    {
        name: np.dtype(dtype)
        for name, dtype in (
            *(("BF16", "<u2"), ("F16", "<f2"), ("F32", "<f4"), ("F64", "<f8")),
            *(("F8_E4M3", "u1"), ("F8_E5M2", "u1"), ("BOOL", "?")),
            *(("U8", "u1"), ("U16", "<u2"), ("U32", "<u4"), ("U64", "<u8")),
            *(("I8", "i1"), ("I16", "<i2"), ("I32", "<i4"), ("I64", "<i8")),
        )
    }
)


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor as the file stores it. `storage` is safetensors' name of the type, such as "BF16" or "I32"."""

    name: str
    shape: tuple[int, ...]
    storage: str
    size_bytes: int
    _file: BinaryIO = field(repr=False, compare=False)
    _offset: int = field(repr=False, compare=False)

    def read(self) -> NDArray[Any]:
        """The stored values, memory-mapped and read-only, of `shape`.

        BF16 as uint16 and FP8 as uint8 bit patterns; all others in numpy's type of the same name. The mapping
        is this array's own: what was touched of it leaves the process's memory with the array.
        """
        if not self.size_bytes:
            return np.empty(self.shape, _DTYPES[self.storage])
        return np.memmap(self._file, _DTYPES[self.storage], "r", self._offset, self.shape)


@dataclass(frozen=True, slots=True)
class SafetensorsFile:
    """The tensors of one file, by name, in the order of their bytes."""

    path: Path
    tensors: Mapping[str, StoredTensor]


def open_safetensors(path: Path) -> SafetensorsFile:
    """Map a file and check its header against its size.

    Raises:
        ModelFileError: the file is cut off, malformed, or holds overlapping tensors.
    """
    try:
        size = path.stat().st_size
        if size < 8:
            raise ModelFileError(f"{path}: {size} bytes are too few for a safetensors file")
        file = path.open("rb")  # the tensors keep it open
        header_bytes = int.from_bytes(file.read(8), "little")
    except OSError as error:
        raise ModelFileError(f"{path}: cannot be read: {error.strerror}") from error
    if header_bytes > min(MAX_HEADER_BYTES, size - 8):
        raise ModelFileError(f"{path}: the header claims {header_bytes} bytes; {size - 8} are left")
    entries = _parse_header(path, file.read(header_bytes))
    start = 8 + header_bytes
    expected = 0
    tensors = {}
    for name, entry in sorted(entries.items(), key=lambda item: _offsets(path, *item)):
        dtype, shape, (begin, end) = (
            _dtype(path, name, entry),
            _shape(path, name, entry),
            _offsets(path, name, entry),
        )
        if begin != expected:
            raise ModelFileError(
                f"{path}: tensor '{name}' starts at byte {begin} of the data, expected {expected}"
            )
        if end - begin != prod(shape) * _DTYPES[dtype].itemsize:
            raise ModelFileError(
                f"{path}: tensor '{name}' of shape {list(shape)}, {dtype}, has {end - begin} bytes"
            )
        if start + end > size:
            raise ModelFileError(
                f"{path}: the file is cut off: tensor '{name}' ends at byte {start + end}, "
                f"the file at byte {size}",
                hint="download or copy it again",
            )
        expected = end
        tensors[name] = StoredTensor(name, shape, dtype, end - begin, file, start + begin)
    if start + expected != size:
        raise ModelFileError(f"{path}: {size - start - expected} bytes follow the last tensor")
    return SafetensorsFile(path=path, tensors=MappingProxyType(tensors))


def _parse_header(path: Path, raw: bytes) -> dict[str, dict[str, Any]]:
    def no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        entries = dict(pairs)
        if len(entries) != len(pairs):
            raise ModelFileError(f"{path}: the header names a tensor twice")
        return entries

    try:
        header = json.loads(raw, object_pairs_hook=no_duplicates)
    except (ValueError, RecursionError) as error:
        raise ModelFileError(f"{path}: the header is not JSON: {error}") from error
    if not isinstance(header, dict):
        raise ModelFileError(f"{path}: the header is not a JSON object")
    header.pop("__metadata__", None)
    for name, entry in header.items():
        if not isinstance(entry, dict):
            raise ModelFileError(f"{path}: tensor '{name}' is not described by a JSON object")
    return header


def _dtype(path: Path, name: str, entry: dict[str, Any]) -> str:
    dtype = entry.get("dtype")
    if not isinstance(dtype, str) or dtype not in _DTYPES:
        raise ModelFileError(f"{path}: tensor '{name}' is of unknown type {dtype!r}")
    return dtype


def _shape(path: Path, name: str, entry: dict[str, Any]) -> tuple[int, ...]:
    shape = entry.get("shape")
    if (
        not isinstance(shape, list)
        or len(shape) > MAX_DIMENSIONS
        or not all(type(length) is int and length >= 0 for length in shape)
    ):
        raise ModelFileError(f"{path}: tensor '{name}' has the impossible shape {shape!r}")
    return tuple(shape)


def _offsets(path: Path, name: str, entry: dict[str, Any]) -> tuple[int, int]:
    offsets = entry.get("data_offsets")
    if (
        not isinstance(offsets, list)
        or len(offsets) != 2
        or not all(type(offset) is int for offset in offsets)
        or not 0 <= offsets[0] <= offsets[1]
    ):
        raise ModelFileError(f"{path}: tensor '{name}' has the impossible offsets {offsets!r}")
    return offsets[0], offsets[1]
