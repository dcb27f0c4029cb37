"""Makes small random checkpoints of the three families, the same on every machine.

Used by the tests, and by tests/fixtures/convert_golden/regenerate.py to feed the reference converter. Only
numpy and the safetensors library are needed, so that both can import it.
"""

from __future__ import annotations

import json
import lzma
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import TensorSpec, serialize_file

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures"
SEED = 20250120

CARD = """---
license: mit
base_model:
- deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B
language:
- en
- zh
tags:
- reasoning
---
# A small random model
"""

FAMILIES: dict[str, dict[str, Any]] = {
    "R1-Tiny-Llama-1M": {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "head_dim": 16,
        "attention_bias": False,
        "mlp_bias": False,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
        "max_position_embeddings": 131072,
        "tie_word_embeddings": False,
    },
    "R1-Tiny-Qwen2": {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "max_position_embeddings": 131072,
        "use_sliding_window": False,
        "tie_word_embeddings": True,
    },
    "R1-0528-Tiny-Qwen3": {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "head_dim": 32,
        "attention_bias": False,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1000000.0,
        "rope_scaling": {
            "rope_type": "yarn",
            "factor": 4.0,
            "original_max_position_embeddings": 32768,
            "attn_factor": 0.8782488562869419,
        },
        "max_position_embeddings": 131072,
        "tie_word_embeddings": False,
    },
}
SHAPE = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 151936,
    "hidden_act": "silu",
    "bos_token_id": 151646,
    "eos_token_id": 151643,
    "torch_dtype": "bfloat16",
}


def make_config(family: str, **changes: Any) -> dict[str, Any]:
    """config.json of a family, with fields replaced."""
    return {**SHAPE, **FAMILIES[family], **changes}


def tensor_shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Names and shapes that transformers' modeling files give the parameters."""
    width, ffn = config["hidden_size"], config["intermediate_size"]
    head = config.get("head_dim") or width // config["num_attention_heads"]
    q_rows, kv_rows = config["num_attention_heads"] * head, config["num_key_value_heads"] * head
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (config["vocab_size"], width)}
    for index in range(config["num_hidden_layers"]):
        layer = f"model.layers.{index}"
        shapes[f"{layer}.self_attn.q_proj.weight"] = (q_rows, width)
        shapes[f"{layer}.self_attn.k_proj.weight"] = (kv_rows, width)
        shapes[f"{layer}.self_attn.v_proj.weight"] = (kv_rows, width)
        shapes[f"{layer}.self_attn.o_proj.weight"] = (width, q_rows)
        if config["model_type"] == "qwen2":
            shapes[f"{layer}.self_attn.q_proj.bias"] = (q_rows,)
            shapes[f"{layer}.self_attn.k_proj.bias"] = (kv_rows,)
            shapes[f"{layer}.self_attn.v_proj.bias"] = (kv_rows,)
        if config["model_type"] == "qwen3":
            shapes[f"{layer}.self_attn.q_norm.weight"] = (head,)
            shapes[f"{layer}.self_attn.k_norm.weight"] = (head,)
        shapes[f"{layer}.mlp.gate_proj.weight"] = (ffn, width)
        shapes[f"{layer}.mlp.up_proj.weight"] = (ffn, width)
        shapes[f"{layer}.mlp.down_proj.weight"] = (width, ffn)
        shapes[f"{layer}.input_layernorm.weight"] = (width,)
        shapes[f"{layer}.post_attention_layernorm.weight"] = (width,)
    shapes["model.norm.weight"] = (width,)
    if not config.get("tie_word_embeddings"):
        shapes["lm_head.weight"] = (config["vocab_size"], width)
    return shapes


def make_tensors(config: dict[str, Any], *, seed: int = SEED) -> dict[str, np.ndarray]:
    """Random weights of a trained model's size, BF16 as uint16 bit patterns."""
    tensors = {}
    for offset, (name, shape) in enumerate(tensor_shapes(config).items()):
        # One generator a tensor: a tensor's values do not depend on which others there are. Integers from
        # PCG64 are the same on all platforms, which normal() does not promise.
        bits = np.random.Generator(np.random.PCG64([seed, offset])).integers(
            0, 1 << 16, shape, dtype=np.uint32
        )
        values = (bits.astype(np.float32) / 32768 - 1) * np.float32(1 / math.sqrt(shape[-1]))
        if len(shape) == 1 and name.endswith("norm.weight"):
            values += 1
        tensors[name] = (values.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
    return tensors


def small_tokenizer() -> dict[str, Any]:
    """A tokenizer.json that splits text like Qwen's but knows bytes and a few merges only: 266 tokens."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    unprintable = [byte for byte in range(256) if byte not in printable]
    characters = {byte: chr(byte) for byte in printable}
    characters |= {byte: chr(0x100 + index) for index, byte in enumerate(unprintable)}
    merges = [["\u0120", "t"], ["h", "e"], ["\u0120t", "he"], ["i", "n"]]
    texts = [*characters.values(), *("".join(merge) for merge in merges)]
    added = ["<\uff5cend\u2581of\u2581sentence\uff5c>", "<\uff5cUser\uff5c>", "<\uff5cAssistant\uff5c>"]
    added += ["<\uff5cbegin\u2581of\u2581sentence\uff5c>", "<think>", "</think>"]
    pattern = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
        r"|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    begin = {"id": added[3], "ids": [len(texts) + 3], "tokens": [added[3]]}
    return {
        "version": "1.0",
        "added_tokens": [
            {
                "id": len(texts) + index,
                "content": text,
                "special": "think" not in text,
                **dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False),
            }
            for index, text in enumerate(added)
        ],
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False},
                {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False},
            ],
        },
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [
                {"SpecialToken": {"id": added[3], "type_id": 0}},
                {"Sequence": {"id": "A", "type_id": 0}},
            ],
            "pair": [
                {"SpecialToken": {"id": added[3], "type_id": 0}},
                {"Sequence": {"id": "A", "type_id": 0}},
                {"Sequence": {"id": "B", "type_id": 0}},
            ],
            "special_tokens": {added[3]: begin},
        },
        "decoder": {
            "type": "ByteLevel",
            "add_prefix_space": False,
            "trim_offsets": False,
            "use_regex": False,
        },
        "model": {
            "type": "BPE",
            "vocab": {text: index for index, text in enumerate(texts)},
            "merges": merges,
        },
    }


def write_small(directory: Path, family: str = "R1-Tiny-Qwen2", **changes: Any) -> Path:
    """A checkpoint of a few hundred kilobytes: the family's shape with `small_tokenizer`."""
    config = make_config(family, **{"vocab_size": 272, "bos_token_id": 263, "eos_token_id": 260, **changes})
    return write_checkpoint(directory, config, tokenizer=small_tokenizer())


def write_checkpoint(
    directory: Path,
    config: dict[str, Any],
    *,
    tensors: dict[str, np.ndarray] | None = None,
    shards: int = 1,
    tokenizer: dict[str, Any] | None = None,
    card: str | None = CARD,
) -> Path:
    """Write a checkpoint directory with the R1 tokenizer, or the one given."""
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps(config, indent=2))
    save_tensors(directory, make_tensors(config) if tensors is None else tensors, shards)
    if tokenizer is None:
        with lzma.open(FIXTURES / "r1-tokenizer" / "tokenizer.json.xz", "rb") as packed:
            (directory / "tokenizer.json").write_bytes(packed.read())
    else:
        (directory / "tokenizer.json").write_text(json.dumps(tokenizer))
    shutil.copy(FIXTURES / "r1-tokenizer" / "tokenizer_config.json", directory)
    if card is not None:
        (directory / "README.md").write_text(card)
    return directory


def write_family(directory: Path, family: str) -> Path:
    """The checkpoint of a family that the golden outputs were made from, each with its own way of storing."""
    checkpoint = write_checkpoint(
        directory / family, make_config(family), shards=2 if "Qwen2" in family else 1
    )
    if "Qwen2" in family:
        generation = {"temperature": 0.6, "top_p": 0.95, "do_sample": True, "repetition_penalty": 1.05}
        (checkpoint / "generation_config.json").write_text(json.dumps(generation))
    if "Qwen3" in family:
        tokenizer_config = json.loads((checkpoint / "tokenizer_config.json").read_text())
        (checkpoint / "chat_template.jinja").write_text(tokenizer_config.pop("chat_template") + "<think>\n")
        (checkpoint / "tokenizer_config.json").write_text(json.dumps(tokenizer_config))
        (checkpoint / "README.md").unlink()
    return checkpoint


def save_tensors(directory: Path, tensors: dict[str, np.ndarray], shards: int) -> None:
    """Write safetensors files with the reference library; uint16 arrays are stored as BF16."""
    names = list(tensors)
    groups = [names[index::shards] for index in range(shards)]
    weight_map = {}
    for index, group in enumerate(groups):
        name = "model.safetensors" if shards == 1 else f"model-{index + 1:05}-of-{shards:05}.safetensors"
        _save_file(directory / name, {key: tensors[key] for key in group})
        weight_map.update(dict.fromkeys(group, name))
    if shards > 1:
        index_json = {"metadata": {}, "weight_map": weight_map}
        (directory / "model.safetensors.index.json").write_text(json.dumps(index_json))


def _save_file(path: Path, tensors: dict[str, np.ndarray]) -> None:
    # safetensors.numpy knows no BF16, the serializer beneath it does.
    arrays = {name: np.ascontiguousarray(values) for name, values in tensors.items()}
    specs = {
        name: TensorSpec(
            dtype="bfloat16" if values.dtype == np.uint16 else values.dtype.name,
            shape=values.shape,
            data_ptr=values.ctypes.data,
            data_len=values.nbytes,
        )
        for name, values in arrays.items()
    }
    serialize_file(specs, path, {"format": "pt"})
