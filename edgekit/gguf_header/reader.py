"""Reads the header of one GGUF file without trusting it.

Nothing in the file is believed before it is checked: each length, count and offset is compared with what
is left of the file, and with a limit far above any real model's, before it is used. The tensors' bytes
are not read.

Source: docs/gguf.md of ggml, and gguf.cpp of llama.cpp 0c1e57098, whose refusals are followed.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Final, NoReturn

from edgekit.errors import ModelFileError
from edgekit.gguf_header.tensor_types import TENSOR_TYPES

__all__ = ["GgufHeader", "TensorInfo", "read_file_header"]

MAGIC: Final = b"GGUF"
VERSIONS: Final = (2, 3)
DEFAULT_ALIGNMENT: Final = 32

# Limits. llama.cpp's own are 2^30 elements or bytes; no model comes near these.
MAX_METADATA_PAIRS: Final = 65_536
MAX_TENSORS: Final = 262_144
MAX_KEY_BYTES: Final = 65_535
MAX_STRING_BYTES: Final = 64 * 1024 * 1024
MAX_ARRAY_LENGTH: Final = 16 * 1024 * 1024
MAX_TENSOR_NAME_BYTES: Final = 63
MAX_DIMENSIONS: Final = 4
MAX_ALIGNMENT: Final = 1024 * 1024

_SCALARS: Final = MappingProxyType(
    {
        0: ("UINT8", "B"),
        1: ("INT8", "b"),
        2: ("UINT16", "H"),
        3: ("INT16", "h"),
        4: ("UINT32", "I"),
        5: ("INT32", "i"),
        6: ("FLOAT32", "f"),
        7: ("BOOL", "?"),
        10: ("UINT64", "Q"),
        11: ("INT64", "q"),
        12: ("FLOAT64", "d"),
    }
)
_STRING: Final = 8
_ARRAY: Final = 9


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Where one tensor lies.

    `shape` is in ggml's order: shape[0] is the length of a row, the fastest dimension. `offset` counts
    bytes from the start of the file at `path`.
    """

    name: str
    shape: tuple[int, ...]
    type_name: str
    offset: int
    size_bytes: int
    path: Path

    @property
    def elements(self) -> int:
        count = 1
        for length in self.shape:
            count *= length
        return count


@dataclass(frozen=True, slots=True)
class GgufHeader:
    """All that a GGUF says before its tensors' bytes.

    `metadata` holds int, float, bool, str, or a tuple of one of these; `value_types` names each key's type
    as stored: "UINT32", "ARRAY[STRING]". `data_offset` counts bytes from the start of the file.

    Of a model in several files, `path` is the first and `files` are all of them; version, metadata and
    data_offset are those of the first, `tensors` those of all in the files' order, `alignment` is the least.
    """

    version: int
    alignment: int
    metadata: Mapping[str, object]
    tensors: tuple[TensorInfo, ...]
    data_offset: int
    path: Path
    value_types: Mapping[str, str]
    files: tuple[Path, ...]


def read_file_header(path: Path) -> GgufHeader:
    """Read and check the header of one GGUF file, version 2 or 3, little endian, whether a shard or a model.

    Raises:
        ModelFileError: the file cannot be read, is not a GGUF, or contradicts itself. The message names
            the file, the item and the byte.
    """
    try:
        with path.open("rb") as file:
            if path.stat().st_size == 0:
                raise ModelFileError(f"{path}: the file is empty")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return _Reader(path, data).header()
    except OSError as error:
        raise ModelFileError(f"{path}: cannot be read: {error.strerror or error}") from error


class _Reader:
    """A cursor over the mapped file."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self.path = path
        self.data = data
        self.size = len(data)
        self.position = 0

    def header(self) -> GgufHeader:
        version = self._preamble()
        tensor_count = self._count("tensors", MAX_TENSORS, least_bytes=8 + 4 + 8 + 4 + 8)
        pair_count = self._count("metadata pairs", MAX_METADATA_PAIRS, least_bytes=8 + 1 + 4 + 1)
        metadata, value_types = self._metadata(pair_count)
        alignment = self._alignment(metadata, value_types)
        infos = [self._tensor_info(index) for index in range(tensor_count)]
        data_offset = _padded(self.position, alignment)
        return GgufHeader(
            version=version,
            alignment=alignment,
            metadata=MappingProxyType(metadata),
            tensors=self._placed(infos, data_offset, alignment),
            data_offset=data_offset,
            path=self.path,
            value_types=MappingProxyType(value_types),
            files=(self.path,),
        )

    def _preamble(self) -> int:
        magic = self.data[:4]
        if magic != MAGIC:
            raise ModelFileError(
                f"{self.path}: not a GGUF file: it starts with {magic!r}, not {MAGIC!r}",
                hint="give a .gguf file, or the directory of a Hugging Face checkpoint",
            )
        self.position = 4
        version = self._unpack("I", "the version")
        if version & 0xFFFF == 0 and version:
            raise ModelFileError(
                f"{self.path}: a big-endian GGUF (its version reads as {version:#x})",
                hint="convert it for little-endian machines, which all known devices are",
            )
        if version not in VERSIONS:
            self._fail(f"GGUF version {version}; versions 2 and 3 are known", at=4)
        return version

    def _metadata(self, count: int) -> tuple[dict[str, object], dict[str, str]]:
        metadata: dict[str, object] = {}
        value_types: dict[str, str] = {}
        for index in range(count):
            start = self.position
            key = self._string(f"the key of metadata pair {index}", MAX_KEY_BYTES)
            if not key:
                self._fail(f"the key of metadata pair {index} is empty", at=start)
            if key in metadata:
                self._fail(f"metadata key '{key}' appears twice", at=start)
            number = self._unpack("I", f"the type of '{key}'")
            if number == _ARRAY:
                metadata[key], value_types[key] = self._array(key)
            elif number == _STRING:
                metadata[key], value_types[key] = self._string(f"'{key}'", MAX_STRING_BYTES), "STRING"
            else:
                name, code = self._scalar_type(key, number)
                metadata[key], value_types[key] = self._scalars(key, name, code, 1)[0], name
        return metadata, value_types

    def _array(self, key: str) -> tuple[tuple[object, ...], str]:
        number = self._unpack("I", f"the element type of '{key}'")
        if number == _STRING:
            length = self._count(f"elements of '{key}'", MAX_ARRAY_LENGTH, least_bytes=8)
            return self._strings(key, length), "ARRAY[STRING]"
        name, code = self._scalar_type(key, number)
        length = self._count(f"elements of '{key}'", MAX_ARRAY_LENGTH, least_bytes=struct.calcsize(code))
        return self._scalars(key, name, code, length), f"ARRAY[{name}]"

    def _scalar_type(self, key: str, number: int) -> tuple[str, str]:
        known = _SCALARS.get(number)
        if known is None:
            self._fail(
                f"metadata key '{key}' has unknown or unsupported value type {number}", at=self.position - 4
            )
        return known

    def _scalars(self, key: str, name: str, code: str, length: int) -> tuple[object, ...]:
        if name != "BOOL":
            return self._unpack_all(f"{length}{code}", f"'{key}'")
        start = self.position
        flags = self._unpack_all(f"{length}B", f"'{key}'")
        if any(flag not in (0, 1) for flag in flags):
            self._fail(f"'{key}' holds a truth value other than 0 and 1", at=start)
        return tuple(bool(flag) for flag in flags)

    def _strings(self, key: str, length: int) -> tuple[str, ...]:
        # Written out: vocabularies have 150,000 entries, and devices are slow.
        data, size, position = self.data, self.size, self.position
        unpack = struct.Struct("<Q").unpack_from
        strings = []
        for index in range(length):
            if size - position < 8:
                self._fail(f"the file ends inside element {index} of '{key}'", at=position)
            end = position + 8 + unpack(data, position)[0]
            if end > size or end - position > MAX_STRING_BYTES:
                self._fail(f"element {index} of '{key}' claims {end - position - 8} bytes", at=position)
            try:
                strings.append(data[position + 8 : end].decode())
            except UnicodeDecodeError:
                self._fail(f"element {index} of '{key}' is not UTF-8", at=position)
            position = end
        self.position = position
        return tuple(strings)

    def _alignment(self, metadata: Mapping[str, object], value_types: Mapping[str, str]) -> int:
        alignment = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
        if value_types.get("general.alignment", "UINT32") != "UINT32" or not isinstance(alignment, int):
            self._fail(f"general.alignment is of type {value_types['general.alignment']}, not UINT32")
        if not 8 <= alignment <= MAX_ALIGNMENT or alignment & (alignment - 1):
            self._fail(f"general.alignment is {alignment}, not a power of two between 8 and {MAX_ALIGNMENT}")
        return alignment

    def _tensor_info(self, index: int) -> tuple[TensorInfo, int]:
        """One tensor as described, its `offset` still counted from the start of the data."""
        start = self.position
        name = self._string(f"the name of tensor {index}", MAX_TENSOR_NAME_BYTES)
        if not name:
            self._fail(f"the name of tensor {index} is empty", at=start)
        dimensions = self._unpack("I", f"the dimensions of tensor '{name}'")
        if not 1 <= dimensions <= MAX_DIMENSIONS:
            self._fail(
                f"tensor '{name}' has {dimensions} dimensions; 1 to {MAX_DIMENSIONS} are known", at=start
            )
        shape: tuple[int, ...] = self._unpack_all(f"{dimensions}Q", f"the shape of tensor '{name}'")
        elements = 1
        for length in shape:
            elements *= length
        if not 0 < elements < 2**63:
            self._fail(f"tensor '{name}' has the impossible shape {list(shape)}", at=start)
        number = self._unpack("I", f"the type of tensor '{name}'")
        kind = TENSOR_TYPES.get(number)
        if kind is None:
            self._fail(f"tensor '{name}' has unknown or removed type {number}", at=self.position - 4)
        if shape[0] % kind.block_length:
            self._fail(
                f"tensor '{name}' has rows of {shape[0]} elements, not a multiple of {kind.name}'s block of "
                f"{kind.block_length}",
                at=start,
            )
        offset = self._unpack("Q", f"the offset of tensor '{name}'")
        size = elements // kind.block_length * kind.block_bytes
        return TensorInfo(name, shape, kind.name, offset, size, self.path), start

    def _placed(
        self, infos: list[tuple[TensorInfo, int]], data_offset: int, alignment: int
    ) -> tuple[TensorInfo, ...]:
        """The tensors with offsets from the start of the file, once they are proven to fill it in order."""
        names: set[str] = set()
        placed = []
        expected = 0
        for info, at in infos:
            if info.name in names:
                self._fail(f"tensor '{info.name}' appears twice", at=at)
            names.add(info.name)
            if info.offset % alignment:
                self._fail(
                    f"tensor '{info.name}' has offset {info.offset}, not aligned to {alignment}", at=at
                )
            if info.offset != expected:
                how = "overlaps the one before it" if info.offset < expected else "leaves a gap before it"
                self._fail(f"tensor '{info.name}' {how}: offset {info.offset}, expected {expected}", at=at)
            end = data_offset + info.offset + info.size_bytes
            if end > self.size:
                raise ModelFileError(
                    f"{self.path}: the file is cut off: tensor '{info.name}' ends at byte {end}, the file at "
                    f"byte {self.size}",
                    hint="download or copy it again",
                )
            expected = _padded(info.offset + info.size_bytes, alignment)
            placed.append(replace(info, offset=data_offset + info.offset))
        return tuple(placed)

    def _count(self, what: str, limit: int, *, least_bytes: int) -> int:
        """A count of things that take `least_bytes` each in the rest of the file."""
        start = self.position
        count: int = self._unpack("Q", f"the number of {what}")
        if count > limit:
            self._fail(f"{count} {what}; the limit is {limit}", at=start)
        if count * least_bytes > self.size - self.position:
            self._fail(f"{count} {what} do not fit the {self.size - self.position} bytes left", at=start)
        return count

    def _string(self, what: str, limit: int) -> str:
        start = self.position
        length = self._unpack("Q", f"the length of {what}")
        if length > limit:
            self._fail(f"{what} claims {length} bytes; the limit is {limit}", at=start)
        end = self.position + length
        if end > self.size:
            self._fail(f"{what} claims {length} bytes; {self.size - self.position} are left", at=start)
        raw = self.data[self.position : end]
        self.position = end
        try:
            return raw.decode()
        except UnicodeDecodeError:
            self._fail(f"{what} is not UTF-8", at=start)

    def _unpack(self, code: str, what: str) -> int:
        value: int = self._unpack_all(code, what)[0]
        return value

    def _unpack_all(self, codes: str, what: str) -> tuple[int, ...]:
        size = struct.calcsize(f"<{codes}")
        if size > self.size - self.position:
            raise ModelFileError(
                f"{self.path}: the file is cut off in {what}, at byte {self.position}",
                hint="download or copy it again",
            )
        values = struct.unpack_from(f"<{codes}", self.data, self.position)
        self.position += size
        return values

    def _fail(self, problem: str, *, at: int | None = None) -> NoReturn:
        where = "" if at is None else f", at byte {at}"
        raise ModelFileError(f"{self.path}: {problem}{where}")


def _padded(size: int, alignment: int) -> int:
    return (size + alignment - 1) // alignment * alignment
