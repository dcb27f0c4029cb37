"""Builds the wheel of llama-cpp-python once, keeps it in the user's cache, and installs it."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any, Final

from edgekit.errors import ToolchainError
from export.cache import cache_directory, file_sha256, locked, publish_directory, scratch_directory
from export.pip_tool import pip_command
from export.progress import Progress, silent
from export.toolchain.attention import ATTENTION_FILES, add_attention, wants_attention
from export.toolchain.flags import FlagSet
from export.toolchain.proof import Proof, prove_wheel, require_proof
from export.toolchain.release import LLAMA_CPP_PYTHON, Release, fetch_source_archive, unpacked_source
from export.toolchain.run import run_build

__all__ = ["BuiltWheel", "build_key", "build_wheel", "cmake_include", "install_wheel"]

Log = Callable[[str], None]

_RECORD: Final = "record.json"
_HERE: Final = Path(__file__).resolve().parent
_RECIPE: Final = ("llama_cpp.cmake", "amx_tile_config.h")
_WHEEL_RECIPE: Final = ("attention.py", *ATTENTION_FILES)
# Headers and a second copy of each library are installed beside the package; the versioned names are copies
# too, as a wheel has no links. What is left is what the loader asks for.
_EXCLUDED: Final = "include/**;lib/**;llama_cpp/lib/*.so.*.*.*"


@dataclass(frozen=True, slots=True)
class BuiltWheel:
    """A wheel in the cache, and the record of its build."""

    path: Path
    sha256: str
    flag_set: str
    """Name of the flags that it was built with, e.g. "probed"."""
    arguments: tuple[str, ...]
    """CMake options that it was built with."""
    system_info: str
    """What the library says of itself."""
    record: Mapping[str, Any]
    """The whole of record.json."""


def build_key(
    arguments: Sequence[str], release: Release = LLAMA_CPP_PYTHON, *, changed_source: bool = False
) -> str:
    """Name of a build in the cache: 16 hex digits of what decides its content, but for the compiler.

    Args:
        changed_source: the source is changed as a wheel's is; unchanged as for the tools.
    """
    names = (*_RECIPE, *_WHEEL_RECIPE) if changed_source and wants_attention(arguments) else _RECIPE
    recipe = [hashlib.sha256((_HERE / name).read_bytes()).hexdigest() for name in names]
    content = [release.sha256, _EXCLUDED, recipe, sorted(arguments), platform.machine(), *platform.libc_ver()]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


def cmake_include() -> str:
    """CMake option that has llama.cpp read `llama_cpp.cmake` of this package."""
    return f"-DCMAKE_PROJECT_llama.cpp_INCLUDE={_HERE / _RECIPE[0]}"


def build_wheel(
    flag_sets: Sequence[FlagSet],
    *,
    cache: Path | None = None,
    jobs: int | None = None,
    progress: Progress = silent,
    log: Log = lambda _line: None,
    release: Release = LLAMA_CPP_PYTHON,
    prove: Callable[[Path], Proof] = prove_wheel,
) -> BuiltWheel:
    """The wheel for the first of `flag_sets` whose build runs; from the cache where it has been built before.

    Processes that want the same wheel at once build it once. A build that does not pass its proof is followed
    by one with the next flags; the cache remembers under the first.

    Args:
        flag_sets: as `choose_flag_sets` gives them, best first.
        cache: edgekit's cache directory. None: the user's.
        jobs: compilers at once. None: one per CPU.
        log: takes lines about what was picked and why.

    Raises:
        ToolchainError: a tool is missing, the compiler failed, or no build passed its proof.
    """
    cache = cache_directory() if cache is None else cache
    key = build_key(flag_sets[0].arguments, release, changed_source=True)
    final = cache / "wheels" / key
    log(f"llama-cpp-python {release.version}, flags: {flag_sets[0].name}; {flag_sets[0].why}")
    with locked(
        cache / "wheels" / f"{key}.lock", on_wait=lambda: log("another process builds it; waiting for that")
    ):
        built = _read(final)
        if built is not None:
            log(f"from the cache, built {built.record['built_utc']}: {built.path}")
            return built
        require_proof()
        log(f"cmake options: {' '.join(flag_sets[0].arguments)}")
        archive = fetch_source_archive(cache, release, progress)
        with scratch_directory(cache / "wheels", key) as scratch:
            staged = scratch / "build"
            staged.mkdir()
            build_log = cache / "logs" / f"wheel-{key}.log"
            build_log.unlink(missing_ok=True)
            _build(archive, staged, flag_sets, release, _jobs(jobs), build_log, progress, log, prove)
            if final.exists():
                final.rename(scratch / "damaged")
            publish_directory(staged, final)
    built = _read(final)
    if built is None:
        raise ToolchainError(f"{final} was changed while it was written", hint="run the command again")
    return built


def install_wheel(built: BuiltWheel, *, log: Log = lambda _line: None) -> bool:
    """Install a wheel and what it depends on into this interpreter's environment.

    Returns False where the very same wheel is installed already.

    Raises:
        ToolchainError: pip failed.
    """
    if _installed_sha256() == built.sha256:
        log(f"{built.path.name} is installed already")
        return False
    # First the wheel alone and by force: another build of the same version may be there.
    commands = (
        ["install", "--quiet", "--quiet", "--no-deps", "--force-reinstall", str(built.path)],
        ["install", "--quiet", "--quiet", LLAMA_CPP_PYTHON.requirement],
    )
    for arguments in commands:
        child = subprocess.run(pip_command(*arguments), capture_output=True, text=True, check=False)
        if child.returncode != 0:
            raise ToolchainError(f"pip could not install {built.path}:\n{child.stderr.strip()}")
    log(f"installed {built.path.name} ({built.flag_set}): {built.system_info}")
    return True


def _build(
    archive: Path,
    staged: Path,
    flag_sets: Sequence[FlagSet],
    release: Release,
    jobs: int,
    build_log: Path,
    progress: Progress,
    log: Log,
    prove: Callable[[Path], Proof],
) -> None:
    refused: list[dict[str, str]] = []
    with unpacked_source(archive) as source:
        if wants_attention(flag_sets[0].arguments):
            add_attention(source / "vendor" / "llama.cpp")
        # One build directory for all: when only CPU flags change, only ggml's CPU code is compiled again.
        for flags in flag_sets:
            began = time.monotonic()
            wheel = _compile(source, staged, flags, jobs, build_log, progress)
            duration_s = time.monotonic() - began
            try:
                proof = prove(wheel)
            except ToolchainError as error:
                log(f"the build with flags '{flags.name}' is not used: {error.message}")
                refused.append({"flag_set": flags.name, "reason": error.message})
                wheel.unlink()
                continue
            record = {
                "release": release.requirement,
                "source_sha256": release.sha256,
                "flag_set": flags.name,
                "why": flags.why,
                "arguments": list(flags.arguments),
                "refused": refused,
                "machine": platform.machine(),
                "libc": " ".join(platform.libc_ver()),
                "compiler": _compiler(),
                "built_utc": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
                "duration_s": round(duration_s, 1),
                "system_info": proof.system_info,
                "attention": "edgekit" if wants_attention(flags.arguments) else "llama.cpp",
                "least_cosine": round(proof.least_cosine, 6),
                "batch_difference": proof.batch_difference,
                "libraries": list(proof.libraries),
                "wheel": wheel.name,
                "sha256": file_sha256(wheel),
            }
            (staged / _RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
            log(f"built in {duration_s:.0f} s and proven: {proof.system_info}")
            return
    raise ToolchainError(
        "no build of llama-cpp-python runs on this machine: " + "; ".join(r["reason"] for r in refused),
        hint=f"the output of the builds is in {build_log}",
    )


def _compile(
    source: Path, staged: Path, flags: FlagSet, jobs: int, build_log: Path, progress: Progress
) -> Path:
    options = [cmake_include(), "-DEDGEKIT_LIBRARIES_ONLY=ON", "-DLLAVA_BUILD=OFF", *flags.arguments]
    environ = {
        **{name: value for name, value in os.environ.items() if not name.startswith("SKBUILD_")},
        "CMAKE_ARGS": " ".join(f'"{option}"' if " " in option else option for option in options),
        "CMAKE_BUILD_PARALLEL_LEVEL": str(jobs),
    }
    command = pip_command("wheel", "--verbose", "--no-deps", "--wheel-dir", str(staged))
    command += ["--config-settings", f"build-dir={source.parent / 'build'}"]
    command += ["--config-settings", f"wheel.exclude={_EXCLUDED}", str(source)]
    what = "compiling llama.cpp" if flags.name == "probed" else f"compiling llama.cpp ({flags.name})"
    run_build(command, what=what, log=build_log, progress=progress, environ=environ)
    wheels = list(staged.glob("*.whl"))
    if len(wheels) != 1:
        raise ToolchainError(f"{what} left {len(wheels)} wheels", hint=f"the whole output is in {build_log}")
    return wheels[0]


def _read(directory: Path) -> BuiltWheel | None:
    """The wheel of a directory in the cache. None: none there, or not what its record says."""
    try:
        record = json.loads((directory / _RECORD).read_text(encoding="utf-8"))
        path = directory / record["wheel"]
        if file_sha256(path) != record["sha256"]:
            return None
        return BuiltWheel(
            path=path,
            sha256=record["sha256"],
            flag_set=record["flag_set"],
            arguments=tuple(record["arguments"]),
            system_info=record["system_info"],
            record=record,
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _installed_sha256() -> str | None:
    """Of the wheel file that the installed llama-cpp-python came from, as pip noted it (PEP 610)."""
    try:
        text = distribution("llama-cpp-python").read_text("direct_url.json")
        return str(json.loads(text or "{}")["archive_info"]["hashes"]["sha256"])
    except (PackageNotFoundError, ValueError, KeyError, TypeError):
        return None


def _compiler() -> str | None:
    try:
        child = subprocess.run(["c++", "--version"], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    lines = child.stdout.splitlines()
    return lines[0] if lines else None


def _jobs(jobs: int | None) -> int:
    return jobs or len(os.sched_getaffinity(0))
