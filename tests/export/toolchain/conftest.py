"""A source distribution that builds in a second: its backend writes down how it was called."""

from __future__ import annotations

import hashlib
import io
import tarfile
from pathlib import Path

import pytest

from export.toolchain.release import Release

# A build backend of its own (PEP 517), so that nothing is fetched. It counts how often it has built.
_BACKEND = """
import json, os, pathlib, sys, zipfile

def get_requires_for_build_wheel(config_settings=None):
    return []

def build_wheel(wheel_directory, config_settings=None, metadata_directory=None):
    calls = pathlib.Path(os.environ["STANDIN_CALLS"])
    with calls.open("a") as file:
        file.write(os.environ["CMAKE_ARGS"] + "\\\\n")
    print("[1/2] c++ one")
    print("[2/2] c++ two", flush=True)
    if os.environ.get("STANDIN_FAILS"):
        sys.exit("llama.cpp:7:1: error: this does not compile")
    name = "llama_cpp_python-0.0.1-py3-none-any.whl"
    info = "llama_cpp_python-0.0.1.dist-info"
    ops = pathlib.Path("vendor/llama.cpp/ggml/src/ggml-cpu/ops.cpp").read_text()
    content = {
        "llama_cpp/how.json": json.dumps(
            {"settings": config_settings, "cmake": os.environ["CMAKE_ARGS"], "ops": ops}
        ),
        f"{info}/METADATA": "Metadata-Version: 2.1\\\\nName: llama_cpp_python\\\\nVersion: 0.0.1\\\\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\\\\nRoot-Is-Purelib: true\\\\nTag: py3-none-any\\\\n",
    }
    content[f"{info}/RECORD"] = "".join(f"{path},,\\\\n" for path in [*content, f"{info}/RECORD"])
    with zipfile.ZipFile(pathlib.Path(wheel_directory, name), "w") as archive:
        for path, text in content.items():
            archive.writestr(path, text)
    return name
""".replace("\\\\n", "\\n")

_PYPROJECT = """
[build-system]
requires = []
build-backend = "backend"
backend-path = ["."]

[project]
name = "llama_cpp_python"
version = "0.0.1"
"""


# What ops.cpp of llama.cpp has around the places that are changed.
_OPS = """
static void ggml_compute_forward_flash_attn_ext_f16(
        const ggml_compute_params * params,
        ggml_tensor * dst) {
}

void ggml_compute_forward_flash_attn_ext(
        const ggml_compute_params * params,
        ggml_tensor * dst) {
    switch (dst->op_params[3]) {
        case GGML_PREC_DEFAULT:
            {
                ggml_compute_forward_flash_attn_ext_f16(params, dst);
            } break;
    }
}
"""


@pytest.fixture
def ops_text() -> str:
    """As far as it matters, the source that edgekit's attention is put into."""
    return _OPS


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """File that has one line, the CMake options, for each time that the stand-in was built."""
    path = tmp_path / "calls.txt"
    path.touch()
    monkeypatch.setenv("STANDIN_CALLS", str(path))
    return path


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def release(cache: Path, calls: Path) -> Release:
    """The stand-in's release, fetched into the cache already."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        files = {
            "backend.py": _BACKEND,
            "pyproject.toml": _PYPROJECT,
            "vendor/llama.cpp/ggml/src/ggml-cpu/ops.cpp": _OPS,
        }
        for name, text in files.items():
            data = text.encode()
            info = tarfile.TarInfo(f"llama_cpp_python-0.0.1/{name}")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    data = buffer.getvalue()
    found = Release(version="0.0.1", sha256=hashlib.sha256(data).hexdigest(), size_bytes=len(data))
    (cache / "sdist").mkdir(parents=True)
    (cache / "sdist" / found.archive_name).write_bytes(data)
    return found
