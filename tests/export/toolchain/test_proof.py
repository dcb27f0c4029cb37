from __future__ import annotations

import subprocess
import zipfile
from pathlib import Path

import pytest

from edgekit.errors import ToolchainError
from edgekit.profiles import load_profile
from export.toolchain.elf import needed_libraries
from export.toolchain.flags import choose_flag_sets
from export.toolchain.proof import prove_wheel
from export.toolchain.wheel import BuiltWheel, build_wheel, cmake_include


@pytest.fixture(scope="session")
def built() -> BuiltWheel:
    """The wheel that `make setup` built and installed, from the user's cache."""
    return build_wheel(choose_flag_sets(load_profile("host")))


def changed(built: BuiltWheel, directory: Path, changes: dict[str, bytes]) -> Path:
    """A copy of the wheel with other content in some files."""
    path = directory / built.path.name
    with zipfile.ZipFile(built.path) as source, zipfile.ZipFile(path, "w") as target:
        for name in source.namelist():
            target.writestr(name, changes.get(name) or source.read(name))
    return path


def library(directory: Path, code: str, *options: str) -> bytes:
    path = directory / "library.so"
    command = ["cc", "-shared", "-fPIC", "-x", "c", "-", "-o", str(path), *options]
    subprocess.run(command, input=code.encode(), check=True)
    return path.read_bytes()


@pytest.mark.timeout(1500)
def test_prove_wheel__the_build_of_this_machine_runs_and_needs_no_openmp(built: BuiltWheel) -> None:
    proof = prove_wheel(built.path)
    assert proof.least_cosine > 0.999
    assert proof.batch_difference < 5e-5  # llama.cpp's own attention: 8e-4
    assert proof.system_info == built.system_info
    assert "libc.so.6" in proof.libraries
    assert not any(name.startswith(("libgomp", "libcurl", "libssl")) for name in proof.libraries)
    assert ("AMX_INT8 = 1" in proof.system_info) == ("-DGGML_AMX_INT8=ON" in built.arguments)


def test_prove_wheel__a_library_that_dies_is_named_with_its_signal(built: BuiltWheel, tmp_path: Path) -> None:
    dies = library(tmp_path, "void *ggml_backend_cpu_reg(void) { __builtin_trap(); }")
    wheel = changed(built, tmp_path, {"llama_cpp/lib/libggml-cpu.so.0": dies})
    with pytest.raises(ToolchainError, match=r"running a small model ended with SIG(ILL|TRAP)"):
        prove_wheel(wheel)


def test_prove_wheel__a_library_that_needs_openmp_is_refused(built: BuiltWheel, tmp_path: Path) -> None:
    code = "int omp_get_max_threads(void); int f(void) { return omp_get_max_threads(); }"
    needs = library(tmp_path, code, "-fopenmp")
    wheel = changed(built, tmp_path, {"llama_cpp/lib/libggml-cpu.so.0": needs})
    with pytest.raises(ToolchainError, match=r"needs libgomp\.so\.1, which minimal systems lack"):
        prove_wheel(wheel)


def test_needed_libraries__agrees_with_readelf(built: BuiltWheel, tmp_path: Path) -> None:
    with zipfile.ZipFile(built.path) as archive:
        (path,) = (
            Path(archive.extract(name, tmp_path))
            for name in archive.namelist()
            if name.endswith("libllama.so")
        )
    listed = subprocess.run(["readelf", "-d", path], check=True, capture_output=True, text=True).stdout
    expected = [line.split("[")[1].rstrip("]") for line in listed.splitlines() if "(NEEDED)" in line]
    assert list(needed_libraries(path)) == expected


def test_needed_libraries__refuses_what_is_no_elf_file(tmp_path: Path) -> None:
    path = tmp_path / "text"
    path.write_text("hello")
    with pytest.raises(ToolchainError, match="not a 64-bit little-endian ELF file"):
        needed_libraries(path)
    path.write_bytes(b"\x7fELF\x02\x01" + b"\xff" * 60)
    with pytest.raises(ToolchainError, match="damaged ELF file"):
        needed_libraries(path)


AMX_CODE = """
#include <immintrin.h>
#include <stdint.h>
struct config { uint8_t palette, start, reserved[14]; uint16_t columns[16]; uint8_t rows[16]; };
void configure(void) {
    struct config c = {0};
    c.palette = 1;
    for (int i = 0; i < 8; i++) { c.rows[i] = 16; c.columns[i] = 64; }
    _tile_loadconfig(&c);
}
"""


@pytest.mark.skipif(
    subprocess.run(["c++", "-mamx-tile", "-x", "c++", "-E", "/dev/null"], capture_output=True).returncode
    != 0,
    reason="this compiler does not know AMX",
)
def test_amx_tile_config__all_of_the_configuration_reaches_the_instruction(tmp_path: Path) -> None:
    header = Path(cmake_include().split("=", 1)[1]).with_name("amx_tile_config.h")
    source = tmp_path / "amx.cpp"
    source.write_text(AMX_CODE)

    def stores(*options: str) -> int:
        command = ["c++", "-O3", "-mamx-tile", "-S", "-o", "-", *options, str(source)]
        assembly = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        assert "ldtilecfg" in assembly
        return sum("mov" in line and "(%rsp)" in line for line in assembly.splitlines())

    # 64 bytes are written, at most 16 at a time, before LDTILECFG reads them.
    assert stores("-include", str(header)) >= 4
