"""genai_config.json: how onnxruntime-genai loads and runs a graph.

Keys as onnxruntime-genai 0.18 reads them (src/config.cpp).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from export.student.base import DecoderStudent

__all__ = ["make_genai_config"]

_SAMPLING: Final = {
    "do_sample": False,
    "temperature": 1.0,
    "top_k": 50,
    "top_p": 1.0,
    "repetition_penalty": 1.0,
}


def make_genai_config(
    student: DecoderStudent, *, model_file: str, context_tokens: int, cuda: bool, threads: int | None
) -> dict[str, Any]:
    """The content of genai_config.json.

    Sampling settings come from the student's generation_config.json where there is one. `threads` None leaves
    their number to onnxruntime-genai, which takes half of the logical cores: right for hyperthreads, half a
    machine without.
    """
    config, generation = student.config, _generation_config(student.path)
    special = student.tokenizer.special.ids
    ends = _end_tokens(student, generation)
    cuda_options = {"cuda": {"enable_cuda_graph": "0", "enable_skip_layer_norm_strict_mode": "1"}}
    first_end = ends[0] if ends else 0
    return {
        "model": {
            "bos_token_id": special.get("bos", first_end),
            "context_length": context_tokens,
            "decoder": {
                "session_options": {
                    "log_id": "onnxruntime-genai",
                    "provider_options": [cuda_options] if cuda else [],
                    **({} if threads is None else {"intra_op_num_threads": threads}),
                },
                "filename": model_file,
                "head_size": config.head_length,
                "hidden_size": config.embedding_length,
                "inputs": {
                    "input_ids": "input_ids",
                    "attention_mask": "attention_mask",
                    "past_key_names": "past_key_values.%d.key",
                    "past_value_names": "past_key_values.%d.value",
                },
                "outputs": {
                    "logits": "logits",
                    "present_key_names": "present.%d.key",
                    "present_value_names": "present.%d.value",
                },
                "num_attention_heads": config.heads,
                "num_hidden_layers": config.layers,
                "num_key_value_heads": config.kv_heads,
            },
            "eos_token_id": ends,
            "pad_token_id": special.get("pad", first_end),
            "type": config.architecture,
            "vocab_size": config.vocabulary,
        },
        "search": {
            **{key: _setting(generation, key, default) for key, default in _SAMPLING.items()},
            "early_stopping": True,
            "max_length": context_tokens,
            "min_length": 0,
            "num_beams": 1,
            "num_return_sequences": 1,
            "past_present_share_buffer": True,
        },
    }


def _end_tokens(student: DecoderStudent, generation: Mapping[str, Any]) -> list[int]:
    """Every token that any of the files says ends an answer."""
    special = student.tokenizer.special.ids
    found: list[int] = []
    for value in (generation.get("eos_token_id"), student.config.raw.get("eos_token_id")):
        found += _token_ids(value if isinstance(value, list) else [value], student.config.vocabulary)
    found += [special[kind] for kind in ("eos", "eot", "eom") if kind in special]
    return list(dict.fromkeys(found))


def _token_ids(values: Iterable[object], vocabulary: int) -> list[int]:
    return [value for value in values if type(value) is int and 0 <= value < vocabulary]


def _setting(generation: Mapping[str, Any], key: str, default: float) -> float:
    value = generation.get(key)
    return value if isinstance(value, int | float) and value >= 0 else default


def _generation_config(path: Path) -> Mapping[str, Any]:
    """A student that is no directory has none; a malformed one says nothing."""
    try:
        value = json.loads((path / "generation_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
