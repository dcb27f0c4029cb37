"""The models that peers are compared on, as signed bundles; made once, kept in a directory."""

from __future__ import annotations

import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from edgekit.bundle.bundle import Bundle, verify_bundle
from edgekit.profiles import DeviceProfile, Format
from export.pipeline import export_bundle
from export.sample_student import fetch_sample_student

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from bench_export import make_student

__all__ = ["MODELS", "PeerModel", "make_bundle", "make_onnx_bundle"]


@dataclass(frozen=True)
class PeerModel:
    """What is measured, and how much of it: a larger model gets less to do."""

    title: str
    quantization: str | None
    """None: as it is."""
    end_token: int
    """Forbidden, so that all answers are of equal length."""
    arrivals_per_s: float
    random_layers: int | None = None
    """Of a student with R1-Distill-Qwen-1.5B's shape and random weights; None: the sample student."""


MODELS = {
    "q4_1": PeerModel("SmolLM2-135M Q4_1", None, 2, 1.0),
    "q4_0": PeerModel("SmolLM2-135M Q4_0", "Q4_0", 2, 1.0),
    "qwen2": PeerModel("1.5B-shaped random Qwen2 Q4_K_M", "Q4_K_M", 151643, 0.2, random_layers=28),
}


def make_bundle(name: str, profile: DeviceProfile, work: Path, *, layers: int | None = None) -> Bundle:
    """The bundle of a model of `MODELS`.

    Args:
        layers: fewer than the model has, for a quick look.
    """
    model = MODELS[name]
    shape = layers or model.random_layers
    target = work / (f"{name}-{shape}" if model.random_layers else name)
    if target.is_dir():
        return verify_bundle(target, None)
    student = (
        make_student(work / f"bf16-{shape}", shape, gptq=False)
        if model.random_layers and shape
        else fetch_sample_student()
    )
    return _export(student, profile, target, model.quantization, "gguf")


def make_onnx_bundle(profile: DeviceProfile, work: Path) -> Bundle:
    """The sample student for onnxruntime."""
    target = work / "onnx"
    if target.is_dir():
        return verify_bundle(target, None)
    return _export(fetch_sample_student(), profile, target, None, "onnx")


def _export(
    student: Path, profile: DeviceProfile, target: Path, quantization: str | None, wanted: Format
) -> Bundle:
    shutil.rmtree(target, ignore_errors=True)
    # Random weights have nothing to say, and no proof of quality passes.
    return export_bundle(student, profile, target, quantization=quantization, format=wanted, allow_loss=True)
