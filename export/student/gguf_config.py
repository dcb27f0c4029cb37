"""A GGUF's hyperparameters as a checkpoint's config.json.

The inverse of what convert_hf_to_gguf.py of llama.cpp 0c1e57098 writes, with the defaults of llama.cpp's
loader (llama-model.cpp, llama-context.cpp) for what a file leaves out.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from types import MappingProxyType
from typing import Any, Final, NoReturn

import numpy as np
from numpy.typing import NDArray

from edgekit.errors import ModelFileError
from edgekit.gguf_header import GgufHeader
from edgekit.gguf_header.validation import Hyperparameters, hyperparameters
from export.student.config import ARCHITECTURES, CheckpointConfig, RopeScaling

__all__ = ["SPECIAL_ID_KEYS", "config_from_gguf"]

SPECIAL_ID_KEYS: Final = MappingProxyType(
    {
        "bos": "tokenizer.ggml.bos_token_id",
        "eos": "tokenizer.ggml.eos_token_id",
        "unk": "tokenizer.ggml.unknown_token_id",
        "sep": "tokenizer.ggml.seperator_token_id",
        "pad": "tokenizer.ggml.padding_token_id",
        "mask": "tokenizer.ggml.mask_token_id",
        "eot": "tokenizer.ggml.eot_token_id",
        "eom": "tokenizer.ggml.eom_token_id",
    }
)
"""Kind of special token to its key, gguf's spelling included."""

_KEEP: Final = "export it as a GGUF: its own metadata is then kept as it is"
_DEFAULT_ROPE_THETA: Final = 10000.0
_STORAGE_NAMES: Final = MappingProxyType({"F32": "float32", "F16": "float16", "BF16": "bfloat16"})


def config_from_gguf(
    header: GgufHeader, *, stored_as: str, divisors: NDArray[np.float32] | None
) -> CheckpointConfig:
    """The config of a GGUF. Its `raw` can be written as config.json.

    Args:
        stored_as: type of the float matrices, "BF16", "F16" or "F32".
        divisors: the values of the tensor rope_freqs.weight, float32 [head_length / 2], or None.

    Raises:
        ModelFileError: a setting has no counterpart in a checkpoint of the family.
    """
    shape = hyperparameters(header)
    names = {tensor.name for tensor in header.tensors}
    embedding = next(tensor for tensor in header.tensors if tensor.name == "token_embd.weight")
    vocabulary = embedding.elements // shape.embedding_length
    declared = shape.architecture != "qwen2" or shape.head_length * shape.heads != shape.embedding_length
    scaling = _rope_scaling(header, shape, divisors)
    theta = _decimal(header.metadata.get(f"{shape.architecture}.rope.freq_base", _DEFAULT_ROPE_THETA))
    epsilon = _decimal(header.metadata[f"{shape.architecture}.attention.layer_norm_rms_epsilon"])
    tied = "output.weight" not in names
    attention_bias = shape.architecture != "qwen2" and "blk.0.attn_q.bias" in names
    mlp_bias = "blk.0.ffn_up.bias" in names
    raw: dict[str, Any] = {
        "architectures": [_class_name(shape.architecture)],
        "model_type": shape.architecture,
        "hidden_size": shape.embedding_length,
        "intermediate_size": shape.feed_forward_length,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        **({"head_dim": shape.head_length} if declared else {}),
        "vocab_size": vocabulary,
        "max_position_embeddings": shape.context_train_tokens,
        "hidden_act": "silu",
        "rms_norm_eps": epsilon,
        "rope_theta": theta,
        "rope_scaling": None if scaling is None else dict(scaling.parameters),
        "attention_bias": attention_bias,
        **({"mlp_bias": mlp_bias} if shape.architecture == "llama" else {}),
        "tie_word_embeddings": tied,
        "use_cache": True,
        "torch_dtype": _STORAGE_NAMES[stored_as],
        **dict(_token_ids(header, vocabulary)),
    }
    return CheckpointConfig(
        architecture=shape.architecture,
        layers=shape.layers,
        embedding_length=shape.embedding_length,
        feed_forward_length=shape.feed_forward_length,
        heads=shape.heads,
        kv_heads=shape.kv_heads,
        head_length=shape.head_length,
        head_length_declared=declared,
        vocabulary=vocabulary,
        context_tokens=shape.context_train_tokens,
        rms_norm_epsilon=epsilon,
        rope_theta=theta,
        rope_scaling=scaling,
        tied_embeddings=tied,
        attention_bias=attention_bias,
        mlp_bias=mlp_bias,
        raw=MappingProxyType(raw),
    )


def _class_name(architecture: str) -> str:
    return next(name for name, known in ARCHITECTURES.items() if known == architecture)


def _token_ids(header: GgufHeader, vocabulary: int) -> Iterator[tuple[str, int]]:
    for kind in ("bos", "eos", "pad"):
        value = header.metadata.get(SPECIAL_ID_KEYS[kind])
        if isinstance(value, int) and value < vocabulary:
            yield f"{kind}_token_id", value


def _rope_scaling(
    header: GgufHeader, shape: Hyperparameters, divisors: NDArray[np.float32] | None
) -> RopeScaling | None:
    prefix = f"{shape.architecture}.rope"
    factor = header.metadata.get(f"{prefix}.scaling.factor", header.metadata.get(f"{prefix}.scale_linear"))
    factor = _decimal(factor) if factor else 1.0
    # A factor without a type is linear, in llama.cpp and here.
    kind = header.metadata.get(f"{prefix}.scaling.type", "none" if factor == 1.0 else "linear")
    attention = _decimal(header.metadata.get(f"{prefix}.scaling.attn_factor", 1.0))
    if kind == "none" or (kind == "linear" and factor == 1.0):
        kind = "none"
    if kind not in ("none", "linear", "yarn"):
        _fail(header, f"{prefix}.scaling.type is {kind!r}; known are none, linear and yarn")
    if attention != 1.0 and kind != "yarn":
        _fail(header, f"{prefix}.scaling.attn_factor is {attention}; it is known for yarn only")
    if divisors is not None and not np.all(divisors == 1.0):
        if kind != "none":
            _fail(header, f"rope_freqs.weight and {prefix}.scaling.type {kind!r} are there at once")
        theta = _decimal(header.metadata.get(f"{prefix}.freq_base", _DEFAULT_ROPE_THETA))
        return RopeScaling("llama3", MappingProxyType(_llama3(header, shape, theta, divisors)))
    if kind == "none":
        return None
    parameters: dict[str, Any] = {"rope_type": kind, "factor": factor}
    if kind == "yarn":
        parameters.update(_yarn(header, shape, factor, attention))
    return RopeScaling(str(kind), MappingProxyType(parameters))


def _yarn(header: GgufHeader, shape: Hyperparameters, factor: float, attention: float) -> dict[str, Any]:
    prefix = f"{shape.architecture}.rope.scaling"
    original = header.metadata.get(f"{prefix}.original_context_length", shape.context_train_tokens)
    if header.metadata.get(f"{prefix}.yarn_log_multiplier"):
        _fail(header, f"{prefix}.yarn_log_multiplier is set; no checkpoint of the family has the like")
    extrapolation = _decimal(header.metadata.get(f"{prefix}.yarn_ext_factor", 1.0))
    if extrapolation != 1.0:
        _fail(header, f"{prefix}.yarn_ext_factor is {extrapolation}; checkpoints know 1.0 only")
    found: dict[str, Any] = {"original_max_position_embeddings": original}
    if attention != 1.0:
        found["attention_factor"] = attention * (1.0 + 0.1 * math.log(factor))
    for key, name in (
        ("yarn_ext_factor", "extrapolation_factor"),
        # DeepSeek-R1-0528's name for it. llama.cpp reads and ignores it, as transformers does.
        ("yarn_attn_factor", "attn_factor"),
        ("yarn_beta_fast", "beta_fast"),
        ("yarn_beta_slow", "beta_slow"),
    ):
        value = header.metadata.get(f"{prefix}.{key}")
        if value is not None:
            found[name] = _decimal(value)
    return found


def _llama3(
    header: GgufHeader, shape: Hyperparameters, theta: float, divisors: NDArray[np.float32]
) -> dict[str, Any]:
    """The parameters that give these divisors.

    Raises:
        ModelFileError: none do: the divisors are of another scaling.
    """
    for factor, low, high, trained in _llama3_candidates(theta, divisors):
        made = _llama3_divisors(theta, 2 * divisors.size, factor, low, high, trained)
        # Libraries differ in the last bits of a power.
        if np.allclose(made, divisors, rtol=1e-6, atol=0):
            return {
                "rope_type": "llama3",
                "factor": factor,
                "low_freq_factor": low,
                "high_freq_factor": high,
                "original_max_position_embeddings": trained,
            }
    shown = np.round(divisors[:: max(1, divisors.size // 8)], 4).tolist()
    raise ModelFileError(
        f"{header.path}: rope_freqs.weight holds divisors that llama3 rope scaling does not give "
        f"with rope theta {theta}: {shown}",
        hint=_KEEP,
    )


def _llama3_candidates(
    theta: float, divisors: NDArray[np.float32]
) -> Iterator[tuple[float, float, float, int]]:
    factor = _decimal(divisors.max())
    yield factor, 1.0, 4.0, 8192  # all Llama 3 releases
    wavelengths = 2 * math.pi * np.power(theta, np.arange(divisors.size) / divisors.size)
    blended = (divisors > 1.0) & (divisors < np.float32(factor))
    if np.count_nonzero(blended) < 2:
        return
    # 1 / divisor is linear in the frequency there, and (low, high, trained) are known up to a common factor.
    shares = (1.0 / divisors[blended] - 1.0 / factor) / (1.0 - 1.0 / factor)
    slope, offset = np.polyfit(1.0 / wavelengths[blended], shares, 1)
    if offset < 0 < slope:
        high = 1.0 - 1.0 / offset
        trained = round(float(slope * (high - 1.0)))
        yield factor, 1.0, round(float(high), 4), trained


def _llama3_divisors(
    theta: float, head_length: int, factor: float, low: float, high: float, trained: int
) -> NDArray[np.float32]:
    """float32 [head_length / 2]. Source: transformers, _compute_llama3_parameters."""
    exponents = np.arange(0, head_length, 2, dtype=np.float32) / np.float32(head_length)
    wavelengths = np.float32(2 * math.pi) * np.power(np.float32(theta), exponents)
    shares = np.clip((trained / wavelengths - low) / (high - low), 0.0, 1.0)
    divisors: NDArray[np.float32] = (1.0 / ((1.0 - shares) / factor + shares)).astype(np.float32)
    return divisors


def _decimal(value: object) -> float:
    """A float32 as the shortest decimal that stands for it: 1e-05, not 9.999999747378752e-06."""
    assert isinstance(value, int | float | np.floating)
    return float(str(np.float32(value)))


def _fail(header: GgufHeader, problem: str) -> NoReturn:
    raise ModelFileError(f"{header.path}: {problem}", hint=_KEEP)
