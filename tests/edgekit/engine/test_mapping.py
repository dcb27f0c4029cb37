from __future__ import annotations

import mmap
from pathlib import Path

import psutil

from edgekit.engine.mapping import release_mapping


def resident(path: Path) -> int:
    return sum(entry.rss for entry in psutil.Process().memory_maps() if entry.path == str(path))


def test_release_mapping__pages_go_and_come_back_unchanged(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    content = bytes(range(256)) * 4096 * 8
    path.write_bytes(content)
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        assert mapped[:] == content
        assert resident(path) > 0.9 * len(content)
        assert release_mapping(path) >= len(content)
        assert resident(path) == 0
        assert mapped[:] == content


def test_release_mapping__of_the_first_shard_releases_all(tmp_path: Path) -> None:
    shards = [tmp_path / f"model-0000{number}-of-00002.gguf" for number in (1, 2)]
    for shard in shards:
        shard.write_bytes(bytes(2**20))
    with (
        shards[0].open("rb") as first,
        shards[1].open("rb") as second,
        mmap.mmap(first.fileno(), 0, access=mmap.ACCESS_READ) as one,
        mmap.mmap(second.fileno(), 0, access=mmap.ACCESS_READ) as other,
    ):
        assert one[:] == other[:] == bytes(2**20)
        assert release_mapping(shards[0]) == 2 * 2**20
        assert resident(shards[0]) == resident(shards[1]) == 0


def test_release_mapping__writable_and_other_mappings_are_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "other"
    path.write_bytes(b"a" * 2**16)
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY) as mapped:
        mapped[0:1] = b"b"
        assert release_mapping(path) == 0
        assert mapped[0:1] == b"b"
    assert release_mapping(tmp_path / "absent") == 0
