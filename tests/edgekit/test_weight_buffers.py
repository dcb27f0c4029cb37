from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from edgekit.gguf_header import model_facts, read_gguf_header
from edgekit.weight_buffers import copy_bytes, estimate_weights, held_weights, isa_of_build
from export.plan.quantization_mix import QUANTIZATIONS, tensor_types

MIB = 1024 * 1024
AMX = frozenset({"avx2", "avx512f", "avx512_vnni", "amx_int8"})
AVX512 = frozenset({"avx2", "avx512f", "avx512_vnni"})
PI5 = frozenset({"asimd", "asimddp", "asimdhp", "fphp"})

LOAD = """
import ctypes, sys
import llama_cpp

@llama_cpp.llama_log_callback
def keep(level, text, data):
    sys.stdout.write(text.decode(errors="replace"))

llama_cpp.llama_log_set(keep, ctypes.c_void_p(0))
llama_cpp.llama_backend_init()
llama_cpp.llama_model_load_from_file(sys.argv[1].encode(), llama_cpp.llama_model_default_params())
sys.stdout.write("INFO CPU :" + llama_cpp.llama_print_system_info().decode().partition("CPU :")[2] + "\\n")
"""


def test_held_weights__copies_are_as_large_as_llama_cpp_logs(student: Path) -> None:
    # In a child: llama.cpp's log callback belongs to the whole process.
    ran = subprocess.run(
        [sys.executable, "-c", LOAD, str(student)], capture_output=True, text=True, check=True
    )
    logged = re.findall(r"(\w+) model buffer size =\s+([0-9.]+) MiB", ran.stdout)
    copies = sum(float(size) for kind, size in logged if kind in ("AMX", "CPU_REPACK"))
    isa = isa_of_build(ran.stdout.rpartition("INFO ")[2])

    held = held_weights(read_gguf_header(student).tensors, isa)

    assert logged
    assert held.copied_bytes / MIB == pytest.approx(copies, abs=0.01)


def test_held_weights__of_a_build_with_amx_and_of_one_without(student: Path) -> None:
    # Logged by llama.cpp (llama-cpp-python 0.3.36) for SmolLM2-135M Q4_1: 95.34 MiB of AMX buffer; none.
    tensors = read_gguf_header(student).tensors

    with_amx, without = held_weights(tensors, AMX), held_weights(tensors, AVX512)

    assert with_amx.copied_bytes / MIB == pytest.approx(95.34, abs=0.01)
    assert without.copied_bytes == 0
    assert without.total_bytes == sum(tensor.size_bytes for tensor in tensors)


@pytest.mark.parametrize("isa", [AMX, AVX512, PI5, frozenset()])
def test_estimate_weights__comes_near_what_the_tensors_say(student: Path, isa: frozenset[str]) -> None:
    header = read_gguf_header(student)

    estimated = estimate_weights(model_facts(header), isa).total_bytes

    assert estimated == pytest.approx(held_weights(header.tensors, isa).total_bytes, rel=0.01)


@pytest.mark.parametrize(
    ("type_name", "isa", "expected"),
    # 256 rows of 2048 columns: sizes in the file by the type's block, in AMX's layout by get_row_size.
    [
        ("Q8_0", AMX, 256 * 64 * 38),
        ("Q8_0", AVX512, None),
        ("Q8_0", PI5, 256 * 64 * 34),
        ("Q4_0", AMX, 256 * 64 * 18),
        ("Q4_0", AVX512, 256 * 64 * 18),
        ("Q4_1", AVX512, None),
        ("Q4_1", PI5, None),
        ("Q4_K", AMX, 256 * 8 * 148),
        ("Q4_K", PI5, 256 * 8 * 144),
        ("Q6_K", AMX, 256 * 8 * 210),
        ("Q6_K", AVX512, None),
        ("Q6_K", PI5, 256 * 8 * 210),
        ("Q2_K", AVX512, 256 * 8 * 84),
        ("F16", AMX, 256 * 2048 * 2),
        ("BF16", AMX, None),
    ],
)
def test_copy_bytes__by_type_and_extension(type_name: str, isa: frozenset[str], expected: int | None) -> None:
    blocks = {"Q8_0": (32, 34), "Q4_0": (32, 18), "Q4_1": (32, 20), "Q4_K": (256, 144), "Q6_K": (256, 210)}
    length, size = {**blocks, "Q2_K": (256, 84), "F16": (1, 2), "BF16": (1, 2)}[type_name]

    assert copy_bytes(type_name, (2048, 256), 256 * 2048 // length * size, isa) == expected


def test_copy_bytes__rows_that_do_not_fill_an_interleaved_block_stay() -> None:
    assert copy_bytes("Q4_0", (64, 7), 7 * 36, AVX512) is None
    assert copy_bytes("F32", (64,), 256, AMX) is None


def test_isa_of_build__are_the_extensions_that_decide() -> None:
    x86 = "CPU : AVX2 = 1 | AVX512 = 1 | AVX512_VNNI = 1 | AMX_INT8 = 1 | REPACK = 1 | "
    arm = "CPU : NEON = 1 | ARM_FMA = 1 | DOTPROD = 1 | REPACK = 1 | "

    assert isa_of_build(x86) == AMX
    assert isa_of_build(x86.replace("AMX_INT8 = 1 | ", "")) == AVX512
    assert isa_of_build(arm) == {"asimd", "asimddp"}
    assert isa_of_build(arm.replace("REPACK = 1 | ", "")) == frozenset()


@pytest.mark.parametrize("quantization", [name for name in QUANTIZATIONS if name != "F32"])
def test_estimate_weights__knows_the_type_of_an_embedding_that_is_the_output_too(
    student: Path, quantization: str
) -> None:
    from edgekit.weight_buffers import _head_type

    facts = model_facts(read_gguf_header(student))
    for width in (576, 2048):
        shaped = facts.model_copy(update={"embedding_length": width, "tied_embeddings": True})
        types = {name: kind for name, _, kind in tensor_types(shaped, quantization)}
        assert _head_type(quantization, width) == types["token_embd.weight"]
