"""The forecast of an ONNX model's size, against the file that the writer lays out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from export.plan.artifact import Material
from export.plan.tensors import plan_tensors, tensor_facts
from export.student import CheckpointStudent, DecoderStudent, GgufStudent, as_checkpoint, open_student
from export.student.base import StudentTensor
from export.student.integers import IntegerLayout, IntegerMatrix
from export.targets.gguf import write_gguf
from export.targets.onnx_data import WeightFile
from export.targets.onnx_graph import build_graph
from export.targets.onnx_matrices import GraphStyle

CONTEXT = 16
LAYOUTS = {
    "4 bits, groups of 128": IntegerLayout(4, 128, True, True, True),
    "4 bits, groups of 128, zeros": IntegerLayout(4, 128, False, True, True),
    "4 bits, groups of 32, zeros": IntegerLayout(4, 32, False, True, True),
    "3 bits, groups of 48": IntegerLayout(3, 48, True, True, True),
    "8 bits, groups of 64": IntegerLayout(8, 64, False, True, True),
    "8 bits, one scale a row": IntegerLayout(8, 1 << 20, True, True, True),
    "groups of 8, which no block is": IntegerLayout(4, 8, True, True, True),
}


@pytest.fixture(scope="module")
def wide(tiny: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> CheckpointStudent:
    """Wide enough that the alignment of the tensors in the file is no matter."""
    path = tmp_path_factory.mktemp("wide") / "R1-Tiny-Llama-1M"
    sizes = {"hidden_size": 384, "intermediate_size": 768, "tie_word_embeddings": False}
    student = open_student(tiny.write_small(path, "R1-Tiny-Llama-1M", **sizes))
    assert isinstance(student, CheckpointStudent)
    return student


def _packed(tensor: StudentTensor, layout: IntegerLayout) -> StudentTensor:
    if not tensor.name.endswith("_proj.weight"):
        return tensor
    rows, columns = tensor.shape
    layout = replace(layout, group_columns=min(layout.group_columns, columns))
    groups = -(-columns // layout.group_columns)

    def zeros(part: slice) -> np.ndarray:
        return np.full((len(range(rows)[part]), groups), 1, np.int16)

    matrix = IntegerMatrix((rows, columns), layout, None, tensor.read, tensor.read, zeros)
    return replace(tensor, storage=f"INT{layout.bits}", integers=matrix)


def _file_bytes(student: DecoderStudent, material: Material) -> int:
    """Of the weights alone, less the rotary tables."""
    style = GraphStyle(
        element="float32",
        quantized=True,
        block_size=128,
        matrix_bits=8 if material.conversion("INT4") == "repack" else 4,
        head_bits=8,
        accuracy_level=4,
        fused_bias=True,
    )
    weights = WeightFile("model.onnx.data")
    build_graph(student, style, context_tokens=CONTEXT, weights=weights)
    return weights.size_bytes - 4 * CONTEXT * student.config.head_length


@pytest.mark.parametrize("kind", ["floats", *LAYOUTS])
def test_onnx_facts__bound_what_is_written(kind: str, wide: CheckpointStudent) -> None:
    student = wide
    if kind != "floats":
        tensors = {tensor.name: _packed(tensor, LAYOUTS[kind]) for tensor in wide.tensors()}
        student = CheckpointStudent(wide.path, wide.config, tensors, quantization="GPTQ")
    material = Material(student.facts, "onnx", tensor_facts(student.tensors()))
    written, planned = _file_bytes(student, material), material.in_quantization("INT4")
    assert 0.85 * planned.weight_bytes < written < 1.03 * planned.weight_bytes  # tensors begin on whole pages
    assert planned.bytes_per_token < planned.weight_bytes


@pytest.mark.parametrize("quantization", ["Q4_0", "Q8_0"])
def test_onnx_facts__of_a_gguf_whose_integers_stay(
    quantization: str, wide: CheckpointStudent, tmp_path: Path
) -> None:
    path = tmp_path / "model.gguf"
    write_gguf(wide, path, plan_tensors(tensor_facts(wide.tensors()), wide.facts, quantization), quantization)
    student = open_student(path)
    assert isinstance(student, GgufStudent)
    material = Material(student.facts, "onnx")
    assert material.conversion("INT4") == "repack"
    assert material.notes("INT4") == (f"the integers of {quantization} are kept",)
    assert material.conversion("F32") == "convert"
    written, planned = _file_bytes(as_checkpoint(student), material), material.in_quantization("INT4")
    assert 0.85 * planned.weight_bytes < written < 1.03 * planned.weight_bytes
