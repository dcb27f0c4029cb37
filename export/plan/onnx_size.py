"""How large a student becomes in ONNX. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from math import gcd, prod
from types import MappingProxyType
from typing import Final

from edgekit.facts import ModelFacts
from export.plan.tensors import TensorFacts

__all__ = ["KEPT_FROM_GGUF", "ONNX_QUANTIZATIONS", "onnx_facts"]

ONNX_QUANTIZATIONS: Final = ("F32", "INT4")
"""F32: every weight as float32, to compare with. INT4: matrices in blocks of 4-bit integers (MatMulNBits),
but for a student's own of 8 bits."""

_INT4_BYTES_PER_WEIGHT: Final = 0.5 + 4 / 64 + 0.5 / 64
"""4 bits, and for 64 weights a float32 scale and a zero point; most matrices have longer blocks."""
_INT8_BYTES_PER_WEIGHT: Final = 1 + 4 / 64
"""Embedding and head: 8 bits. So are matrices of floats among packed ones."""

KEPT_FROM_GGUF: Final = MappingProxyType({"Q4_0": 0.5 + 4 / 32, "Q8_0": 1 + 4 / 32})
"""Quantizations of GGUF whose integers are kept, and bytes per weight: a float32 scale for 32 weights."""


def onnx_facts(facts: ModelFacts, quantization: str, tensors: Sequence[TensorFacts] = ()) -> ModelFacts:
    """The facts of the model once it is exported; sizes are upper bounds.

    Args:
        facts: of the student.
        tensors: of a checkpoint; without them all matrices count alike.
    """
    embedding = facts.vocabulary * facts.embedding_length
    if quantization != "F32" and any(tensor.layout is not None for tensor in tensors):
        sizes = {tensor.name: round(prod(tensor.shape) * _bytes_per_weight(tensor)) for tensor in tensors}
        total, looked_up = sum(sizes.values()), sizes["model.embed_tokens.weight"]
    else:
        kept = KEPT_FROM_GGUF.get(facts.quantization, 0.0) if not tensors else 0.0
        layers, head = (
            (4.0, 4.0)
            if quantization == "F32"
            else (kept or _INT4_BYTES_PER_WEIGHT, max(kept, _INT8_BYTES_PER_WEIGHT))
        )
        ends = embedding if facts.tied_embeddings else 2 * embedding
        vectors = (
            facts.layers * (2 * facts.embedding_length + 4 * facts.head_length * facts.attention_heads) * 4
        )
        total = round((facts.parameters - ends) * layers + ends * head) + vectors
        looked_up = round(embedding * head)
    looked_up = 0 if facts.tied_embeddings else looked_up
    return facts.model_copy(
        update={"quantization": quantization, "weight_bytes": total, "bytes_per_token": total - looked_up}
    )


def _bytes_per_weight(tensor: TensorFacts) -> float:
    """Of a tensor of a packed checkpoint, whose own integers stay, in blocks as long as they may be."""
    if len(tensor.shape) == 1:
        return 4.0
    layout = tensor.layout
    if layout is None:
        return _INT8_BYTES_PER_WEIGHT
    # A power of two from 16 to 256 that divides the group, as export.targets.onnx_weights chooses it.
    block = gcd(256, min(layout.group_columns, tensor.shape[1]))
    if block < 16:
        return _INT8_BYTES_PER_WEIGHT
    code = 1.0 if layout.bits == 8 else 0.5
    return code + (4 + code) / block
