"""AWQ modules, as the libraries that write them read them."""

from __future__ import annotations

import json
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from quantized_fixture import FIXTURES, load_linears, stored

from edgekit.errors import ModelFileError
from export.student import open_student
from export.student.awq import open_reader

HERE = FIXTURES / "gptq_awq"
CONFIG = Path("config.json")
SETTINGS: dict[str, Any] = {"bits": 4, "group_size": 16, "zero_point": True, "version": "gemm"}
CASES, EXPECTED = load_linears(HERE / "awq.safetensors")
CASE_SETTINGS: dict[str, dict[str, Any]] = json.loads((HERE / "awq.json").read_text())
COLUMNS_OF_SLOTS = (0, 2, 4, 6, 1, 3, 5, 7)


def weight(settings: dict[str, Any], parts: Any, shape: tuple[int, ...], module: str = "m") -> Any:
    return open_reader(CONFIG, settings).weight(module, shape, parts)


def case_weight(name: str) -> Any:
    return weight(CASE_SETTINGS[name], CASES[name], EXPECTED[name].shape)


def as_parts(arrays: dict[str, NDArray[Any]]) -> Any:
    return {name: stored(f"m.{name}", values) for name, values in arrays.items()}


def make_arrays(**changes: Any) -> dict[str, NDArray[Any]]:
    """Parts of a module [32, 64] of SETTINGS; None takes one away."""
    random = np.random.default_rng(7)
    arrays: dict[str, Any] = {
        "qweight": random.integers(-(2**31), 2**31, (64, 4), dtype=np.int32),
        "qzeros": random.integers(-(2**31), 2**31, (4, 4), dtype=np.int32),
        "scales": random.uniform(0.001, 0.02, (4, 32)).astype(np.float16),
    }
    arrays.update(changes)
    return {name: values for name, values in arrays.items() if values is not None}


def make_weight(settings: dict[str, Any] | None = None, **changes: Any) -> Any:
    return weight({**SETTINGS, **(settings or {})}, as_parts(make_arrays(**changes)), (32, 64))


@pytest.mark.parametrize("name", CASES)
def test_weight__is_what_the_library_that_packed_it_reads(name: str) -> None:
    tensor, expected = case_weight(name), EXPECTED[name]
    assert (tensor.name, tensor.shape, tensor.storage) == ("m.weight", expected.shape, "INT4")
    assert np.array_equal(tensor.read_float32(), expected)
    assert np.array_equal(tensor.read(slice(5, 27)), expected[5:27])
    assert tensor.read(slice(7, 7)).shape == (0, 64)
    assert tensor.size_bytes == sum(part.size_bytes for part in CASES[name].values())


@pytest.mark.parametrize("name", CASES)
def test_integers__are_laid_out_as_said_and_read_by_rows(name: str) -> None:
    matrix = case_weight(name).integers
    layout = matrix.layout
    assert (layout.bits, layout.group_columns) == (4, CASE_SETTINGS[name]["group_size"])
    assert layout.symmetric == name.endswith("-sym")
    assert layout.in_order and matrix.groups is None and layout.scales_fit_f16
    codes, scales, zeros = matrix.codes(), matrix.scales(), matrix.zeros()
    assert (codes.dtype, scales.dtype, zeros.dtype) == (np.uint8, np.float32, np.int16)
    for start, stop in ((0, 1), (3, 11), (17, 32), (31, 32)):
        assert np.array_equal(matrix.codes(slice(start, stop)), codes[start:stop])
        assert np.array_equal(matrix.scales(slice(start, stop)), scales[start:stop])
        assert np.array_equal(matrix.zeros(slice(start, stop)), zeros[start:stop])
    nibbles = matrix.nibbles(slice(3, 21))
    assert np.array_equal(nibbles & 15, codes[3:21, 0::2])
    assert np.array_equal(nibbles >> 4, codes[3:21, 1::2])


def test_codes__of_one_word_by_hand() -> None:
    column_of_code = {column: slot + 1 for slot, column in enumerate(COLUMNS_OF_SLOTS)}
    words = np.zeros((64, 4), np.int32)
    words[5, 2] = np.uint32(0x87654321).view(np.int32)
    codes = make_weight(qweight=words).integers.codes()
    assert codes[16:24, 5].tolist() == [column_of_code[column] for column in range(8)]
    assert np.count_nonzero(codes) == 8


def test_weight__without_zero_point_needs_no_zeros() -> None:
    tensor = make_weight({"zero_point": False}, qzeros=None)
    assert tensor.integers.layout.symmetric and (tensor.integers.zeros(slice(2, 9)) == 8).all()
    assert tensor.integers.zeros(slice(2, 9)).shape == (7, 4)
    # Zeros that are stored are used, whatever the config says of them.
    assert not make_weight({"zero_point": False}).integers.layout.symmetric
    with pytest.raises(ModelFileError, match="its part 'qzeros' is missing"):
        make_weight(qzeros=None)


def test_weight__one_group_a_row() -> None:
    tensor = make_weight(
        {"group_size": -1}, qzeros=np.full((1, 4), -0x77777778, np.int32), scales=np.ones((1, 32), np.float16)
    )
    assert tensor.integers.layout.group_columns == 64 and tensor.integers.layout.symmetric
    assert np.array_equal(tensor.read(), tensor.integers.codes() - np.float32(8))


def test_weight__module_not_converted_is_left_alone() -> None:
    parts = as_parts({"weight": np.zeros((32, 64), np.float16)})
    assert weight({**SETTINGS, "modules_to_not_convert": ["m"]}, parts, (32, 64)) is None


def test_weight__dynamic_settings_of_gptqmodel() -> None:
    settings = {**SETTINGS, "dynamic": {"-:float": {}, r"+:wide$": {"group_size": 32}}}
    parts = as_parts(make_arrays(qzeros=np.zeros((2, 4), np.int32), scales=np.ones((2, 32), np.float16)))
    assert weight(settings, parts, (32, 64), "wide").integers.layout.group_columns == 32
    with pytest.raises(ModelFileError, match=r"dynamic has it in float"):
        weight(settings, parts, (32, 64), "float")


@pytest.mark.parametrize(
    ("names", "group_size"),
    [({"q_group_size": 16, "w_bit": 4}, 16), ({"group_size": 16, "bits": 4, "format": "GEMM"}, 16)],
)
def test_open_awq__both_ways_to_name_the_settings(names: dict[str, Any], group_size: int) -> None:
    tensor = weight({"quant_method": "awq", **names}, as_parts(make_arrays()), (32, 64))
    assert tensor.integers.layout.group_columns == group_size


BAD_SETTINGS: dict[str, tuple[dict[str, Any], str]] = {
    "gemv": ({"version": "GEMV"}, "the version is 'gemv'; only 'gemm' is known"),
    "gemv_fast": ({"version": "gemv_fast"}, "the version is 'gemv_fast'"),
    "exllama": ({"version": "exllama"}, "the version is 'exllama'"),
    "llm-awq": ({"backend": "llm-awq"}, "the version is 'llm-awq'"),
    "two versions": ({"format": "gemv"}, "unclear: version is 'gemm', format is 'gemv'"),
    "eight bits": ({"bits": 8}, "bits is 8; AWQ is read with 4"),
    "bits no number": ({"bits": 4.0}, "bits is 4.0"),
    "no group size": ({"group_size": None}, "group_size is None"),
    "small words": ({"pack_dtype": "int16"}, "pack_dtype is 'int16'"),
    "rotated": ({"rotation": "random"}, "rotation is 'random'"),
    "dynamic bits": ({"dynamic": {"a": {"bits": 8}}}, "bits is 8"),
}


@pytest.mark.parametrize("name", BAD_SETTINGS)
def test_open_awq__unknown_settings_are_refused(name: str) -> None:
    changes, message = BAD_SETTINGS[name]
    with pytest.raises(ModelFileError, match=message) as caught:
        open_reader(CONFIG, {**SETTINGS, **changes})
    assert "config.json" in str(caught.value) and "AutoAWQ" in str(caught.value.hint)


NAN = np.ones((4, 32), np.float16)
NAN[1, 30] = np.nan
BAD_PARTS: dict[str, tuple[dict[str, Any], str]] = {
    "no qweight": ({"qweight": None}, "'m': its part 'qweight' is missing"),
    "no scales": ({"scales": None}, "'m': its part 'scales' is missing"),
    "packed along K": ({"qweight": np.zeros((8, 32), np.int32)}, r"'m.qweight' has shape \[8, 32\]; 4 bits"),
    "qweight of bytes": ({"qweight": np.zeros((64, 4), np.uint8)}, "'m.qweight' is of type U8"),
    "qzeros cut": ({"qzeros": np.zeros((3, 4), np.int32)}, r"'m.qzeros' has shape \[3, 4\]; groups of 16"),
    "other groups": ({"scales": np.ones((2, 32), np.float16)}, r"'m.scales' has shape \[2, 32\]"),
    "scale NaN": ({"scales": NAN}, "scale of row 30, group 1, is not a finite number"),
    "an order": ({"g_idx": np.zeros(64, np.int32)}, "the part 'g_idx' is not known"),
    "bias": ({"bias": np.ones(32, np.float16)}, "'m' has a bias, which is not part of the model"),
}


@pytest.mark.parametrize("name", BAD_PARTS)
def test_weight__bad_parts_are_refused_with_a_reason(name: str) -> None:
    changes, message = BAD_PARTS[name]
    with pytest.raises(ModelFileError, match=message):
        make_weight(**changes)


def test_weight__rows_that_do_not_fill_words_are_refused() -> None:
    with pytest.raises(ModelFileError, match="AWQ packs rows by 8; there are 30"):
        weight(SETTINGS, as_parts(make_arrays()), (30, 64))


def test_codes__of_a_large_matrix_take_a_fraction_of_a_second() -> None:
    random = np.random.default_rng(1)
    arrays = {
        "qweight": random.integers(-(2**31), 2**31, (8960, 192), dtype=np.int32),
        "qzeros": random.integers(-(2**31), 2**31, (70, 192), dtype=np.int32),
        "scales": random.uniform(0.001, 0.02, (70, 1536)).astype(np.float16),
    }
    tensor = weight({**SETTINGS, "group_size": 128}, as_parts(arrays), (1536, 8960))
    started_s = time.process_time()
    assert tensor.integers.codes().shape == (1536, 8960)
    assert (
        time.process_time() - started_s < 2
    )  # 0.04 s on an idle machine: the bound is for loops over values


def test_open_student__awq_checkpoint(tiny: ModuleType, tmp_path: Path) -> None:
    family, changes = "R1-Tiny-Llama-1M", {"tie_word_embeddings": False}
    small = {"vocab_size": 272, "bos_token_id": 263, "eos_token_id": 260, **changes}
    tensors = tiny.make_tensors(tiny.make_config(family, **small))
    random = np.random.default_rng(5)
    codes = {}
    for name in [name for name in tensors if name.endswith("proj.weight")]:
        rows, columns = tensors.pop(name).shape
        codes[name] = random.integers(0, 16, (rows, columns))
        module = name.removesuffix("weight")
        tensors[f"{module}qweight"] = pack(codes[name].T)
        tensors[f"{module}qzeros"] = pack(np.full((columns // 32, rows), 5))
        tensors[f"{module}scales"] = np.full((columns // 32, rows), 0.25, np.float16)
    config = {"quantization_config": {**SETTINGS, "quant_method": "awq", "group_size": 32}}
    path = tiny.write_small(tmp_path / "Small-AWQ", family, **changes, **config)
    tiny.save_tensors(path, tensors, 1)
    student = open_student(path)
    assert student.facts.quantization == "AWQ"
    packed = {tensor.name: tensor for tensor in student.tensors() if tensor.storage == "INT4"}
    assert packed.keys() == codes.keys()
    for name, tensor in packed.items():
        assert np.array_equal(tensor.read_float32(), (codes[name] - 5) * np.float32(0.25)), name


def pack(values: NDArray[Any]) -> NDArray[np.int32]:
    """Eight columns to a word, slot by slot."""
    words = np.zeros((values.shape[0], values.shape[1] // 8), np.uint32)
    for slot, column in enumerate(COLUMNS_OF_SLOTS):
        words |= values[:, column::8].astype(np.uint32) << np.uint32(4 * slot)
    return words.view(np.int32)
