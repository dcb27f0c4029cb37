"""Names of the Llama family's tensors: Hugging Face's, llama.cpp's, and from one to the other."""

from __future__ import annotations

import re
from types import MappingProxyType
from typing import Final

from edgekit.errors import ModelFileError

__all__ = ["checkpoint_tensor_name", "gguf_name"]

_OUTSIDE_LAYERS: Final = MappingProxyType(
    {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
)
_INSIDE_LAYERS: Final = MappingProxyType(
    {
        "input_layernorm": "attn_norm",
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "self_attn.q_norm": "attn_q_norm",
        "self_attn.k_norm": "attn_k_norm",
        "post_attention_layernorm": "ffn_norm",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
    }
)

_FROM_OUTSIDE: Final = MappingProxyType({short: long for long, short in _OUTSIDE_LAYERS.items()})
_FROM_INSIDE: Final = MappingProxyType({short: long for long, short in _INSIDE_LAYERS.items()})


def gguf_name(name: str) -> str:
    """llama.cpp's name for a Hugging Face tensor name of the Llama family.

    Raises:
        ModelFileError: the tensor is not part of the family.
    """
    stem, _, suffix = name.rpartition(".")
    if stem in _OUTSIDE_LAYERS:
        return f"{_OUTSIDE_LAYERS[stem]}.{suffix}"
    match = re.fullmatch(r"model\.layers\.(\d+)\.(.+)", stem)
    if match is None or match[2] not in _INSIDE_LAYERS:
        raise ModelFileError(f"tensor '{name}' has no name in llama.cpp")
    return f"blk.{match[1]}.{_INSIDE_LAYERS[match[2]]}.{suffix}"


def checkpoint_tensor_name(name: str) -> str:
    """Hugging Face's name for one of llama.cpp's; the inverse of `gguf_name`.

    Raises:
        ModelFileError: a checkpoint of the family has no such tensor.
    """
    stem, _, suffix = name.rpartition(".")
    if stem in _FROM_OUTSIDE:
        return f"{_FROM_OUTSIDE[stem]}.{suffix}"
    match = re.fullmatch(r"blk\.(\d+)\.(.+)", stem)
    if match is None or match[2] not in _FROM_INSIDE:
        raise ModelFileError(f"tensor '{name}' has no name in a checkpoint")
    return f"model.layers.{match[1]}.{_FROM_INSIDE[match[2]]}.{suffix}"
