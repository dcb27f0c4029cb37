"""Writes a checkpoint as GGUF, rows by rows, without holding the model.

As floats it is what convert_hf_to_gguf.py of llama.cpp 0c1e57098 writes for the same checkpoint, tensor for
tensor and key for key: matrices in the checkpoint's own type, vectors and norms in F32, Llama's q and k rows
reordered for ggml's rotary embeddings, llama3 rope scaling as a tensor of divisors. Quantized it has the
bytes that llama-quantize would make of those floats, in one pass.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from edgekit.errors import ExportError, MissingExtraError
from edgekit.gguf_header.tensor_types import FILE_TYPES
from export.plan.tensors import TensorPlan, plan_tensors, tensor_facts
from export.progress import Progress, silent
from export.student.base import Array, DecoderStudent
from export.targets.gguf_metadata import add_metadata, add_rope, add_tokenizer
from export.targets.gguf_rows import converted_rows

try:
    import gguf
except ImportError as error:
    raise MissingExtraError("gguf", extra="export", feature="writing a GGUF") from error

__all__ = ["rope_divisors", "write_float_gguf", "write_gguf"]

_FILE_TYPE_NUMBERS: Final = {name: number for number, name in FILE_TYPES.items()}

Importance = Mapping[str, NDArray[np.float32]]


def write_gguf(
    student: DecoderStudent,
    path: Path,
    plan: Sequence[TensorPlan],
    quantization: str,
    *,
    importance: Importance | None = None,
    provenance: Mapping[str, str] | None = None,
    shard_bytes: int | None = None,
    progress: Progress = silent,
) -> list[Path]:
    """Write a student's weights, hyperparameters and tokenizer.

    Args:
        plan: what becomes of each tensor; see `export.plan.tensors.plan_tensors`.
        quantization: the file type, as llama-quantize spells it.
        importance: by GGUF name, float32 [columns]: the mean square of what the matrix is multiplied with.
        provenance: further keys of the metadata.
        shard_bytes: begin another file when one's tensors would exceed this; None writes one file. Shards are
            named as llama.cpp looks for them, `<stem>-00001-of-00003.gguf`.

    Returns:
        The files, the first of which a runtime opens.

    Raises:
        ModelFileError: a weight is NaN or infinite, or does not fit the type.
        ExportError: a file cannot be written. Parts may be left.
    """
    divisors = rope_divisors(student)
    writer = gguf.GGUFWriter(
        path=None, arch=student.config.architecture, split_max_size=0 if shard_bytes is None else shard_bytes
    )
    if divisors is not None:
        writer.add_tensor_info("rope_freqs.weight", divisors.shape, divisors.dtype, divisors.nbytes)
    for item in plan:
        # The dtype is not looked at where raw_dtype is given, as long as it is not uint8.
        kind = gguf.GGMLQuantizationType[item.type_name]
        writer.add_tensor_info(
            item.gguf_name, item.shape, np.dtype(np.float32), item.size_bytes, raw_dtype=kind
        )
    _add_hyperparameters(writer, student, _FILE_TYPE_NUMBERS[quantization])
    add_tokenizer(writer, student)
    for key, text in (provenance or {}).items():
        writer.add_string(key, text)
    try:
        quantizes = any(item.method in ("quantize", "requantize") for item in plan)
        what = f"quantizing to {quantization}" if quantizes else "writing tensors"
        report = partial(progress, what)
        _write(writer, path, student, plan, divisors, importance or {}, report)
    except OSError as error:
        raise ExportError(f"{path}: cannot be written: {error.strerror or error}") from error
    finally:
        for file in writer.fout or ():
            # A second failure to flush, on a full disk, must not hide the first.
            with contextlib.suppress(OSError):
                file.close()
    return [Path(file.name) for file in writer.fout or ()]


def write_float_gguf(
    student: DecoderStudent, path: Path, *, storage: str | None = None, progress: Progress = silent
) -> None:
    """Write a student as floats to one file; packed weights are dequantized.

    Args:
        storage: type of the matrices, "BF16", "F16" or "F32"; None takes that of the student's own floats.

    Raises:
        ModelFileError, ExportError: as `write_gguf`.
    """
    storage = storage or student.stored_as
    plan = plan_tensors(tensor_facts(student.tensors()), student.facts, storage)
    write_gguf(student, path, plan, storage, progress=progress)


def _write(
    writer: Any,
    path: Path,
    student: DecoderStudent,
    plan: Sequence[TensorPlan],
    divisors: Array | None,
    importance: Importance,
    report: Callable[[int, int], None],
) -> None:
    writer.write_header_to_file(path)
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    contents: dict[str, Iterator[Array]] = {}
    if divisors is not None:
        contents["rope_freqs.weight"] = iter([divisors])
    for item, tensor in zip(plan, student.tensors(), strict=True):
        weights = importance.get(item.gguf_name)
        contents[item.gguf_name] = converted_rows(student.config, tensor, item, weights)
    done, total = 0, sum(item.size_bytes for item in plan)
    for file, tensors in zip(writer.fout, writer.tensors, strict=True):
        writer.write_padding(file, file.tell())
        for name, info in tensors.items():
            for rows in contents.pop(name):
                rows.tofile(file)
                done += rows.nbytes
                report(min(done, total), total)
            writer.write_padding(file, info.nbytes)
        file.flush()
        os.fsync(file.fileno())


def rope_divisors(student: DecoderStudent) -> Array | None:
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


def _add_hyperparameters(writer: Any, student: DecoderStudent, file_type: int) -> None:
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
