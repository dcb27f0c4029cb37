from __future__ import annotations

from pathlib import Path

import pytest

from edgekit.errors import ToolchainError
from export.pip_tool import download

# A small pure-Python release: its wheel has 2 kB. PyPI, files of iniconfig 2.0.0.
REQUIREMENT = "iniconfig==2.0.0"
SHA256 = "b6a85871a79d2e3b22d2d1b94ac2824226a63c6b741c88f7ae975f18b6778374"


def test_download__fetches_the_pinned_file_and_nothing_else(tmp_path: Path) -> None:
    seen: list[tuple[str, float, float | None]] = []
    path = download(
        REQUIREMENT,
        sha256=SHA256,
        size_bytes=5892,
        source=False,
        directory=tmp_path,
        progress=lambda what, done, total: seen.append((what, done, total)),
    )
    assert path == tmp_path / "iniconfig-2.0.0-py3-none-any.whl"
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]
    assert seen[-1] == ("fetching iniconfig==2.0.0", 5892, 5892)


def test_download__another_hash_is_refused_and_nothing_is_left(tmp_path: Path) -> None:
    with pytest.raises(ToolchainError, match=r"fetching iniconfig==2\.0\.0 failed") as caught:
        download(REQUIREMENT, sha256="0" * 64, size_bytes=5892, source=False, directory=tmp_path)
    assert "THESE PACKAGES DO NOT MATCH THE HASHES" in caught.value.message
    assert list(tmp_path.iterdir()) == []
