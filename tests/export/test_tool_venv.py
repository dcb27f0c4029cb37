"""Environments for tools: made once, whole, and made again when they do not run."""

from __future__ import annotations

import subprocess
import sys
import threading
import zipfile
from pathlib import Path

import pytest

from edgekit.errors import ToolchainError
from export.tool_venv import ensure_tool_venv


def _wheel(directory: Path, code: str = "ANSWER = 42\n") -> str:
    """A requirement on a real wheel that needs no index."""
    path = directory / "venv_probe-1.0-py3-none-any.whl"
    info = "venv_probe-1.0.dist-info"
    files = {
        "venv_probe.py": code,
        f"{info}/METADATA": "Metadata-Version: 2.1\nName: venv-probe\nVersion: 1.0\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(f"{name},,\n" for name in [*files, f"{info}/RECORD"])
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in {**files, f"{info}/RECORD": record}.items():
            archive.writestr(name, text)
    return f"venv-probe @ {path.as_uri()}"


def _ensure(tmp_path: Path, requirement: str, **options: object) -> Path:
    return ensure_tool_venv(
        "probe", [requirement], imports=["venv_probe"], cache=tmp_path / "cache", **options
    )


def _environments(tmp_path: Path) -> list[str]:
    return [path.name for path in (tmp_path / "cache" / "venvs").iterdir() if path.is_dir()]


def test_ensure_tool_venv__makes_it_once_and_makes_a_broken_one_again(tmp_path: Path) -> None:
    requirement = _wheel(tmp_path)
    found: list[Path] = []
    threads = [threading.Thread(target=lambda: found.append(_ensure(tmp_path, requirement))) for _ in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    python = found[0]
    assert found[1] == python
    log = next((tmp_path / "cache" / "logs").iterdir())
    assert log.read_text(encoding="utf-8").count("Successfully installed") == 1
    code = "import venv_probe, sys; print(venv_probe.ANSWER, sys.prefix)"
    said = subprocess.run([python, "-I", "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.split() == ["42", str(python.parents[1])]
    with pytest.raises(subprocess.CalledProcessError):  # and nothing of it here
        subprocess.run([sys.executable, "-c", "import venv_probe"], capture_output=True, check=True)
    # It is found without a network, and without what it was made of.
    (tmp_path / "venv_probe-1.0-py3-none-any.whl").rename(tmp_path / "away.whl")
    assert _ensure(tmp_path, requirement, offline=True) == python
    python.unlink()
    python.symlink_to(tmp_path / "an-interpreter-that-was-removed")
    with pytest.raises(ToolchainError, match="missing"):
        _ensure(tmp_path, requirement, offline=True)
    (tmp_path / "away.whl").rename(tmp_path / "venv_probe-1.0-py3-none-any.whl")
    assert _ensure(tmp_path, requirement) == python
    assert subprocess.run([python, "-c", ""], check=False).returncode == 0


def test_ensure_tool_venv__pips_failure_says_what_to_run_and_leaves_nothing(tmp_path: Path) -> None:
    requirement = f"venv-probe @ {(tmp_path / 'absent-1.0-py3-none-any.whl').as_uri()}"
    with pytest.raises(ToolchainError, match=r"absent-1\.0") as failure:
        _ensure(tmp_path, requirement)
    assert "-m pip install" in str(failure.value.hint)
    assert _environments(tmp_path) == []


def test_ensure_tool_venv__one_that_cannot_be_imported_does_not_count(tmp_path: Path) -> None:
    requirement = _wheel(tmp_path, code="raise ImportError('made for another machine')\n")
    with pytest.raises(ToolchainError, match="made for another machine"):
        _ensure(tmp_path, requirement)
    assert _environments(tmp_path) == []


def test_ensure_tool_venv__python_that_does_not_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ToolchainError, match="no Python that runs"):
        _ensure(tmp_path, "anything==1", python=tmp_path / "python")


def test_ensure_tool_venv__offline_names_the_place_and_the_command(tmp_path: Path) -> None:
    with pytest.raises(ToolchainError, match="environment of its own, which is missing") as failure:
        ensure_tool_venv("probe", ["venv-probe==1.0"], cache=tmp_path, offline=True)
    assert "pip install venv-probe==1.0" in str(failure.value.hint)
    assert not (tmp_path / "venvs").exists()
