"""Stands for a full disk: writes beyond a size fail with an error, as they would there."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def file_size_limited(size_bytes: int) -> Iterator[None]:
    """Let no file of this process or its children grow beyond a size.

    Only as long as the block lasts: pytest's own output may be such a file.
    """
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
