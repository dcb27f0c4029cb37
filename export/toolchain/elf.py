"""Reads which shared libraries an ELF file asks for."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Final

from edgekit.errors import ToolchainError

__all__ = ["needed_libraries"]

_PT_LOAD: Final = 1
_PT_DYNAMIC: Final = 2
_DT_NULL: Final = 0
_DT_NEEDED: Final = 1
_DT_STRTAB: Final = 5


def needed_libraries(path: Path) -> tuple[str, ...]:
    """DT_NEEDED entries of a 64-bit little-endian ELF file, in order. System V ABI, chapter 5.

    Raises:
        ToolchainError: not such a file.
    """
    data = path.read_bytes()
    if data[:6] != b"\x7fELF\x02\x01":
        raise ToolchainError(f"{path}: not a 64-bit little-endian ELF file")
    try:
        return _needed(data)
    except (struct.error, OverflowError, ValueError, StopIteration) as error:
        raise ToolchainError(f"{path}: damaged ELF file") from error


def _needed(data: bytes) -> tuple[str, ...]:
    (offset,) = struct.unpack_from("<Q", data, 32)
    size, count = struct.unpack_from("<HH", data, 54)
    # Each: type, flags, offset, virtual address, physical address, size in file, size in memory, alignment.
    headers = [struct.unpack_from("<IIQQQQQQ", data, offset + i * size) for i in range(count)]
    dynamic = next((h for h in headers if h[0] == _PT_DYNAMIC), None)
    if dynamic is None:
        return ()
    entries: list[tuple[int, int]] = []
    for position in range(dynamic[2], dynamic[2] + dynamic[5], 16):
        tag, value = struct.unpack_from("<QQ", data, position)
        if tag == _DT_NULL:
            break
        entries.append((tag, value))
    address = next((value for tag, value in entries if tag == _DT_STRTAB), None)
    if address is None:
        return ()
    segment = next(h for h in headers if h[0] == _PT_LOAD and h[3] <= address < h[3] + h[5])
    strings = segment[2] + address - segment[3]
    return tuple(_string(data, strings + value) for tag, value in entries if tag == _DT_NEEDED)


def _string(data: bytes, position: int) -> str:
    return data[position : data.index(b"\0", position)].decode("ascii")
