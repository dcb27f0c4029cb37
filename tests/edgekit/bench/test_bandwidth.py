from __future__ import annotations

import time
from pathlib import Path

import pytest

from edgekit.bench.bandwidth import last_level_cache_bytes, measure_bandwidth


def test_measure_bandwidth__is_near_what_comparing_two_buffers_in_python_reads() -> None:
    """An independent reading: bytes.__eq__ compares buffers of 32 MiB, both of which are read."""
    first = bytes(range(256)) * (1 << 17)
    second = bytes(bytearray(first))
    best = float("inf")
    for _ in range(8):
        begun = time.perf_counter()
        assert first == second
        best = min(best, time.perf_counter() - begun)
    python_gb_per_s = 2 * len(first) / best / 1e9
    found = measure_bandwidth(64 << 20, 1)
    # Other processes take memory bandwidth too, and not evenly.
    assert python_gb_per_s / 4 < found.gb_per_s < python_gb_per_s * 4
    assert found.buffer_bytes == 64 << 20


def test_measure_bandwidth__every_thread_has_its_part() -> None:
    found = measure_bandwidth(64 << 20, 3)
    assert found.threads == 3
    assert 64 << 20 >= found.buffer_bytes > (64 << 20) - 3 * 2 * 65536
    assert 0.1 < found.gb_per_s < 10_000


@pytest.mark.parametrize(("sizes", "expected"), [(("32K", "2M", "480M"), 480 << 20), ((), None)])
def test_last_level_cache__largest_that_the_kernel_tells(
    tmp_path: Path, sizes: tuple[str, ...], expected: int | None
) -> None:
    for index, size in enumerate(sizes):
        path = tmp_path / f"sys/devices/system/cpu/cpu0/cache/index{index}/size"
        path.parent.mkdir(parents=True)
        path.write_text(size + "\n")
    assert last_level_cache_bytes(tmp_path) == expected
