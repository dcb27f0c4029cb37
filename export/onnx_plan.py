"""How large a student becomes in ONNX. Pure."""

from __future__ import annotations

from typing import Final

from edgekit.facts import ModelFacts

__all__ = ["ONNX_QUANTIZATIONS", "onnx_facts"]

ONNX_QUANTIZATIONS: Final = ("F32", "INT4")
"""F32: every weight as float32, to compare with. INT4: matrices in blocks of 4-bit integers (MatMulNBits)."""

_INT4_BYTES_PER_WEIGHT: Final = 0.5 + 4 / 32
"""4 bits, and a float32 scale for 32 weights: the smallest block that is written."""


def onnx_facts(facts: ModelFacts, quantization: str) -> ModelFacts:
    """The facts of the model once it is exported; sizes are upper bounds."""
    per_weight = 4.0 if quantization == "F32" else _INT4_BYTES_PER_WEIGHT
    vectors = facts.layers * (2 * facts.embedding_length + 4 * facts.head_length * facts.attention_heads) * 4
    total = round(facts.parameters * per_weight) + vectors
    embedding = round(facts.vocabulary * facts.embedding_length * per_weight)
    looked_up = 0 if facts.tied_embeddings else embedding
    return facts.model_copy(
        update={"quantization": quantization, "weight_bytes": total, "bytes_per_token": total - looked_up}
    )
