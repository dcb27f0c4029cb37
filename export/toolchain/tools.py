"""Builds llama.cpp's own programs from the wheel's source with the wheel's flags: peers for benchmarks."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Final

from edgekit.errors import ToolchainError
from export.cache import cache_directory, locked, publish_directory, scratch_directory
from export.progress import Progress, silent
from export.toolchain.proof import write_small_model
from export.toolchain.release import LLAMA_CPP_PYTHON, Release, fetch_source_archive, unpacked_source
from export.toolchain.run import run_build
from export.toolchain.wheel import BuiltWheel, Log, build_key, cmake_include

__all__ = ["TOOL_NAMES", "build_tools"]

TOOL_NAMES: Final = ("llama-bench", "llama-server", "llama-quantize")


def build_tools(
    wheel: BuiltWheel,
    *,
    cache: Path | None = None,
    jobs: int | None = None,
    progress: Progress = silent,
    log: Log = lambda _line: None,
    release: Release = LLAMA_CPP_PYTHON,
) -> Path:
    """Directory with the programs of TOOL_NAMES, built the first time with the flags of `wheel`.

    The programs find their libraries beside themselves.

    Raises:
        ToolchainError: cmake or the compiler is missing or failed, or llama-bench does not run.
    """
    cache = cache_directory() if cache is None else cache
    key = build_key(wheel.arguments, release)
    final = cache / "tools" / key
    with locked(
        cache / "tools" / f"{key}.lock", on_wait=lambda: log("another process builds the tools; waiting")
    ):
        if all((final / name).is_file() for name in TOOL_NAMES):
            log(f"tools from the cache: {final}")
            return final
        archive = fetch_source_archive(cache, release, progress)
        with scratch_directory(cache / "tools", key) as scratch:
            staged = scratch / "tools"
            build_log = cache / "logs" / f"tools-{key}.log"
            build_log.unlink(missing_ok=True)
            with unpacked_source(archive) as source:
                _compile(source / "vendor" / "llama.cpp", staged, wheel.arguments, jobs, build_log, progress)
            _check(staged, scratch)
            shutil.rmtree(final, ignore_errors=True)
            publish_directory(staged, final)
        log(f"tools: {final}")
    return final


def _compile(
    source: Path,
    staged: Path,
    arguments: tuple[str, ...],
    jobs: int | None,
    build_log: Path,
    progress: Progress,
) -> None:
    build = source.parent / "build-tools"
    generator = ["-G", "Ninja"] if shutil.which("ninja") else []
    options = [
        cmake_include(),
        "-DCMAKE_BUILD_TYPE=Release",
        "-DCMAKE_BUILD_WITH_INSTALL_RPATH=ON",
        "-DCMAKE_INSTALL_RPATH=$ORIGIN",
        "-DLLAMA_BUILD_EXAMPLES=OFF",
        "-DLLAMA_BUILD_TESTS=OFF",
        *arguments,
    ]
    what = "compiling llama.cpp's tools"
    configure = ["cmake", "-S", str(source), "-B", str(build), *generator, *options]
    run_build(configure, what="configuring llama.cpp's tools", log=build_log, progress=progress)
    compile_ = ["cmake", "--build", str(build), "--parallel", str(jobs or len(os.sched_getaffinity(0)))]
    compile_ += ["--target", *TOOL_NAMES]
    run_build(compile_, what=what, log=build_log, progress=progress)
    staged.mkdir()
    for path in (build / "bin").iterdir():
        if path.name in TOOL_NAMES or ".so" in path.name:
            shutil.copy2(path, staged / path.name, follow_symlinks=False)


def _check(staged: Path, directory: Path) -> None:
    """Run llama-bench on a small model."""
    model = directory / "small.gguf"
    write_small_model(model)
    command = [str(staged / "llama-bench"), "-m", str(model), "-p", "64", "-n", "4", "-r", "1"]
    child = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    if child.returncode != 0:
        last = child.stderr.strip().splitlines()[-1:] or ["no message"]
        raise ToolchainError(f"llama-bench ended with {child.returncode} on a small model: {last[0]}")
