from __future__ import annotations

import json
import threading
import zipfile
from pathlib import Path

import pytest

from edgekit.errors import ToolchainError
from export.toolchain.flags import FlagSet
from export.toolchain.proof import Proof
from export.toolchain.release import Release
from export.toolchain.wheel import BuiltWheel, build_key, build_wheel

PROBED = FlagSet("probed", {"GGML_AVX512": True, "GGML_AMX_INT8": True}, "executed here: all")
FLOOR = FlagSet("AVX2 floor", {"GGML_AVX512": False, "GGML_AMX_INT8": False}, "executed here: all")


def proof(_wheel: Path) -> Proof:
    return Proof(
        system_info="CPU : AVX2 = 1", least_cosine=0.9999, batch_difference=0.0, libraries=("libc.so.6",)
    )


def crash_with_avx512(wheel: Path) -> Proof:
    if "-DGGML_AVX512=ON" in how(wheel)["cmake"]:
        raise ToolchainError("running a small model ended with SIGILL: no message")
    return proof(wheel)


def how(wheel: Path) -> dict[str, str]:
    with zipfile.ZipFile(wheel) as archive:
        found: dict[str, str] = json.loads(archive.read("llama_cpp/how.json"))
    return found


def built(cache: Path, release: Release, *flags: FlagSet) -> BuiltWheel:
    return build_wheel(flags or (PROBED,), cache=cache, release=release, prove=proof)


def test_build_wheel__gives_the_flags_to_cmake_and_records_them(cache: Path, release: Release) -> None:
    wheel = built(cache, release)
    cmake = how(wheel.path)["cmake"].split()
    assert {"-DGGML_AVX512=ON", "-DGGML_AMX_INT8=ON", "-DEDGEKIT_LIBRARIES_ONLY=ON"} <= set(cmake)
    assert any(option.startswith("-DCMAKE_PROJECT_llama.cpp_INCLUDE=/") for option in cmake)
    assert wheel.path.parent == cache / "wheels" / build_key(PROBED.arguments, release, changed_source=True)
    assert wheel.record["arguments"] == ["-DGGML_AMX_INT8=ON", "-DGGML_AVX512=ON"]
    assert wheel.record["source_sha256"] == release.sha256
    assert (wheel.flag_set, wheel.system_info) == ("probed", "CPU : AVX2 = 1")


def test_build_wheel__second_time_comes_from_the_cache(cache: Path, release: Release, calls: Path) -> None:
    first, second = built(cache, release), built(cache, release)
    assert first == second
    assert len(calls.read_text().splitlines()) == 1


def test_build_wheel__other_flags_are_another_build(cache: Path, release: Release, calls: Path) -> None:
    assert built(cache, release, PROBED).path != built(cache, release, FLOOR).path
    assert len(calls.read_text().splitlines()) == 2


def test_build_wheel__has_edgekits_attention_unless_the_flags_say_no(cache: Path, release: Release) -> None:
    own = built(cache, release)
    assert "if (!edgekit_flash_attn_ext(params, dst)) {" in how(own.path)["ops"]
    assert own.record["attention"] == "edgekit"
    without = FlagSet("probed", {**PROBED.cmake, "GGML_EDGEKIT_ATTENTION": False}, PROBED.why)
    stock = built(cache, release, without)
    assert "edgekit" not in how(stock.path)["ops"]
    assert stock.record["attention"] == "llama.cpp"


def test_build_key__the_kernel_names_the_wheel_and_not_the_tools(release: Release) -> None:
    tools = build_key(PROBED.arguments, release)
    assert build_key(PROBED.arguments, release, changed_source=True) != tools
    off = ("-DGGML_EDGEKIT_ATTENTION=OFF",)
    assert build_key(off, release, changed_source=True) == build_key(off, release)


def test_build_wheel__a_damaged_wheel_is_built_again(cache: Path, release: Release, calls: Path) -> None:
    first = built(cache, release)
    first.path.write_bytes(first.path.read_bytes()[:-1])
    second = built(cache, release)
    assert second.sha256 == first.sha256 or zipfile.is_zipfile(second.path)
    assert len(calls.read_text().splitlines()) == 2


def test_build_wheel__a_build_that_crashes_is_followed_by_the_next_and_remembered(
    cache: Path, release: Release, calls: Path
) -> None:
    lines: list[str] = []
    for _ in range(2):
        wheel = build_wheel(
            (PROBED, FLOOR), cache=cache, release=release, prove=crash_with_avx512, log=lines.append
        )
    assert wheel.flag_set == "AVX2 floor"
    assert wheel.arguments == FLOOR.arguments
    assert wheel.record["refused"][0]["flag_set"] == "probed"
    assert "SIGILL" in wheel.record["refused"][0]["reason"]
    assert any("'probed' is not used" in line and "SIGILL" in line for line in lines)
    assert len(calls.read_text().splitlines()) == 2


def test_build_wheel__none_that_runs_is_an_error_and_leaves_nothing(cache: Path, release: Release) -> None:
    with pytest.raises(ToolchainError, match=r"no build of llama-cpp-python runs on this machine.*SIGILL"):
        build_wheel((PROBED,), cache=cache, release=release, prove=crash_with_avx512)
    assert [path.name for path in (cache / "wheels").iterdir() if path.is_dir()] == []


def test_build_wheel__a_failing_compiler_shows_its_error_and_the_log(
    cache: Path, release: Release, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STANDIN_FAILS", "1")
    with pytest.raises(ToolchainError) as caught:
        built(cache, release)
    assert "llama.cpp:7:1: error: this does not compile" in caught.value.message
    assert caught.value.hint is not None
    log = Path(caught.value.hint.split()[-1])
    assert "this does not compile" in log.read_text()
    assert [path.name for path in (cache / "wheels").iterdir() if path.is_dir()] == []


def test_build_wheel__two_at_once_build_once(cache: Path, release: Release, calls: Path) -> None:
    wheels: list[BuiltWheel] = []
    threads = [threading.Thread(target=lambda: wheels.append(built(cache, release))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({wheel.sha256 for wheel in wheels}) == 1
    assert len(wheels) == 2
    assert len(calls.read_text().splitlines()) == 1


def test_build_wheel__what_a_killed_build_left_is_removed(cache: Path, release: Release) -> None:
    left = cache / "wheels" / f".{build_key(PROBED.arguments, release, changed_source=True)}-killed"
    left.mkdir(parents=True)
    built(cache, release)
    assert not left.exists()


def test_build_wheel__shows_the_steps_of_ninja(cache: Path, release: Release) -> None:
    seen: list[tuple[str, float, float | None]] = []
    build_wheel(
        (PROBED,),
        cache=cache,
        release=release,
        prove=proof,
        progress=lambda what, done, total: seen.append((what, done, total)),
    )
    assert ("compiling llama.cpp", 1, 2) in seen
    assert seen[-1] == ("compiling llama.cpp", 1, 1)
