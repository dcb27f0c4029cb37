"""A student's own integers in MatMulNBits: nothing is quantized a second time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from edgekit.errors import ModelFileError
from export.runtimes.onnx_session import OnnxDecoder
from export.student import CheckpointStudent, open_student
from export.student.base import StudentTensor
from export.student.integers import IntegerLayout, IntegerMatrix
from export.targets.onnx import write_onnx
from export.targets.onnx_weights import pack, plan_blocks

TOKENS = [(7 * index * index + 11 * index + 3) % 272 for index in range(30)]


@dataclass(frozen=True)
class Kind:
    """What integers a matrix is made of. `columns` None: one scale a row."""

    bits: int = 4
    columns: int | None = 32
    symmetric: bool = True
    in_order: bool = True
    highest_zero: int | None = None


KINDS = {
    "symmetric": Kind(),
    "asymmetric": Kind(symmetric=False),
    "zero beyond the codes": Kind(symmetric=False, highest_zero=16),
    "act-order": Kind(in_order=False),
    "asymmetric act-order": Kind(in_order=False, symmetric=False),
    "a scale a row": Kind(columns=None),
    "a scale a row, asymmetric": Kind(columns=None, symmetric=False),
    "groups of 48": Kind(columns=48, symmetric=False),
    "2 bits": Kind(bits=2),
    "3 bits, asymmetric act-order": Kind(bits=3, symmetric=False, in_order=False),
    "8 bits": Kind(bits=8),
    "8 bits, asymmetric act-order": Kind(bits=8, symmetric=False, in_order=False),
}


def _integers(shape: tuple[int, int], kind: Kind, seed: int, order_seed: int) -> IntegerMatrix:
    random = np.random.default_rng(seed)
    rows, columns = shape
    group = kind.columns or columns
    count = -(-columns // group)
    codes = random.integers(0, 1 << kind.bits, shape, dtype=np.uint8)
    scales = (random.random((rows, count), dtype=np.float32) + 0.5) / np.float32(8 << kind.bits)
    middle = 1 << (kind.bits - 1)
    zeros = np.full((rows, count), middle, np.int16)
    if not kind.symmetric:
        zeros = random.integers(0, 1 << kind.bits, (rows, count)).astype(np.int16)
    if kind.highest_zero is not None:
        zeros[0, 0] = kind.highest_zero
    groups = None
    if not kind.in_order:
        groups = np.random.default_rng(order_seed).permutation(np.arange(columns) // group).astype(np.int32)
    layout = IntegerLayout(kind.bits, group, kind.symmetric, kind.in_order, scales_fit_f16=False)
    return IntegerMatrix(
        shape, layout, groups, lambda rows: codes[rows], lambda rows: scales[rows], lambda rows: zeros[rows]
    )


def _tensor(name: str, matrix: IntegerMatrix) -> StudentTensor:
    return StudentTensor(name, matrix.shape, f"INT{matrix.layout.bits}", 1, matrix.dequantized, matrix)


def _packed_student(path: Path, kinds: Mapping[str, Kind], *, same_order: bool) -> CheckpointStudent:
    """A checkpoint with integers for matrices; those of one input share an order, or none do."""
    student = open_student(path)
    assert isinstance(student, CheckpointStudent)
    tensors = {}
    for index, tensor in enumerate(student.tensors()):
        kind = next((kind for part, kind in kinds.items() if part in tensor.name), None)
        if kind is None or not tensor.name.endswith("_proj.weight"):
            tensors[tensor.name] = tensor
            continue
        order_seed = tensor.shape[1] if same_order else index
        tensors[tensor.name] = _tensor(tensor.name, _integers(tensor.shape, kind, index, order_seed))
    return CheckpointStudent(path, student.config, tensors, quantization="GPTQ")


def _logits(student: CheckpointStudent, directory: Path, precision: str) -> np.ndarray:
    directory.mkdir()
    write_onnx(student, directory, precision=precision, accuracy_level=1, head_bits=8, context_tokens=64)
    return OnnxDecoder(directory).logits(TOKENS)


@pytest.mark.parametrize("same_order", [True, False])
@pytest.mark.parametrize("name", KINDS)
def test_write_onnx__own_integers_compute_what_they_stand_for(
    name: str, same_order: bool, small: Path, tmp_path: Path
) -> None:
    student = _packed_student(small, {"_proj": KINDS[name]}, same_order=same_order)
    floats = _logits(student, tmp_path / "fp32", "fp32")
    packed = _logits(student, tmp_path / "int4", "int4")
    # What is left is the head, a float in this student, in 8 bits.
    assert np.abs(packed - floats).max() < 0.02
    requantized = {t.name: replace(t, integers=None) for t in student.tensors()}
    twice = _logits(
        CheckpointStudent(small, student.config, requantized, quantization=None), tmp_path / "twice", "int4"
    )
    assert np.abs(twice - floats).max() > np.abs(packed - floats).max()


def test_write_onnx__matrices_of_different_kinds_stand_side_by_side(small: Path, tmp_path: Path) -> None:
    kinds = {"q_proj": Kind(), "k_proj": Kind(bits=8), "v_proj": Kind(symmetric=False), "up_proj": Kind()}
    student = _packed_student(small, kinds, same_order=False)
    dequantized = {t.name: replace(t, integers=None) for t in student.tensors()}
    floats = CheckpointStudent(small, student.config, dequantized, quantization=None)
    packed = _logits(student, tmp_path / "int4", "int4")
    # The rest is float and is quantized: near, not equal.
    assert np.abs(packed - _logits(floats, tmp_path / "fp32", "fp32")).max() < 0.6


@pytest.mark.parametrize("name", KINDS)
def test_pack__keeps_every_integer_and_scale(name: str) -> None:
    kind = KINDS[name]
    matrix = _integers((12, 96), kind, 1, 2)
    tensor = _tensor("w", matrix)
    blocks = plan_blocks(tensor, bits=4, block_size=128)
    assert blocks.exact
    packed, scales, zeros = pack(tensor, blocks, slice(3, 9))
    codes, zero = packed.reshape(6, -1).astype(np.int16), np.int16(1 << (blocks.bits - 1))
    if blocks.bits == 4:
        codes = np.stack([codes & 15, codes >> 4], axis=-1).reshape(6, -1)
    points = np.full(scales.shape, zero)
    if zeros is not None:
        wide = zeros.astype(np.int16)
        points = np.stack([wide & 15, wide >> 4], -1).reshape(6, -1) if blocks.bits == 4 else wide
        points = points[:, : scales.shape[1]]
    steps = codes.reshape(6, -1, blocks.block) - points[:, :, None]
    values = (steps.astype(np.float32) * scales[:, :, None]).reshape(6, -1)[:, :96]
    expected = matrix.dequantized(slice(3, 9))
    np.testing.assert_array_equal(values, expected if blocks.order is None else expected[:, blocks.order])


def test_plan_blocks__zeros_are_left_out_where_all_are_the_middle() -> None:
    for bits in (2, 3, 4, 8):
        blocks = plan_blocks(_tensor("w", _integers((4, 64), Kind(bits=bits), 1, 2)), bits=4, block_size=128)
        assert not blocks.has_zeros
        assert blocks.bits == (8 if bits == 8 else 4)


def test_plan_blocks__what_the_format_cannot_hold_is_quantized_again() -> None:
    groups_of_20 = _tensor("w", _integers((4, 80), Kind(columns=20), 1, 2))
    assert not plan_blocks(groups_of_20, bits=4, block_size=32).exact
    zero_of_256 = _tensor("w", _integers((4, 64), Kind(bits=8, symmetric=False, highest_zero=256), 1, 2))
    assert not plan_blocks(zero_of_256, bits=4, block_size=32).exact


@pytest.mark.parametrize(("columns", "block"), [(1536, 128), (576, 64), (896, 128), (96, 32), (80, 16)])
def test_plan_blocks__floats_get_blocks_that_divide_the_columns(columns: int, block: int) -> None:
    tensor = StudentTensor("w", (4, columns), "F32", 1, lambda rows: np.zeros((4, columns), np.float32)[rows])
    assert plan_blocks(tensor, bits=4, block_size=128).block == block


def test_pack__a_scale_that_is_nan_is_refused() -> None:
    matrix = _integers((4, 64), Kind(), 1, 2)
    scales = matrix.scales().copy()
    scales[2, 1] = np.nan
    bad = _tensor("model.w", replace(matrix, _scales=lambda rows: scales[rows]))
    with pytest.raises(ModelFileError, match=r"'model\.w' has a scale that is NaN"):
        pack(bad, plan_blocks(bad, bits=4, block_size=32), slice(None))
