"""How fast this machine reads memory, measured on the spot.

Decoding reads all weights for every token. What a plain read of as many bytes reaches is its limit.

The read is the C library's memcmp of two equal halves, called through ctypes, which lets other threads run.
glibc's uses the widest vectors there are. Against a loop in C that adds up 64-bit words (gcc -O3, 2 threads,
1 GiB, an x86-64 server with AVX-512): 34.3 and 33.7 GB/s.
"""

from __future__ import annotations

import ctypes
import mmap
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil

from edgekit.device.sysfs import read_text
from edgekit.errors import EdgekitError

__all__ = ["Bandwidth", "last_level_cache_bytes", "measure_bandwidth"]

_SMALLEST_BYTES: Final = 64 << 20
_LARGEST_BYTES: Final = 1 << 30
_LEAST_S: Final = 0.5
"""How long is read at least, over and over."""
_LEAST_PASSES: Final = 3


@dataclass(frozen=True, slots=True)
class Bandwidth:
    """What reading memory reached."""

    gb_per_s: float
    """10^9 bytes a second; the best of several passes."""
    buffer_bytes: int
    threads: int
    cache_bytes: int | None
    """Of the last level, in all; where the buffer fits, part of it is read from there, as weights are."""


def measure_bandwidth(size_bytes: int, threads: int, *, root: Path = Path("/")) -> Bandwidth:
    """Read a buffer with several threads, each its own part.

    Args:
        size_bytes: as many as a token reads. Between 64 MiB and 1 GiB are taken, and no more than a third of
            the memory that is free.
        threads: as many as compute.
        root: where sys/ is looked for.

    Raises:
        EdgekitError: there is no memory for it.
    """
    size = min(max(size_bytes, _SMALLEST_BYTES), _LARGEST_BYTES, psutil.virtual_memory().available // 3)
    half = max(mmap.PAGESIZE, size // threads // 2 // mmap.PAGESIZE * mmap.PAGESIZE)
    size = half * 2 * threads
    try:
        buffer = mmap.mmap(-1, size)
    except OSError as error:
        raise EdgekitError(f"no {size / 2**20:.0f} MiB of memory to measure its speed with") from error
    first = ctypes.c_char.from_buffer(buffer)
    try:
        address = ctypes.addressof(first)
        # Written, because untouched pages are all the same one.
        ctypes.memset(address, 1, size)
        best = _best_pass_s(address, half, threads)
    finally:
        del first
        buffer.close()
    return Bandwidth(size / best / 1e9, size, threads, last_level_cache_bytes(root))


def _best_pass_s(address: int, half: int, threads: int) -> float:
    """Seconds from the first thread's begin to the last one's end, of the fastest pass."""
    compare = ctypes.CDLL(None).memcmp
    compare.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t]
    compare.restype = ctypes.c_int
    gate = threading.Barrier(threads)
    spans: list[list[tuple[float, float]]] = [[] for _ in range(threads)]
    ends_at = time.perf_counter() + _LEAST_S
    going = True

    def read(part: int) -> None:
        nonlocal going
        begin = address + part * 2 * half
        while going:
            gate.wait()
            # Each takes its own times: on a busy machine, whoever watches may wake up too late.
            begun = time.perf_counter()
            compare(begin, begin + half, half)
            ended = time.perf_counter()
            spans[part].append((begun, ended))
            gate.wait()
            if part == 0:
                going = ended < ends_at or len(spans[0]) < _LEAST_PASSES
            gate.wait()

    workers = [threading.Thread(target=read, args=(part,)) for part in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    passes = zip(*spans, strict=True)
    seconds: list[float] = []
    for one in passes:
        seconds.append(max(end for _, end in one) - min(begin for begin, _ in one))
    return min(seconds)


def last_level_cache_bytes(root: Path = Path("/")) -> int | None:
    """Size of the largest cache of CPU 0. None: the kernel does not say, as on most ARM boards."""
    units = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
    sizes = []
    for path in root.glob("sys/devices/system/cpu/cpu0/cache/index*/size"):
        text = read_text(path) or ""
        if text[-1:] in units and text[:-1].isdigit():
            sizes.append(int(text[:-1]) * units[text[-1]])
    return max(sizes, default=None)
