"""FP8 checkpoints as DeepSeek publishes them, whole and damaged."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from quantized_fixture import FIXTURES, load_linears, stored, stored_zeros
from safetensors import TensorSpec, serialize_file

from edgekit.errors import ModelFileError
from export.student import CheckpointStudent, open_student
from export.student.base import StudentTensor
from export.student.fp8 import open_reader
from export.student.safetensors_file import StoredTensor, open_safetensors

LINEARS, EXPECTED = load_linears(FIXTURES / "compressed_tensors/deepseek_fp8.safetensors")
CONFIG = Path("config.json")
MODULE = "model.layers.0.mlp.up_proj"
BLOCKS = {"weight_block_size": [32, 48]}


def _open(variant: str, **changes: StoredTensor | None) -> StudentTensor:
    parts = {name: part for name, part in {**LINEARS[variant], **changes}.items() if part is not None}
    reader = open_reader(CONFIG, BLOCKS if variant == "block" else {"weight_block_size": None})
    tensor = reader.weight(MODULE, EXPECTED[variant].shape, parts)
    assert tensor is not None
    return tensor


@pytest.mark.parametrize("variant", EXPECTED)
def test_open_fp8__values_are_torchs(variant: str) -> None:
    tensor, expected = _open(variant), EXPECTED[variant]
    assert (tensor.name, tensor.storage, tensor.integers) == (f"{MODULE}.weight", "FP8", None)
    assert np.array_equal(tensor.read(), expected)
    # A block of 32 rows ends within the second and the third of these.
    for rows in (slice(0, 32), slice(30, 34), slice(31, None), slice(None, None, 7), slice(5, 5)):
        assert np.array_equal(tensor.read(rows), expected[rows]), rows


def test_open_fp8__one_scale_may_have_any_shape_and_either_name() -> None:
    scale = LINEARS["tensor"]["weight_scale"].read()
    for shape in ((), (1,), (1, 1)):
        for name in ("weight_scale", "weight_scale_inv"):
            changes = {"weight_scale": None, name: stored("s", scale.reshape(shape))}
            assert np.array_equal(_open("tensor", **changes).read(), EXPECTED["tensor"])


def test_open_fp8__float_weight_is_left_alone() -> None:
    reader = open_reader(CONFIG, {**BLOCKS, "modules_to_not_convert": ["lm_head"]})
    assert reader.weight("lm_head", (2, 4), {"weight": stored("w", np.zeros((2, 4), np.uint16))}) is None


NAN = np.full((2, 2), np.nan, np.float32)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"weight_scale_inv": None}, "'weight_scale_inv' is missing"),
        ({"weight": None}, "'weight' is missing"),
        ({"weight": np.zeros((50, 70), np.uint16)}, "'weight' is of type BF16, expected F8_E4M3"),
        ({"weight_scale_inv": np.ones((2, 3), np.float32)}, r"shape \[2, 3\], expected \[2, 2\]"),
        ({"weight_scale_inv": np.ones((2, 2), np.int32)}, "'weight_scale_inv' is of type I32"),
        ({"weight_scale_inv": NAN}, "'weight_scale_inv' holds nan"),
        ({"weight_scale_2": np.ones(1, np.float32)}, "'weight_scale_2' is of no known use"),
    ],
)
def test_open_fp8__damaged_part_is_named(changes: dict[str, Any], problem: str) -> None:
    parts = {name: None if values is None else stored(name, values) for name, values in changes.items()}
    with pytest.raises(ModelFileError, match=problem) as raised:
        _open("block", **parts)
    assert str(raised.value).startswith(f"module '{MODULE}': ")


@pytest.mark.parametrize("size", [[128], [128, 0], "128x128", [128.0, 128]])
def test_open_reader__block_size_that_makes_no_sense(size: Any) -> None:
    with pytest.raises(ModelFileError, match=r"config\.json: weight_block_size"):
        open_reader(CONFIG, {"weight_block_size": size})


def test_read__touches_only_the_rows_asked_for() -> None:
    rows, columns = 1 << 15, 4096
    parts = {
        "weight": stored_zeros("w", (rows, columns), np.uint8, "F8_E4M3"),
        "weight_scale_inv": stored("s", np.ones((rows // 128, columns // 128), np.float32)),
    }
    tensor = open_reader(CONFIG, {"weight_block_size": [128, 128]}).weight(MODULE, (rows, columns), parts)
    assert tensor is not None
    tracemalloc.start()
    tensor.read(slice(20000, 20004))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # These rows, and a row number for each row of the matrix.
    assert peak < 4 * 4 * columns * 4 + 4 * 8 * rows


def _write_checkpoint(directory: Path, tiny: ModuleType) -> dict[str, np.ndarray]:
    """The small checkpoint with its linears in FP8 by blocks of 32 x 48; returns what they stand for."""
    path = tiny.write_small(directory)
    config = json.loads((path / "config.json").read_text())
    table = open_safetensors(FIXTURES / "compressed_tensors/float8.safetensors").tensors["F8_E4M3"].read()
    random = np.random.default_rng(3)
    tensors: dict[str, tuple[str, np.ndarray]] = {}
    expected = {}
    for name, values in tiny.make_tensors(config).items():
        if not name.endswith("_proj.weight"):
            tensors[name] = ("bfloat16", values)
            continue
        bits = random.integers(0, 0x7F, values.shape, dtype=np.uint8)
        bits |= random.integers(0, 2, values.shape, dtype=np.uint8) << 7
        down, across = -(-values.shape[0] // 32), -(-values.shape[1] // 48)
        scales = random.random((down, across), dtype=np.float32) / 1000
        tensors[name] = ("float8_e4m3fn", bits)
        tensors[f"{name}_scale_inv"] = ("float32", scales)
        spread = np.kron(scales, np.ones((32, 48), np.float32))[: values.shape[0], : values.shape[1]]
        expected[name] = table[bits] * spread
    tensors["model.layers.0.self_attn.q_proj.input_scale"] = ("float32", np.ones(1, np.float32))
    tensors["model.layers.0.self_attn.k_scale"] = ("float32", np.ones(1, np.float32))
    specs = {
        name: TensorSpec(dtype=dtype, shape=values.shape, data_ptr=values.ctypes.data, data_len=values.nbytes)
        for name, (dtype, values) in tensors.items()
    }
    serialize_file(specs, path / "model.safetensors", {"format": "pt"})
    settings = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", **BLOCKS}
    (path / "config.json").write_text(json.dumps({**config, "quantization_config": settings}))
    return expected


def test_open_student__fp8_checkpoint(tmp_path: Path, tiny: ModuleType) -> None:
    expected = _write_checkpoint(tmp_path / "Small-FP8", tiny)
    student = open_student(tmp_path / "Small-FP8")
    assert isinstance(student, CheckpointStudent)
    tensors = {tensor.name: tensor for tensor in student.tensors()}
    assert len(expected) == 14
    for name, tensor in tensors.items():
        if name in expected:
            assert tensor.storage == "FP8"
            assert np.array_equal(tensor.read_float32(), expected[name]), name
        else:
            assert tensor.storage == "BF16"
    assert (student.facts.quantization, student.stored_as) == ("FP8", "BF16")
    stored_bytes = sum(
        t.size_bytes for t in open_safetensors(student.path / "model.safetensors").tensors.values()
    )
    assert student.facts.weight_bytes == stored_bytes - 2 * 4  # the two scales of activations


def test_open_student__fp8_checkpoint_in_truth_of_float(small: Path) -> None:
    config = json.loads((small / "config.json").read_text())
    (small / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": "fp8"}}))
    assert {tensor.storage for tensor in open_student(small).tensors()} == {"BF16"}
