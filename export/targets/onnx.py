"""Writes a student as a directory that onnxruntime-genai loads: graph, weights, config, tokenizer.

Weights are streamed into model.onnx.data; the graph holds none. A student's own integers are packed as they
are (`export.targets.onnx_weights`), all others are quantized by onnxruntime's quantizer.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Final, Literal

from edgekit.errors import ExportError, UsageError
from export.progress import Progress, silent
from export.student.base import DecoderStudent
from export.targets.genai_config import make_genai_config
from export.targets.onnx_data import WeightFile
from export.targets.onnx_graph import build_graph
from export.targets.onnx_matrices import GraphStyle
from export.targets.onnx_weights import LARGEST_BLOCK, SMALLEST_BLOCK

__all__ = ["MODEL_NAME", "WEIGHTS_NAME", "Precision", "write_onnx"]

Precision = Literal["fp32", "int4", "fp16-int4"]
MODEL_NAME: Final = "model.onnx"
WEIGHTS_NAME: Final = "model.onnx.data"
BLOCK_SIZE: Final = 128
_LARGEST_LENGTH: Final = 1 << 31  # what a 32-bit reader of tokenizer_config.json takes


def write_onnx(
    student: DecoderStudent,
    directory: Path,
    *,
    precision: Precision,
    block_size: int = BLOCK_SIZE,
    matrix_bits: int = 4,
    head_bits: int = 4,
    accuracy_level: int = 4,
    context_tokens: int,
    threads: int | None = None,
    progress: Progress = silent,
) -> None:
    """Write model.onnx, model.onnx.data, genai_config.json and the tokenizer's files.

    Args:
        directory: exists.
        precision: "fp32" and "int4" for CPUs, "fp16-int4" for CUDA.
        block_size: columns that share a scale where floats are quantized, at most; a power of two from 16 to
            256. A matrix whose columns it does not divide gets the next smaller one that does.
        matrix_bits: 4 or 8, for the other matrices of floats.
        head_bits: 4 or 8, for an embedding and a head of floats. 8 is nearer to the student; 4 is faster.
        accuracy_level: MatMulNBits' on CPUs: 4 computes in int8, 1 in float32.
        context_tokens: positions that the graph knows; prompts and answers together fit in it.
        threads: that onnxruntime-genai computes with; None: half of the logical cores, its own choice.

    Raises:
        UsageError: an argument makes no sense.
        ModelFileError: a weight is NaN or infinite.
        ExportError: a file cannot be written, a scale does not fit float16, or the embedding's rows are no
            multiple of 16. Parts may be left.
    """
    if block_size & (block_size - 1) or not SMALLEST_BLOCK <= block_size <= LARGEST_BLOCK:
        raise UsageError(
            f"block_size is {block_size}, not a power of two from {SMALLEST_BLOCK} to {LARGEST_BLOCK}"
        )
    for name, bits in (("matrix_bits", matrix_bits), ("head_bits", head_bits)):
        if bits not in (4, 8):
            raise UsageError(f"{name} is {bits}; MatMulNBits takes 4 or 8")
    if context_tokens < 1:
        raise UsageError(f"context_tokens is {context_tokens}; a context holds at least one")
    if threads is not None and threads < 1:
        raise UsageError(f"threads is {threads}; it takes at least one")
    cuda = precision == "fp16-int4"
    style = GraphStyle(
        element="float16" if cuda else "float32",
        quantized=precision != "fp32",
        block_size=block_size,
        matrix_bits=matrix_bits,
        head_bits=head_bits,
        # CUDA's kernels have one accuracy.
        accuracy_level=0 if cuda else accuracy_level,
        fused_bias=not cuda,
    )
    weights = WeightFile(WEIGHTS_NAME)
    model = build_graph(student, style, context_tokens=context_tokens, weights=weights)
    settings = make_genai_config(
        student, model_file=MODEL_NAME, context_tokens=context_tokens, cuda=cuda, threads=threads
    )
    files = {
        MODEL_NAME: model.SerializeToString(),
        "genai_config.json": _json(settings),
        **_tokenizer_files(student, context_tokens),
    }
    weights.write(directory, progress)
    for name, content in files.items():
        _write(directory / name, content)


def _tokenizer_files(student: DecoderStudent, context_tokens: int) -> dict[str, bytes]:
    """The student's own, in the places where onnxruntime-genai looks."""
    files = dict(student.tokenizer_files())
    settings = json.loads(files.get("tokenizer_config.json", b"{}"))
    length = settings.get("model_max_length")
    if isinstance(length, int | float) and not 0 < length < _LARGEST_LENGTH:
        # transformers writes 1e30 for "no limit".
        settings["model_max_length"] = context_tokens
        files["tokenizer_config.json"] = _json(settings)
    template = student.tokenizer.chat_template
    if isinstance(template, str) and "chat_template.jinja" not in files and "chat_template" not in settings:
        files["chat_template.jinja"] = template.encode()
    return files


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()


def _write(path: Path, content: bytes) -> None:
    try:
        with path.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise ExportError(f"{path}: cannot be written: {error.strerror or error}") from error
