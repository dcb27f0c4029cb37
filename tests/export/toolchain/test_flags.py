from __future__ import annotations

import platform
from pathlib import Path

import pytest

from edgekit.device.isa import IsaProbe
from edgekit.device.isa_code import ROUTINES
from edgekit.errors import ToolchainError
from edgekit.profiles import DeviceProfile, load_profile, profile_names
from export.toolchain.flags import FlagSet, choose_flag_sets, compiler_accepts

ALL = frozenset(ROUTINES["x86_64"])
AMX = {"amx_tile", "amx_int8", "amx_bf16"}


def choose(
    executes: frozenset[str], *, refused: dict[str, str] | None = None, architecture: str = "x86_64"
) -> tuple[FlagSet, ...]:
    refused = refused or {}
    found = IsaProbe(architecture, executes | set(refused), executes, refused)
    return choose_flag_sets(load_profile("host"), probe=lambda: found, accepts=lambda _options: True)


def on(flags: FlagSet) -> set[str]:
    return {name.removeprefix("GGML_") for name, value in flags.cmake.items() if value is True}


def test_choose_flag_sets__all_that_executes_is_on_and_native_never() -> None:
    probed, without_amx, floor = choose(ALL)
    floor_names = {"SSE42", "AVX", "AVX2", "FMA", "F16C", "BMI2"}
    avx512 = {"AVX512", "AVX512_VBMI", "AVX512_VNNI", "AVX512_BF16"}
    assert on(probed) == floor_names | avx512 | {"AMX_TILE", "AMX_INT8", "AMX_BF16"}
    assert on(without_amx) == floor_names | avx512
    assert on(floor) == floor_names
    for flags in (probed, without_amx, floor):
        assert flags.cmake["GGML_NATIVE"] is False
        assert flags.cmake["GGML_OPENMP"] is False
    assert [flags.name for flags in (probed, without_amx, floor)] == ["probed", "without AMX", "AVX2 floor"]


def test_choose_flag_sets__amx_that_is_reported_and_does_not_execute_is_off_and_named() -> None:
    refused = dict.fromkeys(AMX, "SIGILL")
    probed, *_ = choose(ALL - AMX, refused=refused)
    assert not any("AMX" in name for name in on(probed))
    assert "reported but refused: amx_bf16 (SIGILL), amx_int8 (SIGILL), amx_tile (SIGILL)" in probed.why


@pytest.mark.parametrize("missing", ["avx512f", "avx512cd", "avx512vl", "avx512dq", "avx512bw", "fma"])
def test_choose_flag_sets__avx512_needs_all_that_ggml_compiles_with(missing: str) -> None:
    probed, *_ = choose(ALL - {missing})
    assert not any("AVX512" in name or "AMX" in name for name in on(probed))
    assert "AVX_VNNI" in on(probed)


def test_choose_flag_sets__amx_needs_vnni_and_int8() -> None:
    assert not any("AMX" in name for name in on(choose(ALL - {"avx512_vnni"})[0]))
    assert not any("AMX" in name for name in on(choose(ALL - {"amx_int8"})[0]))
    assert "AMX_INT8" in on(choose(ALL - {"amx_bf16"})[0])


def test_choose_flag_sets__a_plain_cpu_has_one_build() -> None:
    (only,) = choose(frozenset({"sse4_2"}))
    assert on(only) == {"SSE42"}
    assert only.cmake["GGML_AVX2"] is False


def test_choose_flag_sets__what_the_compiler_does_not_know_is_off() -> None:
    found = IsaProbe("x86_64", ALL, ALL)
    probed, *_ = choose_flag_sets(
        load_profile("host"), probe=lambda: found, accepts=lambda options: "-mamx-tile" not in options
    )
    assert "AVX512_VNNI" in on(probed)
    assert not any("AMX" in name for name in on(probed))


def test_choose_flag_sets__the_profile_wins_over_the_probe() -> None:
    host = load_profile("host")
    build = host.build.model_copy(update={"cmake": {**host.build.cmake, "GGML_AMX_INT8": False}})
    found = IsaProbe("x86_64", ALL, ALL)
    probed, *_ = choose_flag_sets(
        host.model_copy(update={"build": build}), probe=lambda: found, accepts=lambda _options: True
    )
    assert probed.cmake["GGML_AMX_INT8"] is False


@pytest.mark.parametrize(
    ("executes", "march"),
    [
        (frozenset(), "armv8-a"),
        # Raspberry Pi 5 and Jetson Orin: Cortex-A76 and A78AE.
        (frozenset({"asimddp", "asimdhp"}), "armv8.2-a+dotprod+fp16"),
        (frozenset({"asimddp", "asimdhp", "i8mm", "bf16", "sve"}), "armv8.2-a+dotprod+fp16+i8mm+bf16+sve"),
    ],
)
def test_choose_flag_sets__aarch64_names_its_extensions(executes: frozenset[str], march: str) -> None:
    (only,) = choose(executes, architecture="aarch64")
    assert only.cmake["GGML_CPU_ARM_ARCH"] == march


def test_choose_flag_sets__arguments_are_cmake_options() -> None:
    flags = FlagSet("profile", {"GGML_B": True, "GGML_A": False, "CMAKE_N": 86, "GGML_T": "x"}, "")
    assert flags.arguments == ("-DCMAKE_N=86", "-DGGML_A=OFF", "-DGGML_B=ON", "-DGGML_T=x")


def test_choose_flag_sets__another_architecture_is_refused() -> None:
    other = "raspberry-pi-5-8gb" if platform.machine() == "x86_64" else "a100-80gb"
    with pytest.raises(ToolchainError, match="this machine is"):
        choose_flag_sets(load_profile(other))


def profiles_of(runtime: str) -> list[DeviceProfile]:
    return [profile for name in profile_names() if (profile := load_profile(name)).runtime == runtime]


def test_choose_flag_sets__another_runtime_is_refused() -> None:
    for profile in profiles_of("vllm"):
        with pytest.raises(ToolchainError, match="its runtime is vllm"):
            choose_flag_sets(profile)


def test_compiler_accepts__knows_its_options() -> None:
    assert compiler_accepts(("-O2",))
    assert not compiler_accepts(("-mno-such-instruction-set",))


def test_compiler_accepts__without_a_compiler_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ToolchainError, match=r"no C\+\+ compiler") as caught:
        compiler_accepts(("-O2",))
    assert "apt install build-essential" in str(caught.value)
