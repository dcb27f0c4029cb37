"""genai_config.json for a graph of optimum-onnx: onnxruntime-genai is told its names of inputs and outputs.

Source: onnxruntime-genai 0.18, src/config.cpp; `type` "decoder" stands for any decoder with a cache.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from export.optimum.facts import context_tokens, declared_token
from export.runtimes.optimum_decoder import OptimumDecoder

__all__ = ["write_genai_config"]


def write_genai_config(directory: Path, decoder: OptimumDecoder, config: Mapping[str, Any]) -> bool:
    """Write genai_config.json, where the graph keeps its cache as onnxruntime-genai expects it.

    Args:
        config: the checkpoint's config.json.

    Returns:
        False, and writes nothing, where the cache is laid out otherwise than [batch, heads, tokens, size].
    """
    shape = decoder.cache_shape
    if len(shape) != 4 or not isinstance(shape[1], int) or not isinstance(shape[3], int):
        return False
    text = {**config, **(config.get("text_config") or {})}
    context = context_tokens(config)
    heads = next((text[key] for key in ("num_attention_heads", "n_head") if key in text), shape[1])
    width = next((text[key] for key in ("hidden_size", "n_embd") if key in text), heads * shape[3])
    names: dict[str, str] = {
        name: name for name in ("input_ids", "attention_mask", "position_ids") if name in decoder.inputs
    }
    ids = {kind: declared_token(directory, config, kind) for kind in ("bos", "eos", "pad")}
    eos = ids["eos"][0] if isinstance(ids["eos"], list) and ids["eos"] else ids["eos"]
    document = {
        "model": {
            "type": "decoder",
            "bos_token_id": ids["bos"] if ids["bos"] is not None else eos,
            "eos_token_id": ids["eos"],
            "pad_token_id": ids["pad"] if ids["pad"] is not None else eos,
            "vocab_size": text["vocab_size"],
            "context_length": context,
            "decoder": {
                "filename": "model.onnx",
                "session_options": {},
                "hidden_size": width,
                "head_size": shape[3],
                "num_attention_heads": heads,
                "num_key_value_heads": shape[1],
                "num_hidden_layers": decoder.layers,
                "inputs": {
                    **names,
                    "past_key_names": "past_key_values.%d.key",
                    "past_value_names": "past_key_values.%d.value",
                },
                "outputs": {
                    "logits": "logits",
                    "present_key_names": "present.%d.key",
                    "present_value_names": "present.%d.value",
                },
            },
        },
        # The graph returns a longer cache with each step: it cannot be written in place.
        "search": {"max_length": context, "past_present_share_buffer": False},
    }
    (directory / "genai_config.json").write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    return True
