"""GGUFs in a checkpoint's terms: the inverse of the export, and ggml's own arithmetic."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import gguf
import numpy as np
import pytest

from edgekit.errors import ModelFileError
from edgekit.gguf_header import read_gguf_header
from export.plan.tensors import plan_tensors, tensor_facts
from export.student.base import StudentTensor
from export.student.config import CheckpointConfig, read_config
from export.student.gguf_checkpoint import GgufCheckpoint, as_checkpoint
from export.student.gguf_file import GgufStudent, open_gguf
from export.student.rotary import make_rotary
from export.student.safetensors_dir import CheckpointStudent, open_checkpoint
from export.targets.ggml import dequantize_rows, quantize_rows
from export.targets.gguf import write_float_gguf, write_gguf

FAMILIES = ("R1-Tiny-Llama-1M", "R1-Tiny-Qwen2", "R1-0528-Tiny-Qwen3")
SLICES = (slice(None), slice(0, 1), slice(5, 40), slice(17, 18), slice(-3, None), slice(2, 60, 9))

Write = Callable[..., tuple[CheckpointStudent, Path]]


@pytest.fixture
def written(tiny: ModuleType, tmp_path: Path) -> Write:
    """A small checkpoint of a family, and its GGUF."""

    def write(family: str, quantization: str | None = None, **changes: Any) -> tuple[CheckpointStudent, Path]:
        student = open_checkpoint(tiny.write_small(tmp_path / family, family, **changes))
        path = tmp_path / f"{family}.gguf"
        if quantization is None:
            write_float_gguf(student, path)
        else:
            plan = plan_tensors(tensor_facts(student.tensors()), student.facts, quantization)
            write_gguf(student, path, plan, quantization)
        return student, path

    return write


def _tensors(student: CheckpointStudent | GgufCheckpoint) -> dict[str, StudentTensor]:
    return {tensor.name: tensor for tensor in student.tensors()}


def _settings(config: CheckpointConfig) -> dict[str, Any]:
    names = {field.name for field in fields(config)} - {"raw", "rope_scaling", "head_length_declared"}
    return {name: getattr(config, name) for name in names}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("changes", [{}, {"tie_word_embeddings": True}])
def test_as_checkpoint__gives_back_what_was_exported(
    family: str, changes: dict[str, Any], written: Write, tmp_path: Path
) -> None:
    student, path = written(family, **changes)
    again = as_checkpoint(open_gguf(path))
    before, after = _tensors(student), _tensors(again)
    assert set(before) == set(after)
    for name, tensor in after.items():
        assert tensor.shape == before[name].shape
        assert tensor.storage == ("F32" if len(tensor.shape) == 1 else "BF16")
        for part in SLICES:
            assert np.array_equal(tensor.read_float32(part), before[name].read_float32(part)), (name, part)
    assert again.stored_as == "BF16"
    assert again.facts == open_gguf(path).facts
    assert _settings(again.config) == _settings(student.config)
    # The rebuilt config.json and tokenizer describe the same model to a reader of checkpoints.
    for name, content in again.tokenizer_files().items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "config.json").write_text(json.dumps(dict(again.config.raw)))
    config = read_config(tmp_path / "config.json")
    assert _settings(config) == _settings(student.config)
    np.testing.assert_allclose(
        make_rotary(config).frequencies, make_rotary(student.config).frequencies, rtol=1e-6
    )
    assert again.tokenizer.tokens == student.tokenizer.tokens


def test_as_checkpoint__llama3_scaling_is_found_from_its_divisors(written: Write) -> None:
    student, path = written("R1-Tiny-Llama-1M")
    scaling = as_checkpoint(open_gguf(path)).config.rope_scaling
    assert scaling is not None and student.config.rope_scaling is not None
    assert dict(scaling.parameters) == dict(student.config.rope_scaling.parameters)


def test_as_checkpoint__unusual_llama3_scaling_is_solved_for(written: Write) -> None:
    unusual = {"factor": 20.0, "low_freq_factor": 1.0, "high_freq_factor": 6.5}
    unusual["original_max_position_embeddings"] = 16384
    _, path = written("R1-Tiny-Llama-1M", head_dim=128, rope_scaling={"rope_type": "llama3", **unusual})
    scaling = as_checkpoint(open_gguf(path)).config.rope_scaling
    assert scaling is not None
    assert dict(scaling.parameters) == {"rope_type": "llama3", **unusual}


def test_as_checkpoint__yarn_keys_come_back(written: Write) -> None:
    student, path = written("R1-0528-Tiny-Qwen3")
    scaling = as_checkpoint(open_gguf(path)).config.rope_scaling
    assert scaling is not None and student.config.rope_scaling is not None
    wanted = dict(student.config.rope_scaling.parameters)
    assert scaling.parameters == {**wanted, "attn_factor": pytest.approx(wanted["attn_factor"], rel=1e-6)}


@pytest.mark.parametrize("quantization", ["Q4_0", "Q8_0"])
@pytest.mark.parametrize("family", ["R1-Tiny-Llama-1M", "R1-Tiny-Qwen2"])
def test_as_checkpoint__integers_are_those_of_the_blocks(
    family: str, quantization: str, written: Write
) -> None:
    _, path = written(family, quantization)
    student = as_checkpoint(open_gguf(path))
    assert student.stored_as == "F32"
    packed = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    of_type = [tensor for tensor in _tensors(student).values() if tensor.storage == quantization]
    assert len(of_type) >= 14
    for tensor in of_type:
        assert tensor.integers is not None
        layout = tensor.integers.layout
        assert (layout.bits, layout.group_columns) == (4 if quantization == "Q4_0" else 8, 32)
        for part in SLICES:
            values = tensor.read(part)
            assert np.array_equal(tensor.integers.dequantized(part), values)
            assert values.shape == tensor.integers.codes(part).shape
            assert tensor.integers.zeros(part).shape == tensor.integers.scales(part).shape
    head = student.config.head_length
    for name, own in (("self_attn.q_proj", "attn_q"), ("self_attn.v_proj", "attn_v")):
        raw = packed[f"blk.1.{own}.weight"].data
        expected = dequantize_rows(raw.reshape(raw.shape[0], -1), quantization, 64)
        if own == "attn_q" and student.config.architecture == "llama":
            # Back from interleaved pairs, one row after the other.
            order = [head * (row // head) + 2 * (row % head % (head // 2)) + row % head // (head // 2)
                     for row in range(expected.shape[0])]  # fmt: skip
            expected = expected[order]
        assert np.array_equal(_tensors(student)[f"model.layers.1.{name}.weight"].read(), expected)


def test_as_checkpoint__other_blocks_have_no_integers(student: Path) -> None:
    tensors = _tensors(as_checkpoint(open_gguf(student)))
    assert tensors["model.layers.0.mlp.up_proj.weight"].storage == "Q4_1"
    assert tensors["model.layers.0.mlp.up_proj.weight"].integers is None
    assert tensors["model.embed_tokens.weight"].integers is not None  # Q8_0
    assert "lm_head.weight" not in tensors


def test_as_checkpoint__real_weights_are_ggmls_bit_for_bit(student: Path) -> None:
    stored = {info.name: info for info in read_gguf_header(student).tensors}
    tensors = _tensors(as_checkpoint(open_gguf(student)))
    for name, own in (
        ("model.embed_tokens", "token_embd"),
        ("model.layers.0.mlp.down_proj", "blk.0.ffn_down"),
        ("model.layers.29.self_attn.v_proj", "blk.29.attn_v"),
    ):
        info = stored[f"{own}.weight"]
        columns, rows = info.shape
        packed = np.fromfile(student, np.uint8, info.size_bytes, offset=info.offset).reshape(rows, -1)
        expected = dequantize_rows(packed, info.type_name, columns)
        assert np.array_equal(tensors[f"{name}.weight"].read(), expected)


@pytest.mark.parametrize(
    "type_name",
    ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS"],
)
def test_blocks__are_dequantized_as_ggml_does_it_bit_for_bit(type_name: str, student: Path) -> None:
    # Rows of a real matrix, 1536 wide.
    tensor = _tensors(as_checkpoint(open_gguf(student)))["model.layers.3.mlp.down_proj.weight"]
    packed = quantize_rows(tensor.read_float32(slice(0, 64)), type_name)
    ours = gguf.dequantize(packed, gguf.GGMLQuantizationType[type_name])
    assert np.array_equal(ours, dequantize_rows(packed, type_name, 1536))


def _changed(path: Path, metadata: dict[str, object]) -> GgufStudent:
    header = read_gguf_header(path)
    return GgufStudent(path, replace(header, metadata={**header.metadata, **metadata}))


@pytest.mark.parametrize(
    ("family", "metadata", "message"),
    [
        (
            "R1-Tiny-Qwen2",
            {"qwen2.rope.scaling.type": "longrope"},
            "scaling.type is 'longrope'; known are none",
        ),
        (
            "R1-Tiny-Qwen2",
            {"qwen2.rope.scaling.attn_factor": 1.2},
            "attn_factor is 1.2; it is known for yarn",
        ),
        ("R1-0528-Tiny-Qwen3", {"qwen3.rope.scaling.yarn_ext_factor": 0.5}, "yarn_ext_factor is 0.5"),
        ("R1-0528-Tiny-Qwen3", {"qwen3.rope.scaling.yarn_log_multiplier": 0.1}, "yarn_log_multiplier is set"),
        ("R1-Tiny-Llama-1M", {"llama.rope.freq_base": 10000.0}, "llama3 rope scaling does not give"),
        (
            "R1-Tiny-Llama-1M",
            {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 2.0},
            "rope_freqs.weight and llama.rope.scaling.type 'linear' are there at once",
        ),
    ],
)
def test_as_checkpoint__settings_without_a_counterpart_are_refused(
    family: str, metadata: dict[str, object], message: str, written: Write
) -> None:
    _, path = written(family)
    with pytest.raises(ModelFileError, match=message):
        as_checkpoint(_changed(path, metadata))


def test_as_checkpoint__factor_without_a_type_is_linear_as_in_llama_cpp(written: Write) -> None:
    _, path = written("R1-Tiny-Qwen2")
    config = as_checkpoint(_changed(path, {"qwen2.rope.scaling.factor": 2.5})).config
    assert config.rope_scaling is not None
    assert dict(config.rope_scaling.parameters) == {"rope_type": "linear", "factor": 2.5}


def test_as_checkpoint__attention_factor_of_yarn_is_a_checkpoints(written: Write) -> None:
    _, path = written("R1-0528-Tiny-Qwen3")
    config = as_checkpoint(_changed(path, {"qwen3.rope.scaling.attn_factor": 0.5})).config
    assert config.rope_scaling is not None
    assert config.rope_scaling.parameters["attention_factor"] == pytest.approx(0.5 * (1 + 0.1 * math.log(4)))


def test_as_checkpoint__tensors_must_make_a_whole_checkpoint(written: Write) -> None:
    _, path = written("R1-Tiny-Qwen2")
    header = read_gguf_header(path)
    without_bias = tuple(t for t in header.tensors if t.name != "blk.1.attn_k.bias")
    with pytest.raises(ModelFileError, match=r"no tensor for 'model\.layers\.1\.self_attn\.k_proj\.bias'"):
        as_checkpoint(GgufStudent(path, replace(header, tensors=without_bias)))
    bias = next(t for t in header.tensors if t.name == "output_norm.weight")
    extra = (*header.tensors, replace(bias, name="output.bias"))
    with pytest.raises(ModelFileError, match=r"tensor 'output\.bias' .* has no counterpart"):
        as_checkpoint(GgufStudent(path, replace(header, tensors=extra)))
