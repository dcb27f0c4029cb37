"""The float GGUF against what llama.cpp's own converter wrote for the same checkpoint."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from written_checkpoint import write_as_checkpoint

from edgekit.errors import ExportError, ModelFileError
from edgekit.gguf_header import read_gguf_header, validate_model
from export.student import CheckpointStudent, GgufStudent, as_checkpoint, open_student
from export.targets.gguf import write_float_gguf

FAMILIES = ("R1-Tiny-Llama-1M", "R1-Tiny-Qwen2", "R1-0528-Tiny-Qwen3")


def _open(path: Path) -> CheckpointStudent:
    student = open_student(path)
    assert isinstance(student, CheckpointStudent)
    return student


@pytest.mark.parametrize("family", FAMILIES)
def test_write_float_gguf__equals_llama_cpps_converter(
    family: str,
    r1_family: Callable[[str], Path],
    golden: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = tmp_path / "model.gguf"
    write_float_gguf(_open(r1_family(family)), path)
    _assert_golden(path, family, golden, monkeypatch)


def test_write_float_gguf__of_a_real_model_equals_llama_cpps_converter(
    student: Path, golden: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = open_student(student)
    assert isinstance(real, GgufStudent)
    checkpoint = write_as_checkpoint(as_checkpoint(real), tmp_path / "SmolLM2-135M-Instruct")
    path = tmp_path / "model.gguf"
    write_float_gguf(_open(checkpoint), path)
    _assert_golden(path, "SmolLM2-135M-Instruct", golden, monkeypatch)


def _assert_golden(path: Path, name: str, golden: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = json.loads((golden.HERE / f"{name}.json").read_text(encoding="utf-8"))
    with monkeypatch.context() as patch:
        # GGUFReader slices its file a million times for the vocabulary: a memmap takes thrice as long.
        patch.setattr(np, "memmap", lambda file, mode: np.fromfile(file, dtype=np.uint8))
        written = golden.describe(path)
    # Part by part, so that a failure names the key or the tensor.
    for part in ("metadata", "tensors"):
        assert list(written[part]) == list(expected[part])
        for key, value in expected[part].items():
            assert written[part][key] == value, key
    validate_model(read_gguf_header(path))


@pytest.mark.parametrize("storage", ["F32", "F16", "BF16"])
def test_write_float_gguf__converts_between_float_types(storage: str, small: Path, tmp_path: Path) -> None:
    import gguf

    path = tmp_path / "model.gguf"
    write_float_gguf(_open(small), path, storage=storage)
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    embedding = tensors["token_embd.weight"]
    source = next(t for t in open_student(small).tensors() if t.name == "model.embed_tokens.weight").read()
    exact = (source.astype(np.uint32) << 16).view(np.float32)
    assert embedding.tensor_type.name == storage
    stored = gguf.quants.dequantize(embedding.data, embedding.tensor_type)
    np.testing.assert_allclose(stored, exact, rtol=1e-3 if storage == "F16" else 0)
    assert tensors["output_norm.weight"].tensor_type.name == "F32"


def test_write_float_gguf__fp32_to_bf16_rounds_to_nearest_even(tiny: ModuleType, tmp_path: Path) -> None:
    import gguf

    config = tiny.make_config("R1-Tiny-Qwen2", vocab_size=272, bos_token_id=263, eos_token_id=260)
    tensors = {
        name: (bits.astype(np.uint32) << 16).view(np.float32)
        for name, bits in tiny.make_tensors(config).items()
    }
    rng = np.random.default_rng(7)
    name = "model.layers.0.mlp.up_proj.weight"
    tensors[name] = rng.standard_normal(tensors[name].shape, dtype=np.float32)
    tensors[name][0, :4] = np.array([0x3F808000, 0x3F818000, 0x3F808001, 0x00000001], np.uint32).view(
        np.float32
    )
    checkpoint = tiny.write_checkpoint(
        tmp_path / "Small", config, tensors=tensors, tokenizer=tiny.small_tokenizer()
    )
    path = tmp_path / "model.gguf"
    write_float_gguf(_open(checkpoint), path, storage="BF16")
    written = next(t for t in gguf.GGUFReader(path).tensors if t.name == "blk.0.ffn_up.weight")
    expected = gguf.quants.quantize(tensors[name], gguf.GGMLQuantizationType.BF16)
    assert np.array_equal(written.data, expected)


def test_write_float_gguf__value_beyond_f16_is_refused(small: Path, tiny: ModuleType, tmp_path: Path) -> None:
    _replace(tiny, small, "model.layers.1.mlp.down_proj.weight", np.float32(70000.0))
    with pytest.raises(ModelFileError, match=r"layers\.1\.mlp\.down_proj.*65504"):
        write_float_gguf(_open(small), tmp_path / "model.gguf", storage="F16")


def test_write_float_gguf__value_that_bf16_rounds_to_infinity_is_refused(
    small: Path, tiny: ModuleType, tmp_path: Path
) -> None:
    name = "model.layers.1.mlp.down_proj.weight"
    tensors = {
        key: (bits.astype(np.uint32) << 16).view(np.float32)
        for key, bits in tiny.make_tensors(json.loads((small / "config.json").read_text())).items()
    }
    tensors[name][3, 5] = np.finfo(np.float32).max
    tiny.save_tensors(small, tensors, 1)
    with pytest.raises(ModelFileError, match=r"layers\.1\.mlp\.down_proj.* BF16 rounds to infinity"):
        write_float_gguf(_open(small), tmp_path / "model.gguf", storage="BF16")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_write_float_gguf__nan_and_infinity_are_refused_with_their_place(
    value: float, small: Path, tiny: ModuleType, tmp_path: Path
) -> None:
    _replace(tiny, small, "model.layers.1.mlp.down_proj.weight", np.float32(value))
    with pytest.raises(
        ModelFileError, match=r"layers\.1\.mlp\.down_proj\.weight' holds NaN or infinity at \[3, 5\]"
    ):
        write_float_gguf(_open(small), tmp_path / "model.gguf")


def test_write_float_gguf__unwritable_target_is_an_export_error(small: Path, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="cannot be written"):
        write_float_gguf(_open(small), tmp_path / "absent" / "model.gguf")


def _replace(tiny: ModuleType, checkpoint: Path, name: str, value: np.float32) -> None:
    """Put a value at [3, 5] of a tensor of a single-file checkpoint."""
    config = json.loads((checkpoint / "config.json").read_text())
    tensors = tiny.make_tensors(config)
    tensors[name][3, 5] = np.array([value]).view(np.uint32)[0] >> 16
    tiny.save_tensors(checkpoint, tensors, 1)
