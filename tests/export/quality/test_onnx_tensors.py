"""Reading an ONNX export's matrices back, and seeing damage in them."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import pytest
from quantized_fixture import FIXTURES, copy_checkpoint

from export.quality.onnx_tensors import onnx_pairs
from export.quality.tensors import prove_exact
from export.student import DecoderStudent, GgufStudent, open_student
from export.targets.onnx import write_onnx


@pytest.fixture
def exported(tiny: ModuleType, tmp_path: Path) -> tuple[DecoderStudent, Path]:
    """A GPTQ student of many widths with activation order, and its graph."""
    checkpoint = copy_checkpoint(FIXTURES / "gptq_awq/gptqmodel-7.7.0", tmp_path / "Student", tiny)
    student = open_student(checkpoint)
    assert not isinstance(student, GgufStudent)
    (tmp_path / "out").mkdir()
    write_onnx(student, tmp_path / "out", precision="int4", context_tokens=64)
    return student, tmp_path / "out" / "model.onnx"


def _integers(student: DecoderStudent) -> set[str]:
    return {tensor.name for tensor in student.tensors() if tensor.integers is not None}


def test_onnx_pairs__integers_are_the_students(exported: tuple[DecoderStudent, Path]) -> None:
    student, model = exported
    pairs = onnx_pairs(student, model)
    matrices = {tensor.name for tensor in student.tensors() if len(tensor.shape) == 2}
    assert {pair.student.name for pair in pairs} == matrices
    found = prove_exact(pairs, names=_integers(student))
    assert found.exact == found.tensors == len(_integers(student)) > 10


def test_onnx_pairs__one_changed_scale_is_seen_and_named(exported: tuple[DecoderStudent, Path]) -> None:
    student, model = exported
    scales = next(
        tensor
        for tensor in onnx.load(model, load_external_data=False).graph.initializer
        if tensor.name.endswith(".scales") and "down_proj" in tensor.name
    )
    where = {entry.key: entry.value for entry in scales.external_data}
    data = np.memmap(model.parent / where["location"], np.float32, "r+", int(where["offset"]), (4,))
    data[2] *= 1.25
    data.flush()
    found = prove_exact(onnx_pairs(student, model), names=_integers(student))
    assert found.exact == found.tensors - 1
    assert found.worst_tensor is not None and "down_proj" in found.worst_tensor
