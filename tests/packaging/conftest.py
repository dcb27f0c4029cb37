"""A fresh virtual environment with edgekit's wheel and its base dependencies, as a desk would install it."""

from __future__ import annotations

import subprocess
import sys
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """edgekit's wheel, built from this checkout."""
    directory = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--outdir", str(directory), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True)
    (path,) = directory.glob("edgekit-*.whl")
    return path


@pytest.fixture(scope="session")
def fresh_bin(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """bin/ of a virtual environment that has the wheel without extras."""
    return install(wheel, tmp_path_factory.mktemp("fresh"))


@pytest.fixture(scope="session")
def engine_bin(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """bin/ of another such environment, for the engine to be installed into."""
    return install(wheel, tmp_path_factory.mktemp("engine"))


def install(wheel: Path, directory: Path) -> Path:
    venv.create(directory, with_pip=True)
    binaries = directory / "bin"
    pip = [str(binaries / "python"), "-m", "pip", "--disable-pip-version-check", "install", "-qq"]
    subprocess.run([*pip, str(wheel)], check=True)
    return binaries
