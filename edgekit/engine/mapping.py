"""Gives back the pages of a mapped model file that nobody needs in memory any more."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

from edgekit.gguf_header import shard_paths

__all__ = ["release_mapping"]

_MADV_DONTNEED = 4
"""<asm-generic/mman-common.h>"""


def release_mapping(path: Path, root: Path = Path("/")) -> int:
    """Drop this process's pages of a mapped model; whoever reads them again finds them in the page cache.

    ggml maps the model and, where its kernels want another layout, makes a copy of the weights in memory of
    its own. The mapped pages then count as resident until the kernel wants them back, and a model seems to
    take twice its size.

    Args:
        path: its file, or the first of its shards.

    Returns:
        Bytes of the mappings that were released.
    """
    wanted = {os.path.realpath(shard) for shard in shard_paths(path)}
    libc = ctypes.CDLL(None, use_errno=True)
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    released = 0
    for line in (root / "proc/self/maps").read_text("utf-8", "surrogateescape").splitlines():
        # address perms offset dev inode pathname (proc_pid_maps(5))
        fields = line.split(maxsplit=5)
        # Only what cannot hold changes of ours: those would be lost.
        if len(fields) < 6 or fields[5] not in wanted or "w" in fields[1]:
            continue
        start, end = (int(part, 16) for part in fields[0].split("-"))
        if libc.madvise(start, end - start, _MADV_DONTNEED) == 0:
            released += end - start
    return released
