"""Writes a checkpoint as a float GGUF, tensor by tensor, without holding the model.

What is written is what convert_hf_to_gguf.py of llama.cpp 0c1e57098 writes for the same checkpoint, tensor
for tensor and key for key: matrices in the checkpoint's own type, vectors and norms in F32, Llama's q and k
rows reordered for ggml's rotary embeddings, llama3 rope scaling as a tensor of divisors.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import numpy as np

from edgekit.errors import ExportError, MissingExtraError, ModelFileError
from export.progress import Progress, silent
from export.student.base import Array, StudentTensor, as_float32, first_non_finite
from export.student.safetensors_dir import CheckpointStudent
from export.targets.gguf_metadata import add_metadata, add_rope, add_tokenizer

try:
    import gguf
except ImportError as error:
    raise MissingExtraError("gguf", extra="export", feature="writing a GGUF") from error

__all__ = ["FLOAT_QUANTIZATIONS", "gguf_name", "write_float_gguf"]

FLOAT_QUANTIZATIONS: Final = ("F32", "F16", "BF16")

_FILE_TYPES: Final = MappingProxyType(
    {
        "F32": gguf.LlamaFileType.ALL_F32,
        "F16": gguf.LlamaFileType.MOSTLY_F16,
        "BF16": gguf.LlamaFileType.MOSTLY_BF16,
    }
)
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


@dataclass(frozen=True, slots=True)
class _Planned:
    """A tensor to write: `storage` is what it becomes."""

    name: str
    storage: str
    source: StudentTensor
    heads: int | None
    """Rotary heads whose rows are reordered, or None."""

    @property
    def size_bytes(self) -> int:
        return math.prod(self.source.shape) * (4 if self.storage == "F32" else 2)


def write_float_gguf(
    student: CheckpointStudent, path: Path, *, storage: str | None = None, progress: Progress = silent
) -> None:
    """Write a checkpoint's weights, hyperparameters and tokenizer to one GGUF file.

    Args:
        storage: type of the matrices, "BF16", "F16" or "F32"; None keeps the checkpoint's own.

    Raises:
        ModelFileError: a weight is NaN or infinite, or does not fit the type.
        ExportError: the file cannot be written. A part of it may be left at `path`.
    """
    storage = storage or student.stored_as
    planned = [_plan(student, tensor, storage) for tensor in student.tensors()]
    divisors = rope_divisors(student)
    writer = gguf.GGUFWriter(path=None, arch=student.config.architecture)
    if divisors is not None:
        writer.add_tensor_info("rope_freqs.weight", divisors.shape, divisors.dtype, divisors.nbytes)
    for item in planned:
        kind = gguf.GGMLQuantizationType[item.storage]
        dtype = np.dtype(np.float32 if item.storage == "F32" else np.float16)
        writer.add_tensor_info(item.name, item.source.shape, dtype, item.size_bytes, raw_dtype=kind)
    _add_hyperparameters(writer, student, _FILE_TYPES[storage])
    add_tokenizer(writer, student)
    try:
        writer.write_header_to_file(path)
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        if divisors is not None:
            writer.write_tensor_data(divisors)
        for values in _written(planned, progress):
            writer.write_tensor_data(values)
        writer.flush()
        for file in writer.fout or ():
            os.fsync(file.fileno())
    except OSError as error:
        raise ExportError(f"{path}: cannot be written: {error.strerror or error}") from error
    finally:
        for file in writer.fout or ():
            # A second failure to flush, on a full disk, must not hide the first.
            with contextlib.suppress(OSError):
                file.close()


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


def rope_divisors(student: CheckpointStudent) -> Array | None:
    """Divisors of the rotary frequencies for llama3 scaling: float32 [head_length / 2]. None without it.

    Source: transformers, modeling_rope_utils.py, _compute_llama3_parameters.
    """
    config = student.config
    scaling = config.rope_scaling
    if scaling is None or scaling.kind != "llama3" or config.architecture != "llama":
        return None
    exponents = np.arange(0, config.head_length, 2, dtype=np.float32) / np.float32(config.head_length)
    frequencies = np.float32(1.0) / np.power(np.float32(config.rope_theta), exponents)
    factor = scaling.number("factor", 8.0)
    low, high = scaling.number("low_freq_factor", 1.0), scaling.number("high_freq_factor", 4.0)
    trained = scaling.number("original_max_position_embeddings", 8192)
    divisors = []
    for frequency in frequencies:
        wavelength = np.float32(2 * math.pi) / frequency
        if wavelength < trained / high:
            divisors.append(1.0)
        elif wavelength > trained / low:
            divisors.append(factor)
        else:
            smooth = (np.float32(trained) / wavelength - low) / (high - low)
            divisors.append(1 / ((1 - smooth) / factor + smooth))
    return np.array(divisors, dtype=np.float32)


def _plan(student: CheckpointStudent, tensor: StudentTensor, storage: str) -> _Planned:
    name = gguf_name(tensor.name)
    heads = None
    if student.config.architecture == "llama":
        heads = {"q_proj": student.config.heads, "k_proj": student.config.kv_heads}.get(
            tensor.name.split(".")[-2]
        )
    is_vector = len(tensor.shape) == 1 or name.endswith("_norm.weight")
    return _Planned(name=name, storage="F32" if is_vector else storage, source=tensor, heads=heads)


def _written(planned: list[_Planned], progress: Progress) -> Iterator[Array]:
    done, total = 0, sum(item.size_bytes for item in planned)
    for item in planned:
        values = item.source.read()
        _refuse_non_finite(item.source, values)
        if item.heads is not None:
            values = _pairs_side_by_side(values, item.heads)
        yield _converted(item, values)
        done += item.size_bytes
        progress("writing tensors", done, total)


def _pairs_side_by_side(rows: Array, heads: int) -> Array:
    """Reorder each head's rows from (first halves, second halves) to interleaved pairs.

    Checkpoints rotate row i with row i + head_length/2; llama.cpp's "llama" rotates neighbours.
    """
    halves = rows.reshape(heads, 2, rows.shape[0] // heads // 2, *rows.shape[1:])
    reordered: Array = np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(rows.shape)
    return reordered


def _converted(item: _Planned, values: Array) -> Array:
    if item.storage == item.source.storage:
        return values
    floats = as_float32(values)
    if item.storage == "F32":
        return floats
    if item.storage == "BF16":
        return _to_bf16(floats)
    with np.errstate(over="ignore"):
        halves = floats.astype(np.float16)
    if first_non_finite(halves) is not None:
        raise ModelFileError(
            f"tensor '{item.source.name}' has values beyond F16's 65504", hint="export it as BF16 or F32"
        )
    return halves


def _to_bf16(floats: Array) -> Array:
    """Round float32 to the nearest BF16, ties to even; the result is uint16 bit patterns."""
    bits = floats.view(np.uint32)
    rounded: Array = ((bits + (0x7FFF + ((bits >> 16) & 1))) >> 16).astype(np.uint16)
    return rounded


def _refuse_non_finite(tensor: StudentTensor, values: Array) -> None:
    index = first_non_finite(values)
    if index is not None:
        position = [int(part) for part in np.unravel_index(index, tensor.shape)]
        raise ModelFileError(
            f"tensor '{tensor.name}' holds NaN or infinity at {position}",
            hint="the checkpoint is damaged, or its training diverged: get another one",
        )


def _add_hyperparameters(writer: Any, student: CheckpointStudent, file_type: int) -> None:
    config = student.config
    writer.add_type(gguf.GGUFType.MODEL)
    add_metadata(writer, student)
    writer.add_block_count(config.layers)
    writer.add_context_length(config.context_tokens)
    writer.add_embedding_length(config.embedding_length)
    writer.add_feed_forward_length(config.feed_forward_length)
    writer.add_head_count(config.heads)
    writer.add_head_count_kv(config.kv_heads)
    add_rope(writer, config)
    writer.add_layer_norm_rms_eps(config.rms_norm_epsilon)
    if config.head_length_declared:
        writer.add_key_length(config.head_length)
        writer.add_value_length(config.head_length)
    writer.add_file_type(file_type)
    if config.architecture == "llama":
        writer.add_vocab_size(config.vocabulary)
        writer.add_rope_dimension_count(config.head_length)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
