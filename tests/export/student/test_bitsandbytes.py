"""bitsandbytes checkpoints, as the library wrote them and damaged."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from quantized_fixture import (
    FIXTURES,
    copy_checkpoint,
    load_linears,
    read_expected,
    sha256,
    stored,
    stored_zeros,
)

from edgekit.errors import ModelFileError
from export.student import CheckpointStudent, open_student
from export.student.base import StudentTensor
from export.student.bitsandbytes import BitsAndBytesReader, open_reader
from export.student.safetensors_file import StoredTensor

HERE = FIXTURES / "bitsandbytes"
LINEARS, EXPECTED = load_linears(HERE / "linears.safetensors")
CONFIG = Path("config.json")
MODULE = "model.layers.0.mlp.up_proj"
FOUR_BIT = [variant for variant in LINEARS if variant != "int8"]
STATE = "weight.quant_state.bitsandbytes__nf4"


def _reader(variant: str) -> BitsAndBytesReader:
    if variant == "int8":
        return open_reader(CONFIG, {"load_in_8bit": True, "load_in_4bit": False})
    return open_reader(CONFIG, {"load_in_4bit": True, "bnb_4bit_quant_type": variant[:3]})


def _open(variant: str, changes: dict[str, StoredTensor | None] | None = None) -> StudentTensor:
    parts = {**LINEARS[variant], **(changes or {})}
    there = {name: part for name, part in parts.items() if part is not None}
    tensor = _reader(variant).weight(MODULE, EXPECTED[variant].shape, there)
    assert tensor is not None
    return tensor


@pytest.mark.parametrize("variant", FOUR_BIT)
def test_open_bitsandbytes__values_are_the_librarys(variant: str) -> None:
    tensor, expected = _open(variant), EXPECTED[variant]
    assert (tensor.name, tensor.shape) == (f"{MODULE}.weight", expected.shape)
    assert (tensor.storage, tensor.integers) == (variant[:3].upper(), None)
    assert tensor.size_bytes == sum(part.size_bytes for part in LINEARS[variant].values())
    assert np.array_equal(tensor.read(), expected)
    for rows in (slice(1, 4), slice(3, None), slice(None, None, 2), slice(2, 2), slice(-1, None)):
        assert np.array_equal(tensor.read(rows), expected[rows]), rows


def test_open_bitsandbytes__int8_is_given_as_integers() -> None:
    tensor, expected = _open("int8"), EXPECTED["int8"]
    codes, scales = LINEARS["int8"]["weight"].read(), LINEARS["int8"]["SCB"].read()
    assert tensor.storage == "INT8"
    integers = tensor.integers
    assert integers is not None
    layout = integers.layout
    assert (layout.bits, layout.group_columns, layout.symmetric, layout.in_order) == (8, 128, True, True)
    rows = slice(4, 9)
    assert np.array_equal(integers.codes(rows).astype(int) - integers.zeros(rows), codes[rows])
    assert np.array_equal(integers.scales(rows), scales[rows, None] / np.float32(127))
    # The library multiplies by SCB, then by a rounded 1/127: two roundings where here are two others.
    assert np.allclose(tensor.read(), expected, rtol=3e-7, atol=0)
    assert np.array_equal(tensor.read(rows), tensor.read()[rows])


def test_open_bitsandbytes__float_weight_is_left_alone() -> None:
    parts = {"weight": stored("w", np.zeros((2, 4), np.uint16))}
    for variant in ("nf4", "int8"):
        assert _reader(variant).weight("lm_head", (2, 4), parts) is None


def test_read__touches_only_the_rows_asked_for() -> None:
    rows, columns = 1 << 15, 4096
    blocks = rows * columns // 64
    state = {"quant_type": "nf4", "blocksize": 64, "shape": [rows, columns], "dtype": "bfloat16"}
    state |= {"nested_blocksize": 256, "nested_offset": 0.5, "nested_dtype": "float32"}
    parts = {
        "weight": stored_zeros("w", (rows * columns // 2, 1), np.uint8),
        "weight.absmax": stored_zeros("a", (blocks,), np.uint8),
        "weight.quant_map": stored("q", np.ones(16, np.float32)),
        "weight.nested_absmax": stored("n", np.ones(blocks // 256, np.float32)),
        "weight.nested_quant_map": stored("m", np.zeros(256, np.float32)),
        STATE: stored("s", np.frombuffer(json.dumps(state).encode(), np.uint8)),
    }
    tensor = _reader("nf4").weight(MODULE, (rows, columns), parts)
    assert tensor is not None
    tracemalloc.start()
    values = tensor.read(slice(20000, 20004))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (values == 0.5).all()
    assert peak < 4 * values.nbytes


def _state(variant: str = "nf4-nested", **changes: Any) -> StoredTensor:
    state = {**json.loads(LINEARS[variant][STATE].read().tobytes()), **changes}
    return stored(STATE, np.frombuffer(json.dumps(state).encode(), np.uint8))


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"weight": None}, "'weight' is missing"),
        ({"weight.absmax": None}, "'weight.absmax' is missing"),
        ({"weight.quant_map": None}, "'weight.quant_map' is missing"),
        ({"weight.nested_quant_map": None}, "'weight.nested_quant_map' is missing"),
        ({"weight.nested_absmax": None}, "'weight.absmax' is of type U8"),
        ({STATE: None}, "there is none"),
        ({f"{STATE}x": stored("s", np.zeros(1, np.uint8))}, "there has to be one"),
        ({STATE: stored("s", np.frombuffer(b"{\xff", np.uint8))}, "is not JSON"),
        ({STATE: stored("s", np.frombuffer(b"[]", np.uint8))}, "is not a JSON object"),
        ({STATE: _state(shape=[64, 321])}, r"of shape \[64, 321\]; config.json says \[64, 320\]"),
        ({STATE: _state(quant_type="fp4")}, "the type is 'fp4'"),
        ({STATE: _state(blocksize=0)}, "has the blocksize 0"),
        ({STATE: _state(blocksize=128)}, "'weight.nested_absmax' has shape"),
        ({STATE: _state(nested_blocksize=None)}, "has the nested_blocksize None"),
        ({STATE: _state(nested_offset=float("nan"))}, "has the nested_offset nan"),
        ({"weight": stored("w", np.zeros((10239, 1), np.uint8))}, "10239 bytes, expected 10240"),
        ({"weight": stored("w", np.zeros((1280, 1), np.int64))}, "'weight' is of type I64"),
        ({"weight.quant_map": stored("q", np.ones(15, np.float32))}, r"expected \[16\]"),
        ({"weight.nested_absmax": stored("n", np.full(2, np.nan, np.float32))}, "nested_absmax' holds nan"),
        ({"weight.absmaxx": stored("n", np.ones(2, np.float32))}, "'weight.absmaxx' is of no known use"),
    ],
)
def test_open_bitsandbytes__damaged_four_bit_part_is_named(
    changes: dict[str, StoredTensor | None], problem: str
) -> None:
    with pytest.raises(ModelFileError, match=problem) as raised:
        _open("nf4-nested", changes)
    assert str(raised.value).startswith(f"module '{MODULE}': ")


def test_open_bitsandbytes__scale_that_is_not_finite() -> None:
    scales = np.ones(40, np.float32)
    scales[39] = np.inf
    with pytest.raises(ModelFileError, match=r"'weight.absmax' holds inf at index 39"):
        _open("nf4", {"weight.absmax": stored("a", scales)})


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"SCB": None}, "'SCB' is missing"),
        ({"SCB": stored("s", np.ones(19, np.float32))}, r"shape \[19\], expected \[20\]"),
        ({"SCB": stored("s", np.full(20, np.nan, np.float32))}, "'SCB' holds nan"),
        ({"weight": stored("w", np.zeros((20, 128), np.uint8))}, "'weight' is of type U8, expected I8"),
        ({"weight_format": stored("f", np.uint8(1))}, "'weight_format' is 1"),
        ({"CB": stored("c", np.zeros(1, np.int8))}, "'CB' is of no known use"),
    ],
)
def test_open_bitsandbytes__damaged_int8_part_is_named(
    changes: dict[str, StoredTensor | None], problem: str
) -> None:
    with pytest.raises(ModelFileError, match=problem):
        _open("int8", changes)


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({}, "neither load_in_4bit nor load_in_8bit"),
        ({"load_in_4bit": True, "bnb_4bit_quant_type": "int4"}, "'int4'; known are nf4, fp4"),
    ],
)
def test_open_reader__unknown_setting_is_refused(settings: dict[str, Any], problem: str) -> None:
    with pytest.raises(ModelFileError, match=problem) as raised:
        open_reader(CONFIG, settings)
    assert str(raised.value).startswith("config.json: ")


@pytest.mark.parametrize(("name", "quantization"), [("nf4", "NF4"), ("int8", "INT8")])
def test_open_student__checkpoint_saved_by_transformers(
    name: str, quantization: str, tmp_path: Path, tiny: ModuleType
) -> None:
    path = copy_checkpoint(HERE / f"{name}_checkpoint", tmp_path / "Small", tiny)
    student = open_student(path)
    assert isinstance(student, CheckpointStudent)
    tensors = {tensor.name: tensor for tensor in student.tensors()}
    expected = read_expected(HERE / f"{name}_checkpoint_expected.json")
    assert expected.keys() == {key for key, tensor in tensors.items() if tensor.storage == quantization}
    for key, checksum in expected.items():
        integers = tensors[key].integers
        if integers is not None:
            values = (integers.codes().astype(np.int16) - integers.zeros()).astype(np.int8)
        else:
            values = tensors[key].read_float32()
        assert sha256(values) == checksum, key
    assert (student.facts.quantization, student.stored_as) == (quantization, "BF16")
    # llm_int8_skip_modules of the NF4 checkpoint lists "model.layers.1.mlp".
    skipped = tensors["model.layers.1.mlp.down_proj.weight"].storage
    assert skipped == ("BF16" if name == "nf4" else "INT8")
