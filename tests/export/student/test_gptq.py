"""GPTQ modules, as the libraries that write them read them."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from quantized_fixture import FIXTURES, copy_checkpoint, load_linears, read_expected, sha256, stored

from edgekit.errors import ModelFileError
from export.student import CheckpointStudent, open_student
from export.student.gptq import open_reader

HERE = FIXTURES / "gptq_awq"
CONFIG = Path("config.json")
SETTINGS: dict[str, Any] = {"bits": 4, "group_size": 16, "checkpoint_format": "gptq_v2"}
CASES, EXPECTED = load_linears(HERE / "gptq.safetensors")
CASE_SETTINGS: dict[str, dict[str, Any]] = json.loads((HERE / "gptq.json").read_text())
OLD_MODULES = {"k_proj": "self_attn.k_proj", "v_proj": "self_attn.v_proj", "up_proj": "mlp.up_proj"}


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
        "qweight": random.integers(-(2**31), 2**31, (8, 32), dtype=np.int32),
        "qzeros": random.integers(-(2**31), 2**31, (4, 4), dtype=np.int32),
        "scales": random.uniform(0.001, 0.02, (4, 32)).astype(np.float16),
        "g_idx": np.arange(64, dtype=np.int32) // 16,
    }
    arrays.update(changes)
    return {name: values for name, values in arrays.items() if values is not None}


def make_weight(settings: dict[str, Any] | None = None, **changes: Any) -> Any:
    return weight({**SETTINGS, **(settings or {})}, as_parts(make_arrays(**changes)), (32, 64))


@pytest.mark.parametrize("name", CASES)
def test_weight__is_what_the_library_that_packed_it_reads(name: str) -> None:
    tensor, expected = case_weight(name), EXPECTED[name]
    assert (tensor.name, tensor.shape) == ("m.weight", expected.shape)
    assert np.array_equal(tensor.read_float32(), expected)
    assert np.array_equal(tensor.read(slice(5, 27)), expected[5:27])
    assert tensor.read(slice(7, 7)).shape == (0, 64)
    assert tensor.size_bytes == sum(part.size_bytes for part in CASES[name].values())


@pytest.mark.parametrize("name", CASES)
def test_weight__says_how_its_integers_are_laid_out(name: str) -> None:
    tensor, settings = case_weight(name), CASE_SETTINGS[name]
    layout, bits, group = tensor.integers.layout, settings["bits"], settings["group_size"]
    assert tensor.storage == f"INT{bits}" and layout.bits == bits
    assert layout.group_columns == (64 if group == -1 else group)
    assert layout.symmetric == name.endswith(("-sym", "-sym-order"))
    assert layout.in_order == ("order" not in name) == (tensor.integers.groups is None)
    assert layout.scales_fit_f16


@pytest.mark.parametrize("name", CASES)
def test_integers__of_some_rows_are_those_of_all(name: str) -> None:
    matrix = case_weight(name).integers
    codes, scales, zeros = matrix.codes(), matrix.scales(), matrix.zeros()
    rows = codes.shape[0]
    assert (codes.dtype, scales.dtype, zeros.dtype) == (np.uint8, np.float32, np.int16)
    assert codes.flags.c_contiguous and codes.max() < 1 << matrix.layout.bits
    for start, stop in ((0, 1), (3, 11), (17, rows), (rows - 1, rows)):
        assert np.array_equal(matrix.codes(slice(start, stop)), codes[start:stop])
        assert np.array_equal(matrix.scales(slice(start, stop)), scales[start:stop])
        assert np.array_equal(matrix.zeros(slice(start, stop)), zeros[start:stop])
    with pytest.raises(ValueError, match="not with a step of 2"):
        matrix.codes(slice(0, 8, 2))


@pytest.mark.parametrize("name", [name for name in CASES if "4bit" in name])
def test_integers__nibbles_are_the_codes_in_pairs(name: str) -> None:
    matrix = case_weight(name).integers
    nibbles, codes = matrix.nibbles(slice(3, 21)), matrix.codes(slice(3, 21))
    assert nibbles.shape == (18, 32) and nibbles.dtype == np.uint8
    assert np.array_equal(nibbles & 15, codes[:, 0::2])
    assert np.array_equal(nibbles >> 4, codes[:, 1::2])


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_open_gptq__v1_zero_that_borrows_is_read_right(bits: int) -> None:
    per_word, top = 32 // bits, (1 << bits) - 1
    zeros = [0, top, 0, 0, *(value & top for value in range(1, per_word))][:per_word] * bits  # 32 of them
    words = []
    for start in range(0, 32, per_word):
        word = sum(zero << (bits * index) for index, zero in enumerate(zeros[start : start + per_word]))
        words.append((word - sum(1 << (bits * index) for index in range(per_word))) % 2**32)
    arrays = make_arrays(
        qweight=np.zeros((64 * bits // 32, 32), np.int32),
        qzeros=np.array([words] * 4, np.uint32).view(np.int32),
    )
    settings = {**SETTINGS, "bits": bits, "checkpoint_format": "gptq"}
    matrix = weight(settings, as_parts(arrays), (32, 64)).integers
    assert matrix.zeros()[:, 0].tolist() == zeros
    assert matrix.zeros(slice(9, 12))[:, 3].tolist() == zeros[9:12]


def test_open_gptq__no_format_is_v1() -> None:
    seven = np.full((4, 4), 0x77777777, np.int32)
    settings = {key: value for key, value in SETTINGS.items() if key != "checkpoint_format"}
    assert weight(settings, as_parts(make_arrays(qzeros=seven)), (32, 64)).integers.layout.symmetric
    assert not make_weight(qzeros=seven).integers.layout.symmetric


@pytest.mark.parametrize("bits", [3, 4])
@pytest.mark.parametrize("name", OLD_MODULES)
def test_open_gptq__zeros_that_earlier_gptqmodels_shifted_otherwise_are_read_right(
    name: str, bits: int
) -> None:
    linears, wide = load_linears(HERE / f"gptqmodel-6.0.3-{bits}bit.safetensors")
    settings = json.loads((HERE / f"gptqmodel-6.0.3-{bits}bit.json").read_text())
    assert settings["meta"]["quantizer"] == ["gptqmodel:6.0.3"]
    expected = wide[name]
    tensor = weight(settings, linears[name], expected.shape, f"model.layers.0.{OLD_MODULES[name]}")
    assert np.array_equal(tensor.read(), expected)
    assert np.array_equal(tensor.read(slice(9, 23)), expected[9:23])


def test_open_gptq__three_bit_zeros_shifted_into_four_bit_words_are_refused() -> None:
    settings = {"bits": 3, "checkpoint_format": "gptq", "dynamic": {"m": {"bits": 4}}}
    for version, known in (("6.0.3", True), ("7.0.0", False), ("7.3.1", False), ("7.3.2", True)):
        of_version = {**SETTINGS, **settings, "meta": {"quantizer": [f"gptqmodel:{version}"]}}
        if known:
            open_reader(CONFIG, of_version)
        else:
            with pytest.raises(ModelFileError, match="shifted the zeros of 4 bits as if they had 3"):
                open_reader(CONFIG, of_version)


def test_weight__order_is_taken_from_g_idx_and_not_from_desc_act() -> None:
    shuffled = np.random.default_rng(3).permutation(np.arange(64, dtype=np.int32) // 16)
    assert make_weight({"desc_act": True}).integers.layout.in_order
    tensor = make_weight({"desc_act": False}, g_idx=shuffled)
    assert not tensor.integers.layout.in_order
    assert tensor.integers.groups.dtype == np.int32 and np.array_equal(tensor.integers.groups, shuffled)


@pytest.mark.parametrize("g_idx", [None, np.zeros(64, np.int32)])
def test_weight__g_idx_that_was_never_filled_in_is_in_order(g_idx: Any) -> None:
    assert np.array_equal(make_weight(g_idx=g_idx).read(), make_weight().read())
    with pytest.raises(ModelFileError, match=r"desc_act is on, but g_idx.* is (missing|all zero)"):
        make_weight({"desc_act": True}, g_idx=g_idx)
    channel = {"group_size": -1, "desc_act": True}
    changes = {"scales": np.ones((1, 32), np.float16), "qzeros": np.zeros((1, 4), np.int32)}
    assert make_weight(channel, g_idx=g_idx, **changes).integers.layout.in_order


def test_weight__last_group_may_be_smaller() -> None:
    changes = {"qzeros": np.zeros((3, 4), np.int32), "scales": np.ones((3, 32), np.float16)}
    tensor = make_weight({"group_size": 24}, g_idx=np.arange(64, dtype=np.int32) // 24, **changes)
    assert tensor.integers.layout.in_order and tensor.integers.scales().shape == (32, 3)
    assert np.array_equal(tensor.read(), tensor.integers.codes())


@pytest.mark.parametrize(
    ("scale", "fits"),
    [
        (np.float16(6e-5), False),
        (np.float16(6.2e-5), True),
        (np.float32(0.1), False),
        (np.float32(0.5), True),
    ],
)
def test_weight__scales_that_float16_cannot_hold_are_told(scale: Any, fits: bool) -> None:
    tensor = make_weight(scales=np.full((4, 32), scale))
    assert tensor.integers.layout.scales_fit_f16 == fits
    assert (tensor.integers.scales() == np.float32(scale)).all()


def test_weight__bf16_scales_are_read() -> None:
    bits = np.full((4, 32), 0x3C80, np.uint16)  # 2^-6
    bits[1] = 0x3000  # 2^-31
    tensor = make_weight(scales=bits)
    assert tensor.integers.scales()[0].tolist() == [2**-6, 2**-31, 2**-6, 2**-6]
    assert not tensor.integers.layout.scales_fit_f16


def test_weight__bias_of_a_module_that_has_none_must_be_zero() -> None:
    assert make_weight(bias=np.zeros(32, np.float16)).shape == (32, 64)
    with pytest.raises(ModelFileError, match="'m' has a bias, which is not part of the model"):
        make_weight(bias=np.full(32, 0.5, np.float16))


def test_weight__unpacked_module_is_left_alone() -> None:
    parts = as_parts({"weight": np.zeros((32, 64), np.float16)})
    assert weight(SETTINGS, parts, (32, 64)) is None


def test_weight__first_dynamic_pattern_that_matches_holds() -> None:
    dynamic = {
        r"-:model\.layers\.0\.mlp": {},
        r"+:.*\.(up|gate)_proj": {"bits": 8, "group_size": 32},
        r".*\.up_proj": {"bits": 2},
    }
    reader = open_reader(CONFIG, {**SETTINGS, "dynamic": dynamic})
    eight = make_arrays(
        qweight=np.ones((16, 32), np.int32),
        qzeros=np.ones((2, 8), np.int32),
        scales=np.ones((2, 32), np.float16),
        g_idx=None,
    )
    parts = as_parts(eight)
    tensor = reader.weight("model.layers.1.mlp.up_proj", (32, 64), parts)
    assert tensor is not None and tensor.storage == "INT8"
    tensor = reader.weight("model.layers.1.mlp.down_proj", (32, 64), as_parts(make_arrays()))
    assert tensor is not None and tensor.storage == "INT4"
    with pytest.raises(ModelFileError, match=r"packed, but quantization_config\.dynamic has it in float"):
        reader.weight("model.layers.0.mlp.up_proj", (32, 64), parts)


BAD_SETTINGS: dict[str, tuple[dict[str, Any], str]] = {
    "five bits": ({"bits": 5}, "bits is 5; known are 2, 3, 4, 8"),
    "no bits": ({"bits": None}, "bits is None"),
    "bits as text": ({"bits": "4"}, "bits is '4'"),
    "bits as truth": ({"bits": True}, "bits is True"),
    "no group size": ({"group_size": None}, "group_size is None"),
    "group size of 0": ({"group_size": 0}, "group_size is 0"),
    "marlin": ({"checkpoint_format": "marlin"}, "the format is 'marlin'; known are 'gptq' and 'gptq_v2'"),
    "bitblas": ({"checkpoint_format": "bitblas"}, "the format is 'bitblas'"),
    "planar": ({"checkpoint_format": "GPTQ_P"}, "the format is 'gptq_p'"),
    "old marlin": ({"is_marlin_format": True}, "is_marlin_format is True, which is not read"),
    "two formats": ({"format": "gptq"}, "unclear: checkpoint_format is 'gptq_v2', format is 'gptq'"),
    "format no text": ({"checkpoint_format": 2}, r"the format is \{'checkpoint_format': 2\}"),
    "another method": ({"method": "qqq"}, "method is 'qqq' beside quant_method 'gptq'"),
    "small words": ({"pack_dtype": "int16"}, "pack_dtype is 'int16'; only int32 is known"),
    "rotated": ({"rotation": "hadamard"}, "rotation is 'hadamard', which is not read"),
    "dynamic no object": ({"dynamic": ["a"]}, "dynamic is .* not an object"),
    "dynamic value": ({"dynamic": {"a": 4}}, r"dynamic\['a'\] is not an object"),
    "dynamic pattern": ({"dynamic": {"+:(": {}}}, r"pattern '\+:\(' in dynamic is not valid"),
    "dynamic bits": ({"dynamic": {"a": {"bits": 6}}}, "bits is 6"),
}


@pytest.mark.parametrize("name", BAD_SETTINGS)
def test_open_gptq__unknown_settings_are_refused(name: str) -> None:
    changes, message = BAD_SETTINGS[name]
    with pytest.raises(ModelFileError, match=message) as caught:
        open_reader(CONFIG, {**SETTINGS, **changes})
    assert "config.json" in str(caught.value)
    assert caught.value.hint is not None or "dynamic" in message


def _scales(value: float) -> NDArray[Any]:
    scales = np.ones((4, 32), np.float16)
    scales[2, 3] = value
    return scales


def _order(value: int) -> NDArray[Any]:
    order = np.arange(64, dtype=np.int32) // 16
    order[40] = value
    return order


BAD_PARTS: dict[str, tuple[dict[str, Any], str]] = {
    "no qweight": ({"qweight": None}, "'m': its part 'qweight' is missing"),
    "no qzeros": ({"qzeros": None}, "'m': its part 'qzeros' is missing"),
    "no scales": ({"scales": None}, "'m': its part 'scales' is missing"),
    "qweight of floats": ({"qweight": np.zeros((8, 32), np.float32)}, "'m.qweight' is of type F32"),
    "qweight cut": ({"qweight": np.zeros((7, 32), np.int32)}, r"'m.qweight' has shape \[7, 32\]; 4 bits"),
    "qweight not flat": ({"qweight": np.zeros((8, 32, 1), np.int32)}, r"has shape \[8, 32, 1\]"),
    "qzeros cut": ({"qzeros": np.zeros((4, 3), np.int32)}, r"'m.qzeros' has shape \[4, 3\]"),
    "scales of integers": ({"scales": np.ones((4, 32), np.int32)}, "'m.scales' is of type I32"),
    "other groups": (
        {"scales": np.ones((2, 32), np.float16)},
        r"'m.scales' has shape \[2, 32\]; 4 bits, groups of 16 make it \[4, 32\]",
    ),
    "scale NaN": ({"scales": _scales(np.nan)}, "scale of row 3, group 2, is not a finite number"),
    "scale infinite": ({"scales": _scales(np.inf)}, "scale of row 3, group 2, is not a finite number"),
    "order too short": ({"g_idx": np.zeros(63, np.int32)}, r"'m.g_idx' has shape \[63\]"),
    "order of another type": ({"g_idx": np.zeros(64, np.int64)}, "'m.g_idx' is of type I64"),
    "order negative": ({"g_idx": _order(-1)}, "g_idx of column 40 is -1; there are groups 0 to 3"),
    "order out of range": ({"g_idx": _order(4)}, "g_idx of column 40 is 4; there are groups 0 to 3"),
    "order uneven": ({"g_idx": _order(0)}, "g_idx gives group 0 17 columns instead of 16"),
    "part unknown": ({"perm": np.zeros(64, np.int32)}, "the part 'perm' is not known"),
    "weight as well": ({"weight": np.zeros((32, 64), np.float16)}, "the part 'weight' is not known"),
}


@pytest.mark.parametrize("name", BAD_PARTS)
def test_weight__bad_parts_are_refused_with_a_reason(name: str) -> None:
    changes, message = BAD_PARTS[name]
    with pytest.raises(ModelFileError, match=message):
        make_weight(**changes)


def test_weight__packed_embedding_is_refused() -> None:
    with pytest.raises(ModelFileError, match="the embedding is packed"):
        weight(SETTINGS, as_parts(make_arrays()), (32, 64), "model.embed_tokens")


def test_codes__of_a_large_matrix_take_a_fraction_of_a_second() -> None:
    random = np.random.default_rng(1)
    arrays = {
        "qweight": random.integers(-(2**31), 2**31, (1120, 1536), dtype=np.int32),
        "qzeros": random.integers(-(2**31), 2**31, (70, 192), dtype=np.int32),
        "scales": random.uniform(0.001, 0.02, (70, 1536)).astype(np.float16),
    }
    tensor = weight({**SETTINGS, "group_size": 128}, as_parts(arrays), (1536, 8960))
    started_s = time.process_time()
    assert tensor.integers.codes().shape == (1536, 8960)
    assert (
        time.process_time() - started_s < 2
    )  # 0.03 s on an idle machine: the bound is for loops over values


@pytest.fixture
def checkpoint(tiny: ModuleType, tmp_path: Path) -> Path:
    """What GPTQModel 7.7.0 made of the small Qwen2: asymmetric, in activation order, with `dynamic`."""
    return copy_checkpoint(HERE / "gptqmodel-7.7.0", tmp_path / "Small-GPTQ", tiny)


def test_open_student__gptq_checkpoint(checkpoint: Path) -> None:
    student = open_student(checkpoint)
    assert isinstance(student, CheckpointStudent)
    assert (student.facts.quantization, student.facts.tied_embeddings) == ("GPTQ", False)
    assert student.facts.weight_bytes < (checkpoint / "model.safetensors").stat().st_size
    tensors = {tensor.name: tensor for tensor in student.tensors()}
    expected = read_expected(HERE / "gptqmodel-7.7.0" / "expected.json")
    assert {name for name, tensor in tensors.items() if tensor.integers} == set(expected)
    for name, checksum in expected.items():
        assert sha256(tensors[name].read_float32()) == checksum, name
    storages = {name.partition("layers.")[2]: tensor.storage for name, tensor in tensors.items()}
    assert storages["1.self_attn.v_proj.weight"] == "INT2"
    assert storages["1.mlp.up_proj.weight"] == "INT8"
    assert storages["0.mlp.down_proj.weight"] == "INT4"
    assert storages["1.mlp.down_proj.weight"] in ("BF16", "F16")
    assert tensors["lm_head.weight"].storage == "INT8"


def test_open_student__gptq_weights_are_near_those_that_were_quantized(
    checkpoint: Path, tiny: ModuleType
) -> None:
    config = tiny.make_config("R1-Tiny-Qwen2", vocab_size=272, tie_word_embeddings=False)
    sources = tiny.make_tensors(config)
    limits = {"INT2": 0.45, "INT4": 0.09, "INT8": 0.006}
    for tensor in open_student(checkpoint).tensors():
        if tensor.integers is not None:
            source = (sources[tensor.name].astype(np.uint32) << 16).view(np.float32)
            error = np.linalg.norm(tensor.read_float32() - source) / np.linalg.norm(source)
            assert error < limits[tensor.storage], tensor.name


Change = Callable[[Path], Any]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-64]), "cut off"),
        (
            lambda path: path.write_bytes(path.read_bytes().replace(b"q_proj.qzeros", b"q_proj.qzerox")),
            "'qzer",
        ),
    ],
)
def test_open_student__damaged_gptq_checkpoint_says_where(
    change: Change, message: str, checkpoint: Path
) -> None:
    change(checkpoint / "model.safetensors")
    with pytest.raises(ModelFileError, match=message) as caught:
        open_student(checkpoint)
    assert str(checkpoint) in str(caught.value)
