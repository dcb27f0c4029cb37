"""compressed-tensors checkpoints, as the library wrote them and damaged."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Callable
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
from export.student.compressed_tensors import CompressedTensorsReader, open_reader
from export.student.safetensors_file import StoredTensor

HERE = FIXTURES / "compressed_tensors"
CONFIG = Path("config.json")
MODULE = "model.layers.0.mlp.up_proj"


def _variants() -> dict[str, tuple[dict[str, Any], dict[str, StoredTensor], np.ndarray]]:
    variants = {}
    for name in ("packed", "unpacked", "loose"):
        linears, expected = load_linears(HERE / f"{name}.safetensors")
        settings = json.loads((HERE / f"{name}.json").read_text(encoding="utf-8"))
        for variant, parts in linears.items():
            key = f"loose-{variant}" if name == "loose" else variant
            variants[key] = (settings[variant], parts, expected[variant])
    return variants


VARIANTS = _variants()


def _open(variant: str, **changes: StoredTensor | None) -> StudentTensor:
    """The weight of a variant with parts replaced or, by None, removed."""
    settings, parts, expected = VARIANTS[variant]
    changed = {name: part for name, part in {**parts, **changes}.items() if part is not None}
    tensor = open_reader(CONFIG, settings).weight(MODULE, expected.shape, changed)
    assert tensor is not None
    return tensor


@pytest.mark.parametrize("variant", VARIANTS)
def test_open_compressed_tensors__values_are_the_librarys(variant: str) -> None:
    expected = VARIANTS[variant][2]
    tensor = _open(variant)
    assert (tensor.name, tensor.shape) == (f"{MODULE}.weight", expected.shape)
    assert np.array_equal(tensor.read(), expected)
    assert tensor.size_bytes == sum(part.size_bytes for part in VARIANTS[variant][1].values())
    for rows in (slice(3, 17), slice(16, None), slice(None, None, 3), slice(11, 11), slice(-2, None)):
        assert np.array_equal(tensor.read(rows), expected[rows]), rows


@pytest.mark.parametrize("variant", VARIANTS)
def test_open_compressed_tensors__integers_are_given_where_there_are_integers(variant: str) -> None:
    settings, parts, expected = VARIANTS[variant]
    tensor = _open(variant)
    weights = settings["config_groups"]["group_0"]["weights"]
    if weights["type"] == "float":
        assert (tensor.storage, tensor.integers) == ("FP8", None)
        return
    integers = tensor.integers
    assert integers is not None
    layout, scales = integers.layout, integers.scales()
    assert tensor.storage == f"INT{weights['num_bits']}"
    assert (layout.bits, layout.symmetric) == (weights["num_bits"], weights["symmetric"])
    assert layout.in_order == (weights.get("actorder") != "group")
    assert layout.scales_fit_f16
    groups = np.arange(expected.shape[1]) // layout.group_columns
    if integers.groups is not None:
        groups = parts["weight_g_idx"].read()
        assert np.array_equal(integers.groups, groups)
    steps = integers.codes().astype(int) - integers.zeros()[:, groups]
    assert integers.codes().max() < 1 << layout.bits
    assert np.array_equal((steps * scales[:, groups]).astype(np.float32), expected)


@pytest.mark.parametrize("variant", [name for name in VARIANTS if "4" in name])
def test_open_compressed_tensors__nibbles_are_pairs_of_codes(variant: str) -> None:
    integers = _open(variant).integers
    assert integers is not None
    for rows in (slice(None), slice(2, 7), slice(None, None, -3)):
        codes, nibbles = integers.codes(rows), integers.nibbles(rows)
        assert np.array_equal(nibbles & 0x0F, codes[:, 0::2])
        assert np.array_equal(nibbles >> 4, codes[:, 1::2])


def test_open_compressed_tensors__group_columns_follow_the_strategy() -> None:
    columns = VARIANTS["w4-channel"][2].shape[1]
    for variant, group in (
        *(("w4-group", 32), ("w4-channel", columns), ("w4-tensor-asym", columns)),
        *(("int8-block", 32), ("w4-actorder-weight", 64)),
    ):
        integers = _open(variant).integers
        assert integers is not None
        assert integers.layout.group_columns == group, variant
        assert integers.scales(slice(2, 5)).shape == (3, -(-columns // group)), variant


def test_open_compressed_tensors__zeros_that_are_all_in_the_middle_are_symmetric() -> None:
    zeros = np.full((3, 4), 0x88888888, np.uint32).view(np.int32)
    integers = _open("w4-group-asym", weight_zero_point=stored("z", zeros)).integers
    assert integers is not None
    assert integers.layout.symmetric


def test_open_compressed_tensors__zeros_of_early_releases_are_not_packed() -> None:
    tensor = _open("w4-group-asym")
    assert tensor.integers is not None
    plain = (tensor.integers.zeros() - 8).astype(np.int8)
    again = _open("w4-group-asym", weight_zero_point=stored("z", plain))
    assert np.array_equal(again.read(slice(1, 9)), tensor.read(slice(1, 9)))


def test_open_compressed_tensors__unset_group_index_is_no_activation_order() -> None:
    unset = stored("g", np.full(128, -1, np.int32))
    in_order = stored("g", (np.arange(128) // 32).astype(np.int32))
    for index in (unset, in_order):
        integers = _open("w4-actorder", weight_g_idx=index).integers
        assert integers is not None
        assert integers.layout.in_order
        assert integers.groups is None


def test_open_compressed_tensors__scales_too_small_for_f16_are_told() -> None:
    scales = np.full((20, 4), 2.0**-20, np.float32)
    integers = _open("w4-group", weight_scale=stored("s", scales)).integers
    assert integers is not None
    assert not integers.layout.scales_fit_f16


def test_read__touches_only_the_rows_asked_for() -> None:
    rows, columns = 1 << 15, 4096
    parts = {
        "weight_packed": stored_zeros("w", (rows, columns // 8), np.int32),
        "weight_scale": stored("s", np.ones((rows, columns // 128), np.float16)),
        "weight_zero_point": stored_zeros("z", (rows // 8, columns // 128), np.int32),
    }
    settings = {"num_bits": 4, "strategy": "group", "group_size": 128, "symmetric": False}
    tensor = _reader({"Linear": settings}).weight(MODULE, (rows, columns), parts)
    assert tensor is not None
    tracemalloc.start()
    tensor.read(slice(20000, 20004))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 12 * 4 * columns * 4  # a handful of copies of these rows


def _group(target: str, weights: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"targets": [target], "weights": weights, **more}


def _reader(groups: dict[str, dict[str, Any]], **more: Any) -> CompressedTensorsReader:
    config_groups = {f"group_{i}": _group(*item) for i, item in enumerate(groups.items())}
    return open_reader(CONFIG, {"format": "pack-quantized", "config_groups": config_groups, **more})


def test_open_compressed_tensors__own_name_comes_before_pattern_before_class() -> None:
    reader = _reader(
        {
            "Linear": {"num_bits": 8, "strategy": "channel"},
            r"re:.*\.mlp\..*": {"num_bits": 4, "strategy": "channel"},
            "model.layers.1.mlp.up_proj": {"num_bits": 2, "strategy": "channel"},
        },
        ignore=["lm_head", r"re:.*layers\.2\."],
    )
    scheme = reader._config.scheme
    bits = {
        "model.layers.0.self_attn.q_proj": 8,
        "model.layers.0.mlp.up_proj": 4,
        "model.layers.1.mlp.up_proj": 2,
        "model.layers.2.mlp.up_proj": None,
        "lm_head": None,
        "model.embed_tokens": None,
    }
    for module, expected in bits.items():
        found = scheme(module)
        assert (found.bits if found else None) == expected, module
    assert reader.quantization == "W2A16"


@pytest.mark.parametrize(
    ("weights", "activations", "name"),
    [
        ({"num_bits": 4, "group_size": 128}, None, "W4A16"),
        ({"num_bits": 8, "group_size": -1}, None, "W8A16"),
        ({"num_bits": 8, "strategy": "channel"}, {"num_bits": 8, "type": "int"}, "W8A8"),
        ({"num_bits": 8, "type": "float", "strategy": "channel"}, {"num_bits": 8, "type": "float"}, "FP8"),
    ],
)
def test_open_reader__quantization_is_named_as_vllm_names_it(
    weights: dict[str, Any], activations: dict[str, Any] | None, name: str
) -> None:
    form = "float-quantized" if weights.get("type") == "float" else "int-quantized"
    group = _group("Linear", weights, input_activations=activations)
    reader = open_reader(CONFIG, {"format": form, "config_groups": {"group_0": group}})
    assert reader.quantization == name


def test_open_compressed_tensors__float_weight_is_left_alone() -> None:
    reader = open_reader(CONFIG, VARIANTS["w4-group"][0])
    assert reader.weight(MODULE, (2, 8), {"weight": stored("w", np.zeros((2, 8), np.float16))}) is None


GOOD = {"targets": ["Linear"], "weights": {"num_bits": 4, "group_size": 128}}


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"config_groups": {}}, "no 'config_groups'"),
        ({"config_groups": {"a": ["Linear"]}}, "group 'a' is"),
        ({"config_groups": {"a": {"targets": ["Linear"]}}}, "no group .* quantizes weights"),
        ({"config_groups": {"a": {**GOOD, "targets": "Linear"}}}, "'targets' is 'Linear'"),
        ({"config_groups": {"a": {**GOOD, "targets": ["re:("]}}}, "no regular expression"),
        ({"format": "marlin-24"}, "'marlin-24'; known are pack-quantized"),
        ({"format": "nvfp4-pack-quantized"}, "nvfp4.*known are pack-quantized"),
        ({"config_groups": {"a": {**GOOD, "format": "mxfp4-pack-quantized"}}}, "mxfp4.*known are"),
        ({"sparsity_config": {"format": "sparse-24-bitmask"}}, "sparse .*24.*only dense"),
        ({"transform_config": {"config_groups": {"R1": {}}}}, "rotated"),
        ({"config_groups": {"a": {**GOOD, "weights": {"num_bits": 6}}}}, "6 bit of type 'int'; known"),
        ({"config_groups": {"a": {**GOOD, "weights": {"type": "float", "num_bits": 4}}}}, "4 bit.*'float'"),
        ({"config_groups": {"a": {**GOOD, "weights": {"type": "float"}}}}, "floats cannot be pack-quantized"),
        (
            {"config_groups": {"a": {**GOOD, "weights": {"strategy": "tensor_group"}}}},
            "'tensor_group'; known",
        ),
        ({"config_groups": {"a": {**GOOD, "weights": {"strategy": "group"}}}}, "group_size is None"),
        ({"config_groups": {"a": {**GOOD, "weights": {"strategy": "block"}}}}, "block_structure is None"),
    ],
)
def test_open_reader__unknown_setting_is_refused(settings: dict[str, Any], problem: str) -> None:
    whole = {"format": "pack-quantized", "config_groups": {"a": GOOD}, **settings}
    with pytest.raises(ModelFileError, match=problem) as raised:
        open_reader(CONFIG, whole)
    assert str(raised.value).startswith("config.json: ")


def test_open_reader__block_structure_of_early_releases_is_text() -> None:
    weights = {"num_bits": 8, "type": "float", "strategy": "block", "block_structure": "128x64"}
    group = _group("Linear", weights)
    reader = open_reader(CONFIG, {"format": "float-quantized", "config_groups": {"a": group}})
    scheme = reader._config.scheme(MODULE)
    assert scheme is not None
    assert scheme.block((256, 256)) == (128, 64)


NAN = np.full((20, 4), 0x7FC0, np.uint16)


@pytest.mark.parametrize(
    ("variant", "changes", "problem"),
    [
        ("w4-group", {"weight_packed": None}, "'weight_packed' is missing"),
        ("w4-group", {"weight_scale": None}, "'weight_scale' is missing"),
        ("w4-group-asym", {"weight_zero_point": None}, "'weight_zero_point' is missing"),
        ("w4-actorder", {"weight_g_idx": None}, "'weight_g_idx' is missing"),
        ("int8-channel", {"weight": None}, "'weight' is missing"),
        ("fp8-block", {"weight_scale": None}, "'weight_scale' is missing"),
        ("w4-group", {"weight_packed": np.zeros((20, 16), np.int64)}, "'weight_packed' is of type I64"),
        (
            "w4-group",
            {"weight_packed": np.zeros((20, 15), np.int32)},
            r"shape \[20, 15\], expected \[20, 16\]",
        ),
        ("w4-group", {"weight_scale": np.zeros((20, 3), np.float32)}, r"shape \[20, 3\], expected \[20, 4\]"),
        ("w4-group", {"weight_scale": NAN}, "'weight_scale' holds nan at index 0"),
        ("fp8-channel", {"weight_scale": NAN[:, :1]}, "'weight_scale' holds nan"),
        ("w4-group", {"weight_shape": np.array([20, 127])}, r"'weight_shape' is \[20, 127\]"),
        ("w4-group", {"weight_bogus": np.zeros(1, np.int32)}, "'weight_bogus' is of no known use"),
        ("w4-actorder", {"weight_g_idx": np.full(128, 4, np.int32)}, "names groups from 4 to 4 of 4"),
        ("w4-group", {"weight_zero_point": np.ones((20, 4), np.int8)}, "said to be symmetric"),
        ("w4-tensor-asym", {"weight_zero_point": np.full(1, 9, np.int8)}, "more than 4-bit integers"),
        ("w4-group-asym", {"weight_zero_point": np.zeros((20, 4), np.int32)}, "I32 has shape"),
        ("fp8-tensor", {"weight": np.zeros((20, 128), np.int8)}, "'weight' is of type I8, expected F8_E4M3"),
        (
            "w3-group-asym",
            {"weight_packed": np.zeros((20, 11), np.int32)},
            r"expected \[20, 12\] or \[20, 13\]",
        ),
    ],
)
def test_open_compressed_tensors__damaged_part_is_named(
    variant: str, changes: dict[str, Any], problem: str
) -> None:
    parts = {name: None if values is None else stored(name, values) for name, values in changes.items()}
    with pytest.raises(ModelFileError, match=problem) as raised:
        _open(variant, **parts)
    assert str(raised.value).startswith(f"module '{MODULE}': ")


def test_read__integer_out_of_range_is_an_error() -> None:
    tensor = _open("int4-naive", weight=stored("w", np.full((20, 128), 8, np.int8)))
    with pytest.raises(ModelFileError, match=f"module '{MODULE}': 'weight' holds more than 4-bit"):
        tensor.read()


def test_open_compressed_tensors__ambiguous_three_bit_packing_is_refused() -> None:
    reader = _reader({"Linear": {"num_bits": 3, "strategy": "channel"}})
    parts = {
        "weight_packed": stored("w", np.zeros((4, 4), np.int32)),
        "weight_scale": stored("s", np.ones((4, 1), np.float32)),
    }
    with pytest.raises(ModelFileError, match="which of two packings"):
        reader.weight(MODULE, (4, 40), parts)


@pytest.fixture
def checkpoint(tmp_path: Path, tiny: ModuleType) -> Path:
    """W4A16 by groups, W8A8 by rows, an FP8 KV cache, a module left out; saved by transformers."""
    return copy_checkpoint(HERE / "checkpoint", tmp_path / "Mixed-Qwen2", tiny)


def test_open_student__checkpoint_saved_by_transformers(checkpoint: Path) -> None:
    student = open_student(checkpoint)
    assert isinstance(student, CheckpointStudent)
    tensors = {tensor.name: tensor for tensor in student.tensors()}
    expected = read_expected(HERE / "checkpoint_expected.json")
    assert expected.keys() == {name for name, tensor in tensors.items() if tensor.integers is not None}
    for name, checksum in expected.items():
        assert sha256(tensors[name].read_float32()) == checksum, name
    assert tensors["model.layers.0.mlp.up_proj.weight"].storage == "INT4"
    assert tensors["model.layers.0.self_attn.q_proj.weight"].storage == "INT8"
    assert tensors["model.layers.1.self_attn.o_proj.weight"].storage == "BF16"
    assert tensors["model.layers.0.self_attn.q_proj.bias"].storage == "BF16"
    assert (student.facts.quantization, student.stored_as) == ("W4A16", "BF16")


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda settings: settings.update(format="sparse-bitmask"), None),
        (lambda settings: settings["config_groups"]["group_1"].update(format="marlin-24"), "'marlin-24'"),
        (lambda settings: settings["config_groups"].pop("group_1"), "mlp.*'weight' is missing"),
    ],
)
def test_open_student__config_that_does_not_fit(
    checkpoint: Path, change: Callable[[dict[str, Any]], Any], problem: str | None
) -> None:
    config = json.loads((checkpoint / "config.json").read_text())
    change(config["quantization_config"])
    (checkpoint / "config.json").write_text(json.dumps(config))
    if problem is None:  # each group has a format of its own
        open_student(checkpoint)
        return
    with pytest.raises(ModelFileError, match=problem) as raised:
        open_student(checkpoint)
    assert str(raised.value).startswith(str(checkpoint))
