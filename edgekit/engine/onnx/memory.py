"""Memory of a KV cache: reserved for all rows at their full length, taken only where tokens are."""

from __future__ import annotations

import math
import mmap
from contextlib import suppress
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from edgekit.errors import EngineError

__all__ = ["CacheMemory"]

_MAP_NORESERVE: Final = 0x4000
"""asm-generic/mman.h: the reservation does not count as memory that is promised."""
_RELEASE_FROM_TOKENS: Final = 64
"""Giving back the end of a row takes a system call for each head of each layer."""


class CacheMemory:
    """One buffer [rows, heads, tokens, head length] for each layer's keys and each layer's values.

    The kernel gives memory page by page as tokens are written, and takes it back when they are dropped: what
    is resident follows the tokens that are held, not the rows that there could be.

    Args:
        names: of the buffers.
        tokens: of a row, at least.

    Raises:
        EngineError: there is no such room in the process's address space.
    """

    def __init__(
        self,
        names: tuple[str, ...],
        *,
        rows: int,
        heads: int,
        tokens: int,
        head_length: int,
        element: type[np.floating[Any]],
    ) -> None:
        self._token_bytes = head_length * np.dtype(element).itemsize
        # Heads begin on pages, so that each can be given back alone.
        whole = mmap.PAGESIZE // math.gcd(mmap.PAGESIZE, self._token_bytes)
        self.tokens = -(-tokens // whole) * whole
        self.shape = (rows, heads, self.tokens, head_length)
        size = rows * heads * self.tokens * self._token_bytes
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE
        self._maps: list[mmap.mmap] = []
        self.buffers: dict[str, NDArray[Any]] = {}
        try:
            for name in names:
                area = mmap.mmap(-1, size, flags=flags)
                self._maps.append(area)
                with suppress(OSError):  # a kernel without huge pages
                    # One would take memory for tokens that are not there.
                    area.madvise(mmap.MADV_NOHUGEPAGE)
                self.buffers[name] = np.frombuffer(area, element).reshape(self.shape)
        except (OSError, ValueError, OverflowError) as error:
            raise EngineError(
                f"no room for a KV cache of {rows} rows of {tokens} tokens: {error}",
                hint="serve with a smaller context, or fewer slots",
            ) from error

    def copy(self, source: int, target: int, tokens: int) -> None:
        """Give a row the first tokens of another one."""
        for buffer in self.buffers.values():
            buffer[target, :, :tokens] = buffer[source, :, :tokens]

    def release(self, row: int, start: int, end: int) -> None:
        """Give back the memory of a row's tokens from `start` to `end`."""
        if end - start < _RELEASE_FROM_TOKENS:
            return
        _, heads, capacity, _ = self.shape
        head_bytes = capacity * self._token_bytes
        first = -(-start * self._token_bytes // mmap.PAGESIZE) * mmap.PAGESIZE
        past = -(-end * self._token_bytes // mmap.PAGESIZE) * mmap.PAGESIZE
        for head in range(row * heads, (row + 1) * heads):
            for area in self._maps:
                area.madvise(mmap.MADV_DONTNEED, head * head_bytes + first, past - first)
