"""Reads a checkpoint's config.json: the numbers of a Llama, Qwen2 or Qwen3 model.

Field names and defaults are those of transformers 5 (LlamaConfig, Qwen2Config, Qwen3Config). A number that
gives the tensors their shapes has no default here: real checkpoints always carry it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, NoReturn

from edgekit.errors import ModelFileError

__all__ = ["ARCHITECTURES", "CheckpointConfig", "RopeScaling", "read_config", "read_json"]

ARCHITECTURES: Final = MappingProxyType(
    {"LlamaForCausalLM": "llama", "Qwen2ForCausalLM": "qwen2", "Qwen3ForCausalLM": "qwen3"}
)
"""Class name in config.json to GGUF architecture."""

KNOWN_ROPE_TYPES: Final = ("default", "linear", "llama3", "yarn")
MAX_NUMBER: Final = 2**31 - 1


@dataclass(frozen=True, slots=True)
class RopeScaling:
    """How rotary embeddings are stretched beyond the trained context. `kind` is transformers' rope_type."""

    kind: str
    parameters: Mapping[str, Any]

    def number(self, key: str, default: float) -> float:
        value = self.parameters.get(key, default)
        return float(value if isinstance(value, int | float) else default)


@dataclass(frozen=True, slots=True)
class CheckpointConfig:
    """Hyperparameters of a checkpoint. Lengths in elements."""

    architecture: str
    layers: int
    embedding_length: int
    feed_forward_length: int
    heads: int
    kv_heads: int
    head_length: int
    head_length_declared: bool
    """Whether head_length is a field of its own (Llama, Qwen3) or follows from the width (Qwen2)."""
    vocabulary: int
    context_tokens: int
    rms_norm_epsilon: float
    rope_theta: float
    rope_scaling: RopeScaling | None
    tied_embeddings: bool
    attention_bias: bool
    mlp_bias: bool
    raw: Mapping[str, Any]

    def tensor_shapes(self) -> dict[str, tuple[int, ...]]:
        """Every tensor that the model needs, by its Hugging Face name, shape in numpy's order."""
        width, ffn = self.embedding_length, self.feed_forward_length
        q_width, kv_width = self.heads * self.head_length, self.kv_heads * self.head_length
        shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (self.vocabulary, width)}
        for index in range(self.layers):
            layer = f"model.layers.{index}"
            shapes[f"{layer}.input_layernorm.weight"] = (width,)
            for name, rows in (("q_proj", q_width), ("k_proj", kv_width), ("v_proj", kv_width)):
                shapes[f"{layer}.self_attn.{name}.weight"] = (rows, width)
                if self.architecture == "qwen2" or self.attention_bias:
                    shapes[f"{layer}.self_attn.{name}.bias"] = (rows,)
            shapes[f"{layer}.self_attn.o_proj.weight"] = (width, q_width)
            if self.attention_bias and self.architecture != "qwen2":
                shapes[f"{layer}.self_attn.o_proj.bias"] = (width,)
            if self.architecture == "qwen3":
                shapes[f"{layer}.self_attn.q_norm.weight"] = (self.head_length,)
                shapes[f"{layer}.self_attn.k_norm.weight"] = (self.head_length,)
            shapes[f"{layer}.post_attention_layernorm.weight"] = (width,)
            for name, shape in (
                ("gate_proj", (ffn, width)),
                ("up_proj", (ffn, width)),
                ("down_proj", (width, ffn)),
            ):
                shapes[f"{layer}.mlp.{name}.weight"] = shape
                if self.mlp_bias:
                    shapes[f"{layer}.mlp.{name}.bias"] = shape[:1]
        shapes["model.norm.weight"] = (width,)
        if not self.tied_embeddings:
            shapes["lm_head.weight"] = (self.vocabulary, width)
        return shapes


def read_config(path: Path) -> CheckpointConfig:
    """Read and check a config.json.

    Raises:
        ModelFileError: the file is missing or malformed, the architecture or a setting is not known, or a
            number is missing or makes no sense.
    """
    raw = read_json(path)
    architecture = _architecture(path, raw)
    width, heads = _number(path, raw, "hidden_size"), _number(path, raw, "num_attention_heads")
    kv_heads = _number(path, raw, "num_key_value_heads", default=heads)
    if heads % kv_heads:
        _fail(path, f"num_key_value_heads is {kv_heads}, which does not divide {heads} heads")
    declared = architecture != "qwen2" or raw.get("head_dim") is not None
    head_length = _number(path, raw, "head_dim", default=128 if architecture == "qwen3" else width // heads)
    if head_length % 2:
        _fail(path, f"the heads have the odd length {head_length}; rotary embeddings work on pairs")
    theta, scaling = _rope(path, raw)
    if raw.get("hidden_act", "silu") != "silu":
        _fail(path, f"hidden_act is {raw['hidden_act']!r}; only 'silu' is known")
    context = _number(path, raw, "max_position_embeddings")
    _refuse_sliding_window(path, raw, architecture, context)
    return CheckpointConfig(
        architecture=architecture,
        layers=_number(path, raw, "num_hidden_layers", most=512),
        embedding_length=width,
        feed_forward_length=_number(path, raw, "intermediate_size"),
        heads=heads,
        kv_heads=kv_heads,
        head_length=head_length,
        head_length_declared=declared,
        vocabulary=_number(path, raw, "vocab_size"),
        context_tokens=context,
        rms_norm_epsilon=_positive(path, raw, "rms_norm_eps", default=1e-6),
        rope_theta=theta,
        rope_scaling=scaling,
        tied_embeddings=bool(raw.get("tie_word_embeddings", False)),
        attention_bias=bool(raw.get("attention_bias", False)),
        mlp_bias=bool(raw.get("mlp_bias", False)),
        raw=MappingProxyType(raw),
    )


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file that holds an object.

    Raises:
        ModelFileError: the file is missing, is not JSON, or holds something else.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ModelFileError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise ModelFileError(f"{path}: not JSON: {error}") from error
    if not isinstance(value, dict):
        raise ModelFileError(f"{path}: not a JSON object")
    return value


def _architecture(path: Path, raw: dict[str, Any]) -> str:
    classes = raw.get("architectures")
    name = classes[0] if isinstance(classes, list) and classes else None
    known = ARCHITECTURES.get(name) if isinstance(name, str) else None
    if known is None:
        raise ModelFileError(
            f"{path}: the architecture is {name!r}; known are {', '.join(ARCHITECTURES)}",
            hint="other decoders of float weights may go to ONNX: edgekit export --exporter optimum",
        )
    return known


def _refuse_sliding_window(path: Path, raw: dict[str, Any], architecture: str, context: int) -> None:
    """Layers that see a part of the context only: llama.cpp's families have none, and would see all."""
    if architecture == "llama" or not raw.get("use_sliding_window") or raw.get("sliding_window") is None:
        return
    window, kinds = _number(path, raw, "sliding_window"), raw.get("layer_types")
    if isinstance(kinds, list):
        slides = "sliding_attention" in kinds
    else:
        first = raw.get("max_window_layers", 28)  # transformers' default
        slides = not isinstance(first, int) or first < _number(path, raw, "num_hidden_layers")
    if slides and window < context:
        raise ModelFileError(
            f"{path}: use_sliding_window is on: some layers see {window} of {context} tokens; not known here",
            hint=f"a student of up to {window} tokens: set max_position_embeddings to that",
        )


def _rope(path: Path, raw: dict[str, Any]) -> tuple[float, RopeScaling | None]:
    """Base frequency and scaling. transformers 5 keeps both in rope_parameters, 4 in two fields."""
    of_5, of_4 = raw.get("rope_parameters") or {}, raw.get("rope_scaling") or {}
    for parameters in (of_5, of_4):
        if not isinstance(parameters, dict):
            _fail(path, f"rope_scaling is {parameters!r}, not an object")
        if any(isinstance(value, dict) for value in parameters.values()):
            _fail(path, f"rope_parameters differ by kind of layer ({', '.join(parameters)}); not known here")
    if of_5 and {**of_5, **of_4} != of_5:
        # transformers goes by rope_scaling, llama.cpp's converter by rope_parameters.
        raise ModelFileError(
            f"{path}: rope_parameters and rope_scaling are not the same",
            hint="put all of it in rope_parameters and remove rope_scaling",
        )
    parameters = of_5 or of_4
    rotated = parameters.get("partial_rotary_factor", raw.get("partial_rotary_factor"))
    if rotated not in (None, 1.0):
        _fail(path, f"partial_rotary_factor is {rotated!r}; only whole heads are known")
    theta = parameters.get("rope_theta", raw.get("rope_theta", 10000.0))
    if type(theta) not in (int, float) or not theta > 0:
        _fail(path, f"rope_theta is {theta!r}")
    kind = str(parameters.get("rope_type", parameters.get("type", "default"))).lower()
    if kind not in KNOWN_ROPE_TYPES:
        _fail(path, f"the rope type is {kind!r}; known are {', '.join(KNOWN_ROPE_TYPES)}")
    if kind == "default":
        return float(theta), None
    factor = parameters.get("factor")
    if not isinstance(factor, int | float) or isinstance(factor, bool) or not factor > 0:
        _fail(path, f"rope scaling of type {kind!r} has the factor {factor!r}")
    original = parameters.get("original_max_position_embeddings", raw.get("original_max_position_embeddings"))
    if kind == "yarn":
        # transformers falls back to the current context here; llama.cpp needs the number.
        original = raw.get("max_position_embeddings") if original is None else original
    if original is not None:
        parameters = {**parameters, "original_max_position_embeddings": original}
    return float(theta), RopeScaling(kind=kind, parameters=MappingProxyType(parameters))


def _number(
    path: Path, raw: dict[str, Any], key: str, *, default: int | None = None, most: int = MAX_NUMBER
) -> int:
    value = raw.get(key)
    value = default if value is None else value
    if value is None:
        _fail(path, f"'{key}' is missing")
    if type(value) is not int or not 0 < value <= most:
        _fail(path, f"'{key}' is {value!r}, not a whole number between 1 and {most}")
    return value


def _positive(path: Path, raw: dict[str, Any], key: str, *, default: float) -> float:
    value = raw.get(key, default)
    if type(value) not in (int, float) or not value > 0:
        _fail(path, f"'{key}' is {value!r}, not a positive number")
    return float(value)


def _fail(path: Path, problem: str) -> NoReturn:
    raise ModelFileError(f"{path}: {problem}")
