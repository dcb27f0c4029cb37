from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from export.cache import cache_directory, file_sha256, locked, publish_directory, scratch_directory


def test_cache_directory__follows_the_environment() -> None:
    assert cache_directory({"XDG_CACHE_HOME": "/var/cache/me"}) == Path("/var/cache/me/edgekit")
    assert cache_directory({}) == Path.home() / ".cache" / "edgekit"
    # XDG Base Directory Specification: a relative path is to be ignored.
    assert cache_directory({"XDG_CACHE_HOME": "here"}) == Path.home() / ".cache" / "edgekit"


def test_locked__waits_for_another_process_and_says_so(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    hold = (
        "import fcntl, sys, time\n"
        f"file = open({str(path)!r}, 'w'); fcntl.flock(file, fcntl.LOCK_EX)\n"
        "print('held', flush=True); time.sleep(0.7)\n"
    )
    with subprocess.Popen([sys.executable, "-c", hold], stdout=subprocess.PIPE) as other:
        assert other.stdout is not None and other.stdout.readline() == b"held\n"
        waited: list[bool] = []
        began = time.monotonic()
        with locked(path, on_wait=lambda: waited.append(True)):
            assert time.monotonic() - began > 0.3
    assert waited == [True]


def test_scratch_directory__goes_and_takes_what_a_killed_process_left(tmp_path: Path) -> None:
    (tmp_path / ".fetch-killed").mkdir()
    (tmp_path / ".other-1").mkdir()
    with scratch_directory(tmp_path, "fetch") as scratch:
        assert sorted(path.name for path in tmp_path.iterdir()) == sorted([".other-1", scratch.name])
    assert [path.name for path in tmp_path.iterdir()] == [".other-1"]


def test_publish_directory__renames_and_refuses_to_replace(tmp_path: Path) -> None:
    staged, final = tmp_path / "staged", tmp_path / "final"
    staged.mkdir()
    (staged / "file").write_text("content")
    publish_directory(staged, final)
    assert (final / "file").read_text() == "content"
    assert not staged.exists()
    staged.mkdir()
    with pytest.raises(OSError, match="not empty"):
        publish_directory(staged, final)


def test_file_sha256__is_what_sha256sum_says(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"edgekit" * 100_000)
    expected = subprocess.run(["sha256sum", path], check=True, capture_output=True, text=True).stdout.split()[
        0
    ]
    assert file_sha256(path) == expected
