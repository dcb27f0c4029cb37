"""The forecast of what the quantizer does, against the quantizer."""

from __future__ import annotations

import zlib
from pathlib import Path
from types import ModuleType
from typing import Any

import gguf
import numpy as np
import pytest

from edgekit.gguf_header import model_facts, read_gguf_header
from export.plan.quantization_mix import QUANTIZATIONS, quantized_facts, tensor_types
from export.plan.tensors import plan_tensors, planned_facts, tensor_facts
from export.quantize import quantize_gguf
from export.student import CheckpointStudent, open_student
from export.targets.gguf import write_float_gguf, write_gguf

# Shapes that meet each rule: tied and not, 4 heads to a KV head and fewer, rows of whole 256-blocks and not.
MODELS: dict[str, dict[str, Any]] = {
    "R1-Tiny-Qwen2": {
        "num_hidden_layers": 17,
        "hidden_size": 256,
        "intermediate_size": 256,
        "num_key_value_heads": 1,
    },
    "R1-Tiny-Llama-1M": {"num_hidden_layers": 9, "hidden_size": 256, "intermediate_size": 320},
    "R1-0528-Tiny-Qwen3": {"num_hidden_layers": 3, "hidden_size": 96, "intermediate_size": 512},
}


@pytest.fixture(scope="module")
def students(tiny: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> dict[str, CheckpointStudent]:
    made = {}
    for family, changes in MODELS.items():
        student = open_student(tiny.write_small(tmp_path_factory.mktemp("mix") / family, family, **changes))
        assert isinstance(student, CheckpointStudent)
        made[family] = student
    return made


@pytest.fixture(scope="module")
def floats(
    students: dict[str, CheckpointStudent], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    paths = {}
    for family, student in students.items():
        paths[family] = tmp_path_factory.mktemp("mix") / "model.gguf"
        write_float_gguf(student, paths[family])
    return paths


@pytest.mark.parametrize("quantization", QUANTIZATIONS[3:])
def test_quantized_facts__equal_what_the_quantizer_writes(
    quantization: str, floats: dict[str, Path], tmp_path: Path
) -> None:
    for family, path in floats.items():
        out = tmp_path / f"{family}.gguf"
        quantize_gguf(path, out, quantization, threads=1)
        header = read_gguf_header(out)
        facts = model_facts(read_gguf_header(path))
        # The divisors of llama3's rotary scaling are left out of the forecast.
        written = {t.name: t.type_name for t in header.tensors if t.name != "rope_freqs.weight"}
        assert {name: kind for name, _, kind in tensor_types(facts, quantization)} == written, family
        forecast = quantized_facts(facts, quantization)
        actual = model_facts(header)
        assert forecast.quantization == actual.quantization == quantization
        assert 0 <= actual.weight_bytes - forecast.weight_bytes <= 64
        assert 0 <= actual.bytes_per_token - forecast.bytes_per_token <= 64


@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted by importance"])
@pytest.mark.parametrize("quantization", QUANTIZATIONS[3:])
def test_write_gguf__in_one_pass_has_the_bytes_of_llama_cpps_quantizer(
    quantization: str,
    weighted: bool,
    students: dict[str, CheckpointStudent],
    floats: dict[str, Path],
    tmp_path: Path,
) -> None:
    for family, student in students.items():
        importance = _importance(floats[family]) if weighted else None
        theirs, ours = tmp_path / f"{family}-theirs.gguf", tmp_path / f"{family}-ours.gguf"
        quantize_gguf(floats[family], theirs, quantization, threads=1, importance=importance)
        plan = plan_tensors(tensor_facts(student.tensors()), student.facts, quantization, importance=weighted)
        write_gguf(student, ours, plan, quantization, importance=importance)
        expected = {tensor.name: tensor for tensor in gguf.GGUFReader(theirs).tensors}
        written = {tensor.name: tensor for tensor in gguf.GGUFReader(ours).tensors}
        assert set(written) == set(expected)
        for name, tensor in written.items():
            assert tensor.tensor_type == expected[name].tensor_type, (family, name)
            assert np.array_equal(tensor.data, expected[name].data), (family, name)
        header = read_gguf_header(ours)
        facts = planned_facts(student.facts, plan, quantization)
        assert 0 <= model_facts(header).weight_bytes - facts.weight_bytes <= 64
        assert header.metadata["general.file_type"] == read_gguf_header(theirs).metadata["general.file_type"]


def _importance(path: Path) -> dict[str, np.ndarray]:
    """For all matrices within layers, as llama-imatrix gives it: not for embedding and head."""
    return {
        tensor.name: np.random.default_rng(zlib.crc32(tensor.name.encode()))
        .uniform(0.1, 2.0, tensor.shape[0])
        .astype(np.float32)
        for tensor in gguf.GGUFReader(path).tensors
        if len(tensor.shape) == 2 and tensor.name.startswith("blk.")
    }
