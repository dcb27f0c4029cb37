"""What a student would become in each quantization of a format: size, and its weights' way there. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from types import MappingProxyType
from typing import Final, Literal

from edgekit.facts import ModelFacts
from edgekit.gguf_header.tensor_types import FLOAT_TYPES
from edgekit.profiles import Format
from export.plan.onnx_size import KEPT_FROM_GGUF, ONNX_QUANTIZATIONS, onnx_facts
from export.plan.quantization_mix import QUANTIZATIONS, quantized_facts
from export.plan.tensors import TensorFacts, TensorPlan, plan_tensors, planned_facts, repack_quantization

__all__ = ["EXPORTABLE", "Conversion", "Material"]

Conversion = Literal["keep", "convert", "repack", "quantize", "dequantize", "requantize"]
"""keep: the student's own type. convert: from one float type to another. repack: the integers of a packed
student, not quantized again. quantize: from float weights. dequantize: from packed weights that the format
cannot hold, dequantized and quantized again. requantize: from weights that were quantized before and could be
kept, which adds a second loss to the first."""

EXPORTABLE: Final[MappingProxyType[Format, tuple[str, ...]]] = MappingProxyType(
    {
        "gguf": QUANTIZATIONS,
        "onnx": ONNX_QUANTIZATIONS,
        "vllm": tuple(name for name in QUANTIZATIONS if name in FLOAT_TYPES),
    }
)
"""What can be planned in a format, largest first."""


_ERROR_AFTER_REQUANTIZING: Final = MappingProxyType(
    {"Q4_0": 1.22, "Q4_1": 1.26, "Q4_K_M": 1.16, "Q5_K_M": 1.05, "Q6_K": 1.01, "Q8_0": 1.001}
)
"""Error of symmetric 4-bit weights in groups of 128, dequantized and quantized again, to that before.
Measured on synthetic weights; tests/export/plan/test_artifact.py measures it again."""


@dataclass(frozen=True)
class Material:
    """A student on its way into a format.

    `tensors` are those of a checkpoint, empty for a GGUF; `importance`: whether the quantizer will have an
    importance matrix.
    """

    facts: ModelFacts
    format: Format
    tensors: Sequence[TensorFacts] = ()
    importance: bool = False

    @property
    def is_float(self) -> bool:
        return self.facts.quantization in FLOAT_TYPES

    @property
    def is_packed(self) -> bool:
        """Whether it is a checkpoint of packed weights."""
        return bool(self.tensors) and not self.is_float

    @cached_property
    def own(self) -> str | None:
        """The quantization that keeps the student's own weights; None where the format has none."""
        if not self.is_packed:
            return self.facts.quantization if self.facts.quantization in EXPORTABLE[self.format] else None
        if self.format == "vllm":  # runs packed checkpoints as they are
            return self.facts.quantization
        if self.format == "onnx":
            return "INT4" if any(tensor.layout is not None for tensor in self.tensors) else None
        return repack_quantization(self.tensors)

    def in_quantization(self, quantization: str) -> ModelFacts:
        """The facts of the artifact."""
        if self.format == "onnx":
            return onnx_facts(self.facts, quantization, self.tensors)
        if self.format == "gguf" and self.tensors:
            return planned_facts(self.facts, self.tensor_plans(quantization), quantization)
        if quantization == self.facts.quantization:
            return self.facts
        return quantized_facts(self.facts, quantization, importance=self.importance)

    def tensor_plans(self, quantization: str) -> tuple[TensorPlan, ...]:
        """What becomes of each tensor of a checkpoint in GGUF; empty for all else."""
        if self.format != "gguf" or not self.tensors:
            return ()
        return plan_tensors(self.tensors, self.facts, quantization, importance=self.importance)

    def conversion(self, quantization: str) -> Conversion:
        """How the weights come to be in a quantization."""
        to_floats = quantization in FLOAT_TYPES
        if quantization == self.facts.quantization:
            return "keep"
        if self.is_packed:
            if to_floats:
                return "convert"
            if self.format == "onnx":
                return "dequantize" if self.own is None else "repack"
            if any(plan.method == "repack" for plan in self.tensor_plans(quantization)):
                return "repack"
            return "dequantize" if self.own is None else "requantize"
        if self.is_float:
            return "convert" if to_floats else "quantize"
        if self.format == "onnx" and to_floats:
            return "convert"
        if self.format == "onnx" and self.facts.quantization in KEPT_FROM_GGUF:
            return "repack"
        return "requantize"

    def notes(self, quantization: str) -> tuple[str, ...]:
        """What a user should know of the weights' way."""
        own, conversion = self.facts.quantization, self.conversion(quantization)
        if conversion == "requantize":
            return (f"requantized from {own}: the loss of both quantizations adds up",)
        if conversion == "dequantize":
            return (_dequantized_note(self.format, own, quantization),)
        if conversion != "repack":
            return ()
        plans = self.tensor_plans(quantization)
        if not plans:
            return (f"the integers of {own} are kept",)
        weights = {plan.name: prod(plan.shape) for plan in plans}
        total = sum(weights.values())
        exact = sum(weights[plan.name] for plan in plans if plan.method == "repack" and plan.exact)
        rounded = sum(weights[plan.name] for plan in plans if plan.method == "repack" and not plan.exact)
        lost = sum(weights[plan.name] for plan in plans if plan.method == "requantize")
        notes = []
        if exact:
            notes.append(f"{exact / total:.1%} of the weights keep the integers of {own}, bit for bit")
        if rounded:
            notes.append(
                f"{rounded / total:.1%} of the weights keep the integers of {own}; their minimum is rounded "
                "to F16, by 0.4 % of a step at most (Q5_0 is exact and a tenth larger)"
            )
        if lost:
            notes.append(
                f"{lost / total:.1%} of the weights are dequantized and quantized again: "
                f"{quantization} cannot hold them as {own} does "
                "(activation order, bit width, or scales beyond F16)"
            )
        return tuple(notes)


def _dequantized_note(target: Format, own: str, quantization: str) -> str:
    note = f"{target} cannot hold {own} as it is: dequantized, and quantized to {quantization}"
    factor = _ERROR_AFTER_REQUANTIZING.get(quantization)
    if factor is None or target != "gguf":
        return note
    better = "" if factor <= 1.05 else "; --quantization Q5_K_M: 1.05 x"
    return f"{note}, which raises a 4-bit student's error to about {factor} x{better}"
