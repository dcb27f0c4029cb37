"""Which type llama.cpp's quantizer gives each tensor, and so how large the result will be. Pure.

Source: llama-quant.cpp of llama.cpp 0c1e57098 (llama_tensor_get_type_impl, tensor_type_fallback), for dense
models. tests/export/plan/test_quantization_mix.py holds it against the quantizer.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from types import MappingProxyType
from typing import Final

from edgekit.facts import ModelFacts
from edgekit.gguf_header.tensor_types import TENSOR_TYPES, TensorType
from edgekit.gguf_header.validation import Hyperparameters, expected_tensors

__all__ = ["QUANTIZATIONS", "base_type", "quantized_facts", "tensor_types"]

_BASE: Final = MappingProxyType(
    {
        "F32": "F32",
        "BF16": "BF16",
        "F16": "F16",
        "Q8_0": "Q8_0",
        "Q6_K": "Q6_K",
        "Q5_K_M": "Q5_K",
        "Q5_1": "Q5_1",
        "Q5_K_S": "Q5_K",
        "Q5_0": "Q5_0",
        "Q4_1": "Q4_1",
        "Q4_K_M": "Q4_K",
        "Q4_K_S": "Q4_K",
        "IQ4_NL": "IQ4_NL",
        "Q4_0": "Q4_0",
        "IQ4_XS": "IQ4_XS",
        "Q3_K_L": "Q3_K",
        "Q3_K_M": "Q3_K",
        "Q3_K_S": "Q3_K",
        "Q2_K": "Q2_K",
    }
)
"""File type to the type of most tensors, largest first."""

QUANTIZATIONS: Final = tuple(_BASE)
"""What can be exported, largest first. Smaller ones need an importance matrix."""

_FALLBACKS: Final = MappingProxyType(
    {"IQ4_XS": "IQ4_NL", "Q2_K": "Q4_0", "Q3_K": "Q4_0", "Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}
)
_BY_NAME: Final[MappingProxyType[str, TensorType]] = MappingProxyType(
    {kind.name: kind for kind in TENSOR_TYPES.values()}
)


def base_type(quantization: str) -> str:
    """The type of most tensors in a file type: "Q4_K_M" gives "Q4_K"."""
    return _BASE[quantization]


def quantized_facts(facts: ModelFacts, quantization: str, *, importance: bool = False) -> ModelFacts:
    """The facts of the model once it is quantized: another type, other sizes."""
    types = tensor_types(facts, quantization, importance=importance)
    sizes = {name: _size(shape, kind) for name, shape, kind in types}
    total = sum(sizes.values())
    looked_up = 0 if facts.tied_embeddings else sizes["token_embd.weight"]
    return facts.model_copy(
        update={"quantization": quantization, "weight_bytes": total, "bytes_per_token": total - looked_up}
    )


def tensor_types(
    facts: ModelFacts, quantization: str, *, importance: bool = False
) -> Iterator[tuple[str, tuple[int, ...], str]]:
    """Every tensor of the quantized model: name, shape in ggml's order, type.

    `importance`: whether the quantizer is given an importance matrix.
    """
    shape = Hyperparameters(
        architecture=facts.architecture,
        layers=facts.layers,
        embedding_length=facts.embedding_length,
        feed_forward_length=facts.feed_forward_length,
        heads=facts.attention_heads,
        kv_heads=facts.attention_kv_heads,
        head_length=facts.head_length,
        context_train_tokens=max(1, facts.context_train_tokens),
    )
    for name, dimensions, required in expected_tensors(shape, facts.vocabulary):
        is_head = name == "output.weight" and not facts.tied_embeddings
        is_bias = facts.architecture == "qwen2" and name.startswith("blk.") and name.endswith(".bias")
        if required or is_head or (is_bias and ".attn_" in name):
            yield name, dimensions, _type(facts, quantization, name, dimensions, importance)


def _type(facts: ModelFacts, quantization: str, name: str, shape: tuple[int, ...], importance: bool) -> str:
    base = _BASE[quantization]
    if len(shape) == 1:
        return "F32"
    if base in ("F32", "F16", "BF16"):
        return base
    if name == "output.weight" or (facts.tied_embeddings and name == "token_embd.weight"):
        wanted = _head_type(base, shape[0])
    elif name == "token_embd.weight":
        wanted = base
    else:
        layer, part = int(name.split(".")[1]), name.split(".")[2]
        wanted = _layer_type(facts, quantization, base, layer, part, importance)
    return _fitting(wanted, shape[0])


def _head_type(base: str, row_length: int) -> str:
    if row_length % _BY_NAME[base].block_length or base == "Q8_0":
        return "Q8_0"
    return "Q6_K"


def _layer_type(
    facts: ModelFacts, quantization: str, base: str, layer: int, part: str, importance: bool
) -> str:
    layers = facts.layers
    groups = facts.attention_heads // facts.attention_kv_heads
    early = layer < layers // 8
    favoured = early or layer >= 7 * layers // 8 or (layer - layers // 8) % 3 == 2
    if part == "attn_v":
        wanted = {
            "Q2_K": "Q4_K" if groups >= 4 else "Q3_K",
            "Q3_K_M": "Q5_K" if layer < 2 else "Q4_K",
            "Q3_K_L": "Q5_K",
            "IQ4_NL": "Q5_K" if groups >= 4 else base,
            "IQ4_XS": "Q5_K" if groups >= 4 else base,
            "Q4_K_S": "Q5_K" if layer < 4 else base,
            "Q4_K_M": "Q6_K" if favoured else base,
            "Q5_K_M": "Q6_K" if favoured else base,
        }.get(quantization, base)
        is_70b = layers == 80 and groups > 1
        return "Q5_K" if is_70b and wanted in ("Q3_K", "Q4_K") else wanted
    if part == "ffn_down":
        return {
            "Q2_K": "Q3_K",
            "Q3_K_M": "Q5_K" if layer < layers // 16 else "Q4_K",
            "Q3_K_L": "Q5_K",
            "IQ4_NL": "Q5_K" if early and not importance else base,
            "IQ4_XS": "Q5_K" if early and not importance else base,
            "Q4_0": "Q4_1" if early and importance else base,
            "Q5_0": "Q5_1" if early and importance else base,
            "Q4_K_S": "Q5_K" if early else base,
            "Q4_K_M": "Q6_K" if favoured else base,
            "Q5_K_M": "Q6_K" if favoured else base,
        }.get(quantization, base)
    if part == "attn_output":
        return {"Q2_K": "Q3_K", "Q3_K_M": "Q4_K", "Q3_K_L": "Q5_K"}.get(quantization, base)
    return base


def _fitting(wanted: str, row_length: int) -> str:
    """A type whose block divides the row."""
    if row_length % _BY_NAME[wanted].block_length:
        wanted = _FALLBACKS.get(wanted, wanted)
    return "F16" if row_length % _BY_NAME[wanted].block_length else wanted


def _size(shape: tuple[int, ...], kind: str) -> int:
    return prod(shape) // _BY_NAME[kind].block_length * _BY_NAME[kind].block_bytes
