from __future__ import annotations

import platform
import subprocess
from pathlib import Path

import pytest

from edgekit.device.isa import probe_isa
from edgekit.errors import ToolchainError
from export.toolchain.attention import ATTENTION_FILES, add_attention, wants_attention

CHECK = Path(__file__).with_name("attention_check.cpp")
HEADERS = Path(add_attention.__code__.co_filename).parent
# Compiler options, and the CPU features that a program compiled with them executes.
INSTRUCTION_SETS: dict[str, tuple[tuple[str, ...], set[str]]] = (
    {
        "AVX2": (("-mavx2", "-mfma", "-mf16c"), {"avx2", "fma", "f16c"}),
        "AVX-512": (
            ("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma", "-mf16c"),
            {"avx512f", "avx512bw", "avx512dq", "avx512vl", "fma", "f16c"},
        ),
    }
    if platform.machine() == "x86_64"
    else {"NEON": ((), set())}
)
EXECUTED = [
    name for name, (_, features) in INSTRUCTION_SETS.items() if probe_isa().executes.issuperset(features)
]


def compiled(directory: Path, options: tuple[str, ...], headers: Path = HEADERS) -> Path:
    program = directory / "attention_check"
    command = ["c++", "-std=c++17", "-O2", *options, f"-I{headers}", str(CHECK), "-o", str(program)]
    subprocess.run(command, check=True, capture_output=True)
    return program


@pytest.mark.parametrize("name", EXECUTED)
def test_attention__is_as_defined_and_has_the_same_bits_in_any_company(name: str, tmp_path: Path) -> None:
    program = compiled(tmp_path, INSTRUCTION_SETS[name][0])
    child = subprocess.run([program], capture_output=True, text=True, check=False)
    assert child.returncode == 0, child.stdout
    assert len(child.stdout.splitlines()) == 18


@pytest.mark.parametrize(
    ("old", "new"),
    [
        # Scaling by a power of two that is no whole one rounds, and where a block ends shows.
        ("std::max(row.maximum, std::nearbyint(found))", "std::max(row.maximum, found)"),
        # A constant of exp2 that is off by 0.2 %.
        ("0x1.ebfbdcp-3f", "0x1.edp-3f"),
    ],
)
def test_attention_check__finds_a_kernel_that_is_wrong(old: str, new: str, tmp_path: Path) -> None:
    texts = {name: (HEADERS / name).read_text(encoding="utf-8") for name in ATTENTION_FILES}
    assert sum(text.count(old) for text in texts.values()) == 1
    for name, text in texts.items():
        (tmp_path / name).write_text(text.replace(old, new), encoding="utf-8")
    program = compiled(tmp_path, INSTRUCTION_SETS[EXECUTED[0]][0], tmp_path)
    child = subprocess.run([program], capture_output=True, text=True, check=False)
    assert child.returncode == 1
    assert "FAILED" in child.stdout


def source(directory: Path, text: str) -> Path:
    path = directory / "ggml" / "src" / "ggml-cpu" / "ops.cpp"
    path.parent.mkdir(parents=True)
    path.write_text(text, encoding="utf-8")
    return path


def test_add_attention__puts_the_kernel_before_llama_cpps_own(ops_text: str, tmp_path: Path) -> None:
    ops = source(tmp_path, ops_text)
    add_attention(tmp_path)
    text = ops.read_text(encoding="utf-8")
    own = text.index("if (!edgekit_flash_attn_ext(params, dst)) {")
    assert text.index('#include "edgekit_attention_ggml.h"') < own
    assert own < text.index("    ggml_compute_forward_flash_attn_ext_f16(params, dst);")
    assert {path.name for path in ops.parent.iterdir()} == {"ops.cpp", *ATTENTION_FILES}


@pytest.mark.parametrize("times", [0, 2])
def test_add_attention__another_source_is_refused_and_left_as_it_was(
    ops_text: str, tmp_path: Path, times: int
) -> None:
    ops = source(tmp_path, ops_text * times)
    with pytest.raises(ToolchainError, match=f"has {times} times, and not once") as caught:
        add_attention(tmp_path)
    assert "another release" in str(caught.value)
    assert ops.read_text(encoding="utf-8") == ops_text * times
    assert [path.name for path in ops.parent.iterdir()] == ["ops.cpp"]


def test_add_attention__a_source_without_ops_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ToolchainError, match=r"ops\.cpp: No such file"):
        add_attention(tmp_path)


def test_wants_attention__a_cmake_option_leaves_it_out() -> None:
    assert wants_attention(("-DGGML_AVX2=ON",))
    assert not wants_attention(("-DGGML_AVX2=ON", "-DGGML_EDGEKIT_ATTENTION=OFF"))
