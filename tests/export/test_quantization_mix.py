"""The forecast of what the quantizer does, against the quantizer."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from edgekit.gguf_header import model_facts, read_gguf_header
from export.quantization_mix import QUANTIZATIONS, quantized_facts, tensor_types
from export.quantize import quantize_gguf
from export.student import CheckpointStudent, open_student
from export.targets.gguf import write_float_gguf

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
def floats(tiny: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    paths = {}
    for family, changes in MODELS.items():
        directory = tmp_path_factory.mktemp("mix")
        student = open_student(tiny.write_small(directory / family, family, **changes))
        assert isinstance(student, CheckpointStudent)
        paths[family] = directory / "model.gguf"
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
