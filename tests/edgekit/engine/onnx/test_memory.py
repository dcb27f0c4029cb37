from __future__ import annotations

import numpy as np
import psutil
import pytest

from edgekit.engine.onnx.memory import CacheMemory
from edgekit.errors import EngineError

MIB = 2**20


def resident_mib() -> float:
    return psutil.Process().memory_info().rss / MIB


def test_cache_memory__rows_take_memory_only_where_tokens_are() -> None:
    before = resident_mib()
    # 64 GiB in all, had they to be there.
    memory = CacheMemory(
        ("0.key", "0.value"), rows=64, heads=8, tokens=2**16, head_length=256, element=np.float32
    )
    assert resident_mib() - before < 16
    for buffer in memory.buffers.values():
        buffer[3, :, :2048] = 1
    assert 32 <= resident_mib() - before < 48
    memory.release(3, 1024, 2048)
    assert 16 <= resident_mib() - before < 28
    assert (memory.buffers["0.key"][3, :, :1024] == 1).all()
    assert not memory.buffers["0.key"][3, :, 1024:2048].any()
    memory.release(3, 0, 1024)
    assert resident_mib() - before < 12


def test_cache_memory__copied_rows_are_the_same_and_others_untouched() -> None:
    memory = CacheMemory(("k",), rows=3, heads=2, tokens=100, head_length=12, element=np.float16)
    assert memory.tokens >= 100
    buffer = memory.buffers["k"]
    buffer[:] = np.random.default_rng(0).random(buffer.shape, np.float32)
    before = buffer.copy()
    memory.copy(2, 0, 37)
    assert (buffer[0, :, :37] == before[2, :, :37]).all()
    assert (buffer[0, :, 37:] == before[0, :, 37:]).all()
    assert (buffer[1:] == before[1:]).all()


def test_cache_memory__released_tokens_do_not_take_their_neighbours_along() -> None:
    memory = CacheMemory(("k",), rows=3, heads=3, tokens=500, head_length=20, element=np.float32)
    memory.buffers["k"][:] = 1
    memory.release(1, 101, 400)
    assert (memory.buffers["k"][1, :, :101] == 1).all()
    assert (memory.buffers["k"][[0, 2]] == 1).all()


def test_cache_memory__what_no_address_space_has_is_refused() -> None:
    with pytest.raises(EngineError, match="no room for a KV cache"):
        CacheMemory(("k",), rows=2**20, heads=2**20, tokens=2**20, head_length=128, element=np.float32)
