"""llama.cpp's names for the tensors of a Hugging Face checkpoint of the Llama family."""

from __future__ import annotations

import re
from types import MappingProxyType
from typing import Final

from edgekit.errors import ModelFileError

__all__ = ["gguf_name"]

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
