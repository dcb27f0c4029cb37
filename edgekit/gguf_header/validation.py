"""Refuses, with a reason, the models that llama.cpp would abort on or fail to load without one.

llama.cpp checks much of a model with assertions that end the process. What is checked here comes from
reading its loader (llama-model.cpp, llama-model-loader.cpp, llama-vocab.cpp, 0c1e57098) and from loading
damaged models in child processes: tests/edgekit/gguf_header/ holds the cases.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, NoReturn

from edgekit.errors import ModelFileError
from edgekit.gguf_header.reader import GgufHeader, TensorInfo
from edgekit.gguf_header.tokenizer_validation import validate_tokenizer

__all__ = ["KNOWN_ARCHITECTURES", "Hyperparameters", "expected_tensors", "hyperparameters", "validate_model"]

KNOWN_ARCHITECTURES: Final = ("llama", "qwen2", "qwen3")

MAX_LAYERS: Final = 512
MAX_NUMBER: Final = 2**31 - 1
TENSOR_ALIGNMENT: Final = 32
ROPE_SCALINGS: Final = ("none", "linear", "yarn", "longrope")
# Types that only carry activations inside llama.cpp, or integers: no kernel multiplies with them.
UNUSABLE_WEIGHT_TYPES: Final = frozenset({"Q8_1", "Q8_K", "I8", "I16", "I32", "I64", "F64"})


@dataclass(frozen=True, slots=True)
class Hyperparameters:
    """The numbers that give every tensor its shape."""

    architecture: str
    layers: int
    embedding_length: int
    feed_forward_length: int
    heads: int
    kv_heads: int
    head_length: int
    context_train_tokens: int


def validate_model(header: GgufHeader) -> None:
    """Check that llama.cpp can load the model and decode with it.

    Raises:
        ModelFileError: what is wrong, with the metadata key or tensor.
    """
    if header.alignment < TENSOR_ALIGNMENT:
        _fail(header, f"general.alignment is {header.alignment}; llama.cpp needs {TENSOR_ALIGNMENT} or more")
    shape = hyperparameters(header)
    _validate_optional_values(header, shape)
    tokens = validate_tokenizer(header)
    _validate_tensors(header, shape, tokens)


def hyperparameters(header: GgufHeader) -> Hyperparameters:
    """Read and check the numbers of a known architecture.

    Raises:
        ModelFileError: the architecture is not known, or a number is missing, of the wrong type or out of
            its range.
    """
    architecture = header.metadata.get("general.architecture")
    if architecture not in KNOWN_ARCHITECTURES or not isinstance(architecture, str):
        known = ", ".join(KNOWN_ARCHITECTURES)
        raise ModelFileError(
            f"{header.path}: general.architecture is {architecture!r}; known architectures are {known}"
        )
    layers = _number(header, f"{architecture}.block_count", most=MAX_LAYERS)
    width = _number(header, f"{architecture}.embedding_length")
    heads = _number(header, f"{architecture}.attention.head_count")
    kv_heads = _number(header, f"{architecture}.attention.head_count_kv", default=heads)
    if heads % kv_heads:
        _fail(
            header,
            f"{architecture}.attention.head_count_kv is {kv_heads}, which does not divide {heads} heads",
        )
    head_length = _number(header, f"{architecture}.attention.key_length", default=width // heads)
    value_length = _number(header, f"{architecture}.attention.value_length", default=width // heads)
    rotated = _number(header, f"{architecture}.rope.dimension_count", default=head_length)
    if head_length != value_length:
        _fail(header, f"{architecture}.attention.value_length is {value_length}, key_length is {head_length}")
    if rotated != head_length:
        _fail(
            header, f"{architecture}.rope.dimension_count is {rotated}; the heads have length {head_length}"
        )
    if head_length % 2:
        _fail(header, f"heads have the odd length {head_length}; rotary embeddings work on pairs")
    return Hyperparameters(
        architecture=architecture,
        layers=layers,
        embedding_length=width,
        feed_forward_length=_number(header, f"{architecture}.feed_forward_length"),
        heads=heads,
        kv_heads=kv_heads,
        head_length=head_length,
        context_train_tokens=_number(header, f"{architecture}.context_length"),
    )


def expected_tensors(shape: Hyperparameters, vocabulary: int) -> Iterator[tuple[str, tuple[int, ...], bool]]:
    """Every tensor that llama.cpp takes: name, shape in ggml's order, whether it must be there."""
    is_llama = shape.architecture == "llama"
    width, ffn = shape.embedding_length, shape.feed_forward_length
    q_width, kv_width = shape.heads * shape.head_length, shape.kv_heads * shape.head_length
    yield "token_embd.weight", (width, vocabulary), True
    yield "output_norm.weight", (width,), True
    yield "output.weight", (width, vocabulary), False
    if is_llama:
        yield "rope_freqs.weight", (shape.head_length // 2,), False
    if shape.architecture == "qwen2":
        yield "output.bias", (vocabulary,), False
    for index in range(shape.layers):
        block = f"blk.{index}"
        yield f"{block}.attn_norm.weight", (width,), True
        for name, rows in (("attn_q", q_width), ("attn_k", kv_width), ("attn_v", kv_width)):
            yield f"{block}.{name}.weight", (width, rows), True
            yield f"{block}.{name}.bias", (rows,), False
        yield f"{block}.attn_output.weight", (q_width, width), True
        if shape.architecture == "qwen3":
            yield f"{block}.attn_q_norm.weight", (shape.head_length,), True
            yield f"{block}.attn_k_norm.weight", (shape.head_length,), True
        yield f"{block}.ffn_norm.weight", (width,), True
        for name, columns, rows in (
            ("ffn_gate", width, ffn),
            ("ffn_up", width, ffn),
            ("ffn_down", ffn, width),
        ):
            yield f"{block}.{name}.weight", (columns, rows), True
            if is_llama:
                yield f"{block}.{name}.bias", (rows,), False
        if is_llama:
            yield f"{block}.attn_output.bias", (width,), False


def _validate_tensors(header: GgufHeader, shape: Hyperparameters, tokens: int) -> None:
    remaining = {tensor.name: tensor for tensor in header.tensors}
    for name, wanted, required in expected_tensors(shape, tokens):
        tensor = remaining.pop(name, None)
        if tensor is not None:
            _validate_tensor(header, tensor, wanted)
        elif required:
            _fail(header, f"tensor '{name}' is missing")
    for name in sorted(remaining):
        # NVFP4 matrices come with scales of their own.
        if not name.endswith((".scale", ".input_scale")):
            _fail(header, f"tensor '{name}' is not part of a {shape.architecture} of {shape.layers} layers")


def _validate_tensor(header: GgufHeader, tensor: TensorInfo, wanted: tuple[int, ...]) -> None:
    if _without_trailing_ones(tensor.shape) != _without_trailing_ones(wanted):
        _fail(
            header, f"tensor '{tensor.name}' has shape {list(tensor.shape)}; the metadata says {list(wanted)}"
        )
    if tensor.type_name in UNUSABLE_WEIGHT_TYPES:
        _fail(header, f"tensor '{tensor.name}' is of type {tensor.type_name}, which no kernel computes with")
    if len(wanted) == 1 and tensor.type_name != "F32":
        _fail(header, f"tensor '{tensor.name}' is of type {tensor.type_name}; llama.cpp needs F32 here")


def _without_trailing_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    while len(shape) > 1 and shape[-1] == 1:
        shape = shape[:-1]
    return shape


def _validate_optional_values(header: GgufHeader, shape: Hyperparameters) -> None:
    name = shape.architecture
    _finite(header, f"{name}.attention.layer_norm_rms_epsilon", required=True)
    _finite(header, f"{name}.rope.freq_base")
    _finite(header, f"{name}.rope.scaling.factor")
    _number(header, f"{name}.rope.scaling.original_context_length", default=1)
    scaling = header.metadata.get(f"{name}.rope.scaling.type", "none")
    if scaling not in ROPE_SCALINGS:
        _fail(header, f"{name}.rope.scaling.type is {scaling!r}; known are {', '.join(ROPE_SCALINGS)}")
    for key in ("expert_count", "expert_used_count", "expert_group_count", "nextn_predict_layers"):
        value = header.metadata.get(f"{name}.{key}", 0)
        if value != 0:
            _fail(header, f"{name}.{key} is {value!r}; known are dense models without extra heads")
    for key, kind in (("general.name", "STRING"), ("general.file_type", "UINT32")):
        if header.value_types.get(key, kind) != kind:
            _fail(header, f"metadata key '{key}' is of type {header.value_types[key]}, not {kind}")


def _number(header: GgufHeader, key: str, *, default: int | None = None, most: int = MAX_NUMBER) -> int:
    """A positive UINT32."""
    value = header.metadata.get(key, default)
    if value is None:
        _fail(header, f"metadata key '{key}' is missing")
    if not isinstance(value, int) or header.value_types.get(key, "UINT32") != "UINT32":
        _fail(header, f"metadata key '{key}' is of type {header.value_types.get(key)}, not UINT32")
    if not 0 < value <= most:
        _fail(header, f"{key} is {value}, not between 1 and {most}")
    return value


def _finite(header: GgufHeader, key: str, *, required: bool = False) -> None:
    value = header.metadata.get(key)
    if value is None:
        if required:
            _fail(header, f"metadata key '{key}' is missing")
        return
    if not isinstance(value, float) or header.value_types[key] != "FLOAT32":
        _fail(header, f"metadata key '{key}' is of type {header.value_types[key]}, not FLOAT32")
    if not (math.isfinite(value) and value >= 0):
        _fail(header, f"{key} is {value}")


def _fail(header: GgufHeader, problem: str) -> NoReturn:
    raise ModelFileError(f"{header.path}: {problem}")
