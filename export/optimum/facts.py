"""What config.json and the headers of the weights say of a decoder, whatever its architecture calls it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any, Final

from edgekit.errors import ModelFileError
from edgekit.facts import ModelFacts
from export.student.config import read_json
from export.student.provenance import card_facts, checkpoint_name
from export.student.safetensors_file import StoredTensor, open_safetensors
from export.student.weight_reader import FLOAT_STORAGE

__all__ = ["checkpoint_facts", "context_tokens", "declared_token", "weight_files"]

_INDEX: Final = "model.safetensors.index.json"
_LAYERS: Final = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")
_WIDTH: Final = ("hidden_size", "n_embd", "d_model")
_HEADS: Final = ("num_attention_heads", "n_head", "num_heads", "n_heads")
_KV_HEADS: Final = ("num_key_value_heads", "num_kv_heads", "n_head_kv", "kv_n_heads")
_FEED_FORWARD: Final = ("intermediate_size", "n_inner", "ffn_dim", "ffn_hidden_size")
_CONTEXT: Final = ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "seq_length")
_DEFAULT_CONTEXT_TOKENS: Final = 2048


def checkpoint_facts(model: Path, config: Mapping[str, Any]) -> ModelFacts:
    """The facts of a checkpoint of float weights.

    Args:
        model: its directory.
        config: its config.json.

    Raises:
        ModelFileError: a size is missing, or the weights are missing, cut off or not safetensors.
    """
    text = _language(config)
    width, heads = _size(model, text, _WIDTH), _size(model, text, _HEADS)
    vocabulary = _size(model, text, ("vocab_size",))
    tensors = _weights(model)
    sizes = Counter[str]()
    for tensor in tensors:
        sizes[tensor.storage] += tensor.size_bytes
    if not sizes:
        raise ModelFileError(f"{model}: the safetensors files hold no float weights")
    tables = [tensor for tensor in tensors if len(tensor.shape) == 2 and tensor.shape[0] == vocabulary]
    tied = config.get("tie_word_embeddings") is True or len(tables) < 2
    embedding_bytes = 0 if tied else min(tensor.size_bytes for tensor in tables)
    license_name, base_model = card_facts(model)
    return ModelFacts(
        name=checkpoint_name(model),
        architecture=config["model_type"],
        parameters=sum(prod(tensor.shape) for tensor in tensors),
        weight_bytes=sizes.total(),
        bytes_per_token=sizes.total() - embedding_bytes,
        quantization=max(sizes, key=lambda storage: sizes[storage]),
        layers=_size(model, text, _LAYERS),
        embedding_length=width,
        # What GPT-2 and its kin mean by leaving it out.
        feed_forward_length=_find(text, _FEED_FORWARD) or 4 * width,
        attention_heads=heads,
        attention_kv_heads=_kv_heads(text, heads),
        head_length=_find(text, ("head_dim",)) or max(1, width // heads),
        vocabulary=vocabulary,
        context_train_tokens=context_tokens(config),
        tied_embeddings=tied,
        license=license_name,
        base_model=base_model,
    )


def weight_files(model: Path) -> list[Path]:
    """The safetensors files of a checkpoint, as transformers chooses them.

    Raises:
        ModelFileError: there are none, or the index names one that is missing.
    """
    if (model / "model.safetensors").is_file():
        return [model / "model.safetensors"]
    if not (model / _INDEX).is_file():
        raise ModelFileError(
            f"{model}: neither model.safetensors nor {_INDEX} is there",
            hint="pytorch_model.bin files are not read: save the checkpoint with safe_serialization=True",
        )
    weight_map = read_json(model / _INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise ModelFileError(f"{model / _INDEX}: no 'weight_map'")
    files = [model / name for name in sorted(set(weight_map.values()))]
    for file in files:
        if file.parent != model or not file.is_file():
            raise ModelFileError(f"{file}: the shard is missing", hint="download it as well")
    return files


def context_tokens(config: Mapping[str, Any]) -> int:
    """Tokens that a model was made for; 2048, a common default, where its config.json does not say."""
    return _find(_language(config), _CONTEXT) or _DEFAULT_CONTEXT_TOKENS


def declared_token(directory: Path, config: Mapping[str, Any], kind: str) -> int | list[int] | None:
    """Id of the token that is declared as "bos", "eos" or "pad"; there may be several.

    As transformers generates: generation_config.json goes before config.json.
    """
    path = directory / "generation_config.json"
    generation = read_json(path) if path.is_file() else {}
    value = generation.get(f"{kind}_token_id")
    value = _language(config).get(f"{kind}_token_id") if value is None else value
    return value if isinstance(value, int | list) else None


def _language(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The fields of the language model, which those of several modalities nest."""
    nested = config.get("text_config")
    return {**config, **nested} if isinstance(nested, dict) else config


def _weights(model: Path) -> list[StoredTensor]:
    """All float weights. Masks that old checkpoints store have four dimensions, or are of another type."""
    return [
        tensor
        for file in weight_files(model)
        for tensor in open_safetensors(file).tensors.values()
        if tensor.storage in FLOAT_STORAGE and 1 <= len(tensor.shape) <= 3 and tensor.size_bytes
    ]


def _kv_heads(text: Mapping[str, Any], heads: int) -> int:
    attention = text.get("attn_config")  # MPT's
    nested = attention if isinstance(attention, dict) else {}
    declared = _find(text, _KV_HEADS) or _find(nested, _KV_HEADS)
    # Falcon and GPT-BigCode; Falcon's newer architecture goes by the number.
    if text.get("multi_query") is True and text.get("new_decoder_architecture") is not True:
        return 1
    return declared or heads


def _find(text: Mapping[str, Any], keys: Sequence[str]) -> int | None:
    """The first of some fields that holds a positive whole number."""
    return next((text[key] for key in keys if type(text.get(key)) is int and text[key] > 0), None)


def _size(model: Path, text: Mapping[str, Any], keys: Sequence[str]) -> int:
    value = _find(text, keys)
    if value is None:
        raise ModelFileError(f"{model / 'config.json'}: no usable {' or '.join(repr(key) for key in keys)}")
    return value
