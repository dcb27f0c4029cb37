"""Whole exports of every kind of student: opened, planned, written, run, and compared with the student."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from quantized_fixture import FIXTURES, copy_checkpoint

from edgekit.bundle.bundle import verify_bundle
from edgekit.errors import ExportError, UsageError
from edgekit.gguf_header import read_gguf_header
from edgekit.profiles import ProofOverride, load_profile
from export.calibration.step import CalibrationChoice
from export.pipeline import export_bundle
from export.student import open_student

HOST = load_profile("host")
LORA = FIXTURES / "peft" / "rslora-patterns"


def write_gptq(
    directory: Path, tiny: ModuleType, *, symmetric: bool = True, group: int = 32, **changes: int
) -> Path:
    """A small checkpoint whose linear layers are packed as GPTQ does: v2 zeros, groups in order."""
    config = tiny.make_config(
        "R1-Tiny-Llama-1M", vocab_size=272, bos_token_id=263, eos_token_id=260, **changes
    )
    floats = tiny.make_tensors(config)
    tensors: dict[str, np.ndarray] = {}
    for name, bits in floats.items():
        if not name.endswith("_proj.weight"):
            tensors[name] = bits
            continue
        weight = (bits.astype(np.uint32) << 16).view(np.float32)
        rows, columns = weight.shape
        grouped = weight.reshape(rows, -1, columns if group == -1 else group)
        low, high = grouped.min(axis=2), grouped.max(axis=2)
        scales = np.maximum(np.abs(low), high) / 7.5 if symmetric else (high - low) / 15
        scales = scales.astype(np.float16)
        zeros = np.full(scales.shape, 8) if symmetric else np.clip(np.round(-low / scales), 0, 15)
        codes = np.round(grouped / scales.astype(np.float32)[..., None]) + zeros[..., None]
        codes = np.clip(codes, 0, 15).astype(np.uint32).reshape(rows, columns)
        module = name.removesuffix(".weight")
        tensors[f"{module}.qweight"] = _packed(codes.T)
        tensors[f"{module}.qzeros"] = _packed(zeros.astype(np.uint32)).T.copy()
        tensors[f"{module}.scales"] = scales.T.copy()
        tensors[f"{module}.g_idx"] = np.arange(columns, dtype=np.int32) // grouped.shape[2]
    settings = {"quant_method": "gptq", "bits": 4, "group_size": group, "checkpoint_format": "gptq_v2"}
    config["quantization_config"] = settings
    made: Path = tiny.write_checkpoint(directory, config, tensors=tensors, tokenizer=tiny.small_tokenizer())
    return made


def _packed(codes: np.ndarray) -> np.ndarray:
    """Eight codes of a column to an int32, the first in the lowest bits."""
    shifts = np.arange(8, dtype=np.uint32) * 4
    words = (codes.reshape(-1, 8, codes.shape[1]) << shifts[None, :, None]).sum(axis=1, dtype=np.uint32)
    return words.view(np.int32)


def _from(fixture: str) -> Callable[[Path, ModuleType], Path]:
    return lambda directory, tiny: copy_checkpoint(FIXTURES / fixture, directory, tiny)


STUDENTS: dict[str, tuple[Callable[[Path, ModuleType], Path], str, str, str]] = {
    # how it is made, what it is, what it becomes in GGUF, and how
    "GPTQ, symmetric": (write_gptq, "GPTQ", "Q4_0", "repacked from GPTQ"),
    "GPTQ, with zeros": (
        lambda directory, tiny: write_gptq(directory, tiny, symmetric=False),
        "GPTQ",
        "Q4_1",
        "repacked from GPTQ",
    ),
    "GPTQ, one scale a row": (
        lambda directory, tiny: write_gptq(
            directory, tiny, symmetric=False, group=-1, hidden_size=256, intermediate_size=256
        ),
        "GPTQ",
        "Q4_K_S",
        "repacked from GPTQ",
    ),
    "GPTQ, activation order, many widths": (
        _from("gptq_awq/gptqmodel-7.7.0"),
        "GPTQ",
        "Q4_K_M",
        "dequantized from GPTQ and quantized",
    ),
    "compressed-tensors": (
        _from("compressed_tensors/checkpoint"),
        "W4A16",
        "Q4_1",
        "repacked from W4A16",
    ),
    "bitsandbytes NF4": (
        _from("bitsandbytes/nf4_checkpoint"),
        "NF4",
        "Q4_K_M",
        "dequantized from NF4 and quantized",
    ),
    "bitsandbytes LLM.int8": (
        _from("bitsandbytes/int8_checkpoint"),
        "INT8",
        "Q4_K_M",  # its scales are float32, and no ggml type has those
        "dequantized from INT8 and quantized",
    ),
}


@pytest.mark.parametrize("kind", STUDENTS)
def test_export_bundle__packed_student_as_gguf(kind: str, tiny: ModuleType, tmp_path: Path) -> None:
    make, own, quantization, conversion = STUDENTS[kind]
    checkpoint = make(tmp_path / "Student", tiny)
    assert open_student(checkpoint).facts.quantization == own
    bundle = export_bundle(checkpoint, HOST, tmp_path / "out")
    verify_bundle(tmp_path / "out", None)
    manifest = bundle.manifest
    assert (manifest.plan.quantization, manifest.plan.conversion) == (quantization, conversion)
    metadata = read_gguf_header(bundle.entry_path).metadata
    assert metadata["edgekit.student.quantization"] == own
    assert metadata["edgekit.student.sha256"] == manifest.source.sha256
    proof = manifest.proof
    assert proof is not None and proof["misses"] == [] and proof["mean_kl"] < 0.01, proof
    if conversion.startswith("repacked"):
        assert proof["exact"]["tensors"] >= 6


@pytest.mark.parametrize("kind", STUDENTS)
def test_export_bundle__packed_student_as_onnx(kind: str, tiny: ModuleType, tmp_path: Path) -> None:
    make, own, _, _ = STUDENTS[kind]
    bundle = export_bundle(make(tmp_path / "Student", tiny), HOST, tmp_path / "out", format="onnx")
    manifest = bundle.manifest
    assert (manifest.format, manifest.runtime, manifest.entry) == ("onnx", "onnxruntime", "model.onnx")
    assert manifest.plan.conversion.endswith(
        ("repacked from " + own, f"dequantized from {own} and quantized")
    )
    proof = manifest.proof
    assert proof is not None and proof["misses"] == [] and proof["mean_kl"] < 0.02
    # What was moved is read back from the graph's file, value by value.
    moved = proof["exact"]
    assert (moved is None) == (own == "NF4")
    assert moved is None or moved["exact"] == moved["tensors"] >= 6, moved
    names = {file.path for file in manifest.files}
    assert names >= {"model.onnx", "model.onnx.data", "genai_config.json", "tokenizer.json", "golden.json"}


def test_export_bundle__integers_of_a_gguf_stay_in_onnx(tiny: ModuleType, tmp_path: Path) -> None:
    packed = export_bundle(write_gptq(tmp_path / "Student", tiny), HOST, tmp_path / "gguf")
    bundle = export_bundle(packed.entry_path, HOST, tmp_path / "out", format="onnx")
    manifest = bundle.manifest
    assert (manifest.plan.quantization, manifest.plan.conversion) == ("INT4", "repacked from Q4_0")
    assert manifest.proof is not None and manifest.proof["misses"] == [], manifest.proof


def test_export_bundle__integers_are_moved_bit_for_bit(tiny: ModuleType, tmp_path: Path) -> None:
    bundle = export_bundle(write_gptq(tmp_path / "Student", tiny), HOST, tmp_path / "out")
    proof = bundle.manifest.proof
    assert proof is not None
    # 2 layers of 7 matrices
    assert (proof["exact"]["tensors"], proof["exact"]["exact"]) == (14, 14)
    assert "of the weights keep the integers of GPTQ, bit for bit" in " ".join(bundle.manifest.plan.notes)
    page = (tmp_path / "out" / "proof.html").read_text(encoding="utf-8")
    assert f"student: Student, SHA-256 {bundle.manifest.source.sha256}" in page
    assert "artifact: repacked from GPTQ, for host" in page


def test_export_bundle__base_and_adapter(tiny: ModuleType, tmp_path: Path) -> None:
    shape = {"hidden_size": 32, "intermediate_size": 48}
    base = tiny.write_small(tmp_path / "Base", _base_family(), **shape)
    bundle = export_bundle(base, HOST, tmp_path / "out", adapter=LORA, quantization="BF16")
    manifest = bundle.manifest
    assert manifest.source.name == "Base + rslora-patterns"
    assert manifest.proof is not None and manifest.proof["misses"] == []
    assert "the adapter names base/R1-Tiny-Llama-1M as its base; it was merged into Base" in " ".join(
        manifest.plan.notes
    )
    alone = export_bundle(base, HOST, tmp_path / "alone", quantization="BF16")
    assert alone.entry_path.read_bytes() != bundle.entry_path.read_bytes()


def test_export_bundle__calibrated_on_a_text(small: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("The quick brown fox jumps over the lazy dog, and 2 + 2 is 4. " * 20, encoding="utf-8")
    plain = export_bundle(small, HOST, tmp_path / "plain", quantization="Q4_0")
    weighed = export_bundle(
        small, HOST, tmp_path / "weighed", quantization="Q4_0", calibration=CalibrationChoice(text)
    )
    assert weighed.manifest.model.weight_bytes >= plain.manifest.model.weight_bytes
    assert weighed.entry_path.read_bytes() != plain.entry_path.read_bytes()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"format": "onnx"}, "onnxruntime's quantizer takes no importance matrix"),
        ({"quantization": "BF16"}, "Small-Qwen2 becomes BF16 without a quantizer"),
        ({"calibration": CalibrationChoice(Path("absent.txt"))}, "absent.txt: no such file"),
        ({"calibration": CalibrationChoice(FIXTURES)}, "is no file"),
    ],
)
def test_export_bundle__calibration_that_cannot_be_used_is_refused_before_the_work(
    options: dict[str, Any], message: str, small: Path, tmp_path: Path
) -> None:
    steps: list[str] = []
    options = {"calibration": CalibrationChoice(), **options}
    with pytest.raises(UsageError, match=message):
        export_bundle(
            small, HOST, tmp_path / "out", progress=lambda what, done, total: steps.append(what), **options
        )
    assert steps == [] and [path.name for path in tmp_path.iterdir()] == ["Small-Qwen2"]


@pytest.mark.parametrize(("quantization", "weighs"), [("Q4_0", True), ("INT4", False)])
def test_export_bundle__proof_that_fails_proposes_what_can_help(
    quantization: str, weighs: bool, small: Path, tmp_path: Path
) -> None:
    strict = HOST.model_copy(update={"proof": {quantization: ProofOverride(mean_kl=1e-9)}})
    output = "gguf" if weighs else "onnx"
    with pytest.raises(ExportError) as no:
        export_bundle(small, strict, tmp_path / "out", quantization=quantization, format=output)  # type: ignore[arg-type]
    assert ("--calibration own" in (no.value.hint or "")) is weighs
    assert "--allow-loss" in (no.value.hint or "")


def test_export_bundle__proof_that_fails_ends_the_export_and_names_tensors(
    small: Path, tmp_path: Path
) -> None:
    strict = HOST.model_copy(update={"proof": {"Q4_0": ProofOverride(mean_kl=1e-9)}})
    with pytest.raises(
        ExportError, match=r"too far from the student: mean KL divergence .*worst tensors: "
    ) as no:
        export_bundle(small, strict, tmp_path / "out", quantization="Q4_0")
    assert "--allow-loss" in (no.value.hint or "")
    assert not (tmp_path / "out").exists()
    bundle = export_bundle(small, strict, tmp_path / "out", quantization="Q4_0", allow_loss=True)
    proof = bundle.manifest.proof
    assert proof is not None and len(proof["misses"]) == 1 and proof["worst_tensors"]
    assert any("mean KL divergence" in note for note in bundle.manifest.plan.notes)
    golden = json.loads((tmp_path / "out" / "golden.json").read_text(encoding="utf-8"))
    assert golden["answers"] and all(answer["prompt_tokens"] for answer in golden["answers"])


def _base_family() -> str:
    config: dict[str, Any] = json.loads((LORA / "adapter_config.json").read_text(encoding="utf-8"))
    return str(config["base_model_name_or_path"]).rpartition("/")[2]
