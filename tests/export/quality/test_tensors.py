"""Tensors beside each other: exact, rounded, missing."""

from __future__ import annotations

from collections.abc import Callable

import gguf
import numpy as np
import pytest

from edgekit.errors import ModelFileError
from export.quality.tensors import TensorPair, prove_exact, worst_tensors
from export.student.base import StudentTensor
from export.student.integers import IntegerLayout, IntegerMatrix
from export.targets.gguf_packing import pack_rows

ROWS, COLUMNS, GROUP = 6, 128, 64


def float_tensor(name: str, values: np.ndarray, storage: str = "F32") -> StudentTensor:
    return StudentTensor(name, values.shape, storage, values.nbytes, lambda rows: values[rows])


def integer_tensor(*, symmetric: bool, in_order: bool = True) -> StudentTensor:
    generator = np.random.Generator(np.random.PCG64(7))
    codes = generator.integers(0, 16, (ROWS, COLUMNS), dtype=np.uint8)
    scales = generator.uniform(0.001, 0.05, (ROWS, 2)).astype(np.float16).astype(np.float32)
    zeros = np.full((ROWS, 2), 8, np.int16) if symmetric else generator.integers(0, 16, (ROWS, 2), np.int16)
    groups = None if in_order else generator.permutation(np.arange(COLUMNS, dtype=np.int32) // GROUP)
    layout = IntegerLayout(4, GROUP, symmetric, in_order, scales_fit_f16=True)
    integers = IntegerMatrix(
        (ROWS, COLUMNS),
        layout,
        groups,
        lambda rows: codes[rows],
        lambda rows: scales[rows],
        lambda rows: zeros[rows],
    )
    return StudentTensor("w.weight", (ROWS, COLUMNS), "INT4", 1, integers.dequantized, integers)


def packed(tensor: StudentTensor, kind: str) -> StudentTensor:
    """What a GGUF would hold, read by the gguf library."""
    assert tensor.integers is not None
    raw = pack_rows(tensor.integers, kind, slice(None))
    values = gguf.dequantize(raw, gguf.GGMLQuantizationType[kind])
    return float_tensor(tensor.name, values, kind)


def changed(tensor: StudentTensor, change: Callable[[np.ndarray], None]) -> StudentTensor:
    values = tensor.read_float32().copy()
    change(values)
    return float_tensor(tensor.name, values, tensor.storage)


def test_prove_exact__a_symmetric_repack_is_the_very_same() -> None:
    student = integer_tensor(symmetric=True)
    found = prove_exact([TensorPair(student, packed(student, "Q4_0"))])
    assert (found.tensors, found.exact, found.max_error_steps, found.worst_tensor) == (1, 1, 0, None)


def test_prove_exact__q4_1_rounds_the_offset_by_less_than_a_hundredth_of_a_step() -> None:
    student = integer_tensor(symmetric=False)
    found = prove_exact([TensorPair(student, packed(student, "Q4_1"))])
    assert found.exact == 0 and found.worst_tensor == "w.weight"
    assert 0 < found.max_error_steps < 0.01


@pytest.mark.parametrize("in_order", [True, False])
def test_prove_exact__one_wrong_code_is_one_step(in_order: bool) -> None:
    student = integer_tensor(symmetric=True, in_order=in_order)
    assert student.integers is not None
    groups = student.integers.groups
    group = 1 if groups is None else int(groups[100])
    step = float(student.integers.scales()[4, group])

    def one_step(values: np.ndarray) -> None:
        values[4, 100] += step

    found = prove_exact([TensorPair(student, changed(student, one_step))])
    assert found.exact == 0
    assert found.max_error_steps == pytest.approx(1, rel=1e-3)


def test_prove_exact__floats_that_were_copied_are_the_same_or_not() -> None:
    values = np.linspace(-2, 2, 64, dtype=np.float32).reshape(4, 16)
    student = float_tensor("a.weight", values)
    assert prove_exact([TensorPair(student, float_tensor("a", values.copy()))]).exact == 1

    def spoil(values: np.ndarray) -> None:
        values[0, 0] = np.nan

    assert prove_exact([TensorPair(student, changed(student, spoil))]).exact == 0


def test_prove_exact__compares_what_it_is_told_to() -> None:
    values = np.ones((2, 4), np.float32)
    same = TensorPair(float_tensor("a.weight", values), float_tensor("a", values))
    other = TensorPair(float_tensor("b.weight", values), float_tensor("b", 2 * values))
    assert prove_exact([same, other]).exact == 1
    assert prove_exact([same, other], names={"a.weight"}).tensors == 1


def test_prove_exact__a_missing_or_misshapen_tensor_is_an_error() -> None:
    student = float_tensor("a.weight", np.ones((2, 4), np.float32))
    with pytest.raises(ModelFileError, match=r"'a\.weight' is missing"):
        prove_exact([TensorPair(student, None)])
    with pytest.raises(ModelFileError, match=r"is \[4, 2\] in the artifact and \[2, 4\] in the student"):
        prove_exact([TensorPair(student, float_tensor("a", np.ones((4, 2), np.float32)))])


def test_worst_tensors__error_weighed_by_the_importance_of_columns() -> None:
    own = np.ones((2, 4), np.float32)
    other = own.copy()
    other[:, 3] = 2
    pair = TensorPair(float_tensor("model.layers.0.mlp.up_proj.weight", own), float_tensor("x", other))
    importance = {"blk.0.ffn_up.weight": np.array([1, 1, 1, 0], np.float32)}
    (found,) = worst_tensors([pair], importance=importance)
    assert found.relative_error == pytest.approx(0.5)
    assert found.weighted_error == 0
    assert found.gain == pytest.approx(1.25)
