from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from edgekit.profiles import load_profile
from export.cache import cache_directory
from export.toolchain import BuiltWheel, build_wheel, choose_flag_sets


@pytest.fixture(scope="module")
def built() -> BuiltWheel:
    """The engine's wheel, in the user's cache after `make setup`."""
    return build_wheel(choose_flag_sets(load_profile("host")))


def edgekit(binaries: Path, *arguments: str, cache: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(binaries / "edgekit"), *arguments],
        env={**os.environ, "PATH": f"{binaries}:{os.environ['PATH']}", "XDG_CACHE_HOME": str(cache)},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.timeout(1500)
def test_runtime_install__takes_the_cached_wheel_once(engine_bin: Path, built: BuiltWheel) -> None:
    cache = cache_directory().parent
    first = edgekit(engine_bin, "runtime", "install", "--profile", "host", cache=cache)
    assert first.returncode == 0, first.stderr
    assert f"from the cache, built {built.record['built_utc']}" in first.stderr
    assert "executed here:" in first.stderr
    assert f"installed {built.path.name}" in first.stderr
    second = edgekit(engine_bin, "runtime", "install", "--profile", "host", cache=cache)
    assert "is installed already" in second.stderr
    show = "import llama_cpp; print(llama_cpp.llama_print_system_info().decode().strip(' |\\n'))"
    found = subprocess.run(
        [engine_bin / "python", "-I", "-c", show], capture_output=True, text=True, check=True
    )
    assert found.stdout.strip() == built.system_info


def test_runtime_build__without_the_export_extra_names_it(fresh_bin: Path, tmp_path: Path) -> None:
    result = edgekit(fresh_bin, "runtime", "build", "--profile", "host", cache=tmp_path)
    assert result.returncode == 1
    assert "pip install 'edgekit[export]'" in result.stderr
    assert "Traceback" not in result.stderr


def test_runtime_build__a_device_of_another_architecture_is_refused(fresh_bin: Path, tmp_path: Path) -> None:
    other = "raspberry-pi-5-8gb" if os.uname().machine == "x86_64" else "a100-80gb"
    result = edgekit(fresh_bin, "runtime", "build", "--profile", other, cache=tmp_path)
    assert result.returncode == 1
    assert f"profile {other}" in result.stderr
