"""How large a student becomes in ONNX. Pure."""

from __future__ import annotations

from typing import Final

from edgekit.facts import ModelFacts

__all__ = ["ONNX_QUANTIZATIONS", "onnx_facts"]

ONNX_QUANTIZATIONS: Final = ("F32", "INT4")
"""F32: every weight as float32, to compare with. INT4: matrices in blocks of 4-bit integers (MatMulNBits)."""

_INT4_BYTES_PER_WEIGHT: Final = 0.5 + 4 / 64 + 0.5 / 64
"""4 bits, and for 64 weights a float32 scale and a zero point; most matrices have longer blocks."""
_HEAD_BYTES_PER_WEIGHT: Final = 1 + 4 / 64
"""Embedding and head: 8 bits."""


def onnx_facts(facts: ModelFacts, quantization: str) -> ModelFacts:
    """The facts of the model once it is exported; sizes are upper bounds."""
    layers, head = (4.0, 4.0) if quantization == "F32" else (_INT4_BYTES_PER_WEIGHT, _HEAD_BYTES_PER_WEIGHT)
    embedding = facts.vocabulary * facts.embedding_length
    ends = embedding if facts.tied_embeddings else 2 * embedding
    vectors = facts.layers * (2 * facts.embedding_length + 4 * facts.head_length * facts.attention_heads) * 4
    total = round((facts.parameters - ends) * layers + ends * head) + vectors
    looked_up = 0 if facts.tied_embeddings else round(embedding * head)
    return facts.model_copy(
        update={"quantization": quantization, "weight_bytes": total, "bytes_per_token": total - looked_up}
    )
