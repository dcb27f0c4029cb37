"""Chooses llama.cpp's CMake options for the CPU at hand: what was executed, never what is only reported.

GGML_NATIVE stays off: it would make the compiler use all that the CPU reports, on a host that may refuse
some of it.
"""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from edgekit.device.isa import IsaProbe, probe_isa
from edgekit.errors import ToolchainError
from edgekit.profiles import DeviceProfile

__all__ = ["FlagSet", "choose_flag_sets", "compiler_accepts"]

CmakeValue = bool | int | str

# Always: minimal systems have no libgomp, and nothing here needs llama.cpp's web page or HTTP client.
_FIXED: Final[Mapping[str, CmakeValue]] = {
    "GGML_NATIVE": False,
    "GGML_OPENMP": False,
    "LLAMA_ALL_WARNINGS": False,
    "LLAMA_BUILD_UI": False,
    "LLAMA_CURL": False,
    "LLAMA_OPENSSL": False,
}

# ggml/src/ggml-cpu/CMakeLists.txt: CMake option, features it makes the compiler use, its compiler options.
_X86_64: Final[tuple[tuple[str, tuple[str, ...], tuple[str, ...]], ...]] = (
    ("GGML_SSE42", ("sse4_2",), ("-msse4.2",)),
    ("GGML_AVX", ("avx",), ("-mavx",)),
    ("GGML_AVX2", ("avx2",), ("-mavx2",)),
    ("GGML_FMA", ("fma",), ("-mfma",)),
    ("GGML_F16C", ("f16c",), ("-mf16c",)),
    ("GGML_BMI2", ("bmi2",), ("-mbmi2",)),
    (
        "GGML_AVX512",
        ("avx512f", "avx512cd", "avx512vl", "avx512dq", "avx512bw"),
        ("-mavx512f", "-mavx512cd", "-mavx512vl", "-mavx512dq", "-mavx512bw"),
    ),
    ("GGML_AVX512_VBMI", ("avx512vbmi",), ("-mavx512vbmi",)),
    ("GGML_AVX512_VNNI", ("avx512_vnni",), ("-mavx512vnni",)),
    ("GGML_AVX512_BF16", ("avx512_bf16",), ("-mavx512bf16",)),
    ("GGML_AVX_VNNI", ("avx_vnni",), ("-mavxvnni",)),
    ("GGML_AMX_TILE", ("amx_tile",), ("-mamx-tile",)),
    ("GGML_AMX_INT8", ("amx_int8",), ("-mamx-int8",)),
    ("GGML_AMX_BF16", ("amx_bf16",), ("-mamx-bf16",)),
)
_NEEDS: Final[Mapping[str, tuple[str, ...]]] = {
    "GGML_AVX512": ("GGML_AVX2", "GGML_FMA", "GGML_F16C"),
    "GGML_AVX512_VBMI": ("GGML_AVX512",),
    "GGML_AVX512_VNNI": ("GGML_AVX512",),
    "GGML_AVX512_BF16": ("GGML_AVX512",),
    # ggml's amx code is compiled only together with AVX512-VNNI (amx/amx.cpp).
    "GGML_AMX_TILE": ("GGML_AVX512_VNNI",),
    "GGML_AMX_INT8": ("GGML_AMX_TILE",),
    "GGML_AMX_BF16": ("GGML_AMX_INT8",),
}
_FLOOR: Final = ("GGML_SSE42", "GGML_AVX", "GGML_AVX2", "GGML_FMA", "GGML_F16C", "GGML_BMI2")
_AMX: Final = ("GGML_AMX_TILE", "GGML_AMX_INT8", "GGML_AMX_BF16")
# -march extensions of Armv8.2-A and later, by the kernel's HWCAP names.
_AARCH64: Final = (
    ("asimddp", "dotprod"),
    ("asimdhp", "fp16"),
    ("i8mm", "i8mm"),
    ("bf16", "bf16"),
    ("sve", "sve"),
)


@dataclass(frozen=True, slots=True)
class FlagSet:
    """CMake options for one build, and why."""

    name: str
    """"probed", "without AMX", "AVX2 floor", "profile"."""
    cmake: Mapping[str, CmakeValue]
    why: str
    """One line for the log."""

    @property
    def arguments(self) -> tuple[str, ...]:
        """As given to cmake, sorted: -DNAME=ON, -DNAME=OFF or -DNAME=value."""
        return tuple(f"-D{name}={_text(value)}" for name, value in sorted(self.cmake.items()))


def choose_flag_sets(
    profile: DeviceProfile,
    *,
    probe: Callable[[], IsaProbe] = probe_isa,
    accepts: Callable[[tuple[str, ...]], bool] | None = None,
) -> tuple[FlagSet, ...]:
    """The options to build with, best first. The later ones are for when a build with the first crashes.

    What the profile states under `build.cmake` wins over what was probed.

    Args:
        accepts: tells whether the compiler knows the given options. None: asks c++.

    Raises:
        ToolchainError: the profile is for another runtime or another CPU architecture.
    """
    machine = platform.machine()
    if profile.runtime != "llama.cpp":
        raise ToolchainError(
            f"profile {profile.name}: its runtime is {profile.runtime}, which is not built here",
            hint="choose a profile whose runtime is llama.cpp (edgekit profiles)",
        )
    if profile.cpu.architecture not in (None, machine):
        raise ToolchainError(
            f"profile {profile.name} is for {profile.cpu.architecture}, and this machine is {machine}",
            hint=f"run the build on a machine with {profile.cpu.architecture}",
        )
    fixed = {**_FIXED, **profile.build.cmake}
    if not profile.build.probe_isa:
        return (FlagSet("profile", fixed, f"flags of profile {profile.name}, nothing probed"),)
    found = probe()
    accepts = compiler_accepts if accepts is None else accepts
    if found.architecture == "aarch64":
        return (_aarch64(found, fixed, accepts),)
    if found.architecture == "x86_64":
        return _x86_64(found, fixed, accepts)
    return (FlagSet("portable", fixed, f"{found.architecture}: no flags are known for it"),)


def compiler_accepts(options: tuple[str, ...]) -> bool:
    """Whether the C++ compiler that cmake would take knows the options.

    Raises:
        ToolchainError: there is no C++ compiler.
    """
    command = ["c++", *options, "-x", "c++", "-fsyntax-only", "-"]
    try:
        return subprocess.run(command, input=b"", capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        raise ToolchainError(
            "no C++ compiler (c++) on the PATH", hint="on Debian and Ubuntu: apt install build-essential"
        ) from None


def _x86_64(
    found: IsaProbe, fixed: Mapping[str, CmakeValue], accepts: Callable[[tuple[str, ...]], bool]
) -> tuple[FlagSet, ...]:
    on: list[str] = []
    for name, features, options in _X86_64:
        needs = _NEEDS.get(name, ())
        if found.executes.issuperset(features) and set(on).issuperset(needs) and accepts(options):
            on.append(name)
    if "GGML_AVX512_VNNI" in on:
        on = [name for name in on if name != "GGML_AVX_VNNI"]  # the same instruction in fewer registers
    if "GGML_AMX_INT8" not in on:
        on = [name for name in on if name not in _AMX]  # ggml has no use for tiles alone
    why = f"executed here: {_join(found.executes)}"
    if found.refused:
        why += "; reported but refused: " + ", ".join(f"{k} ({v})" for k, v in sorted(found.refused.items()))
    floor = [name for name in on if name in _FLOOR]
    sets = [("probed", on), ("without AMX", [n for n in on if n not in _AMX]), ("AVX2 floor", floor)]
    result: list[FlagSet] = []
    for name, names in sets:
        cmake = {option: option in names for option, _, _ in _X86_64} | dict(fixed)
        if all(cmake != earlier.cmake for earlier in result):
            result.append(FlagSet(name, cmake, why))
    return tuple(result)


def _aarch64(
    found: IsaProbe, fixed: Mapping[str, CmakeValue], accepts: Callable[[tuple[str, ...]], bool]
) -> FlagSet:
    march = "armv8-a"
    for feature, extension in _AARCH64:
        base = "armv8.2-a" if march == "armv8-a" else march
        if feature in found.executes and accepts((f"-march={base}+{extension}",)):
            march = f"{base}+{extension}"
    return FlagSet("probed", {"GGML_CPU_ARM_ARCH": march, **fixed}, f"executed here: {_join(found.executes)}")


def _join(names: frozenset[str]) -> str:
    return " ".join(sorted(names)) or "nothing beyond the baseline"


def _text(value: CmakeValue) -> str:
    return ("ON" if value else "OFF") if isinstance(value, bool) else str(value)
