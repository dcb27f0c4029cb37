"""A GGUF student in the terms of a Hugging Face checkpoint.

Tensors get Hugging Face's names, Llama's q and k rows go back to the order that checkpoints keep them in,
and config.json and the tokenizer's files are rebuilt from the metadata. Block types are dequantized to
float32 as ggml does it; Q4_0 and Q8_0, which are integers times scales, are given as such, too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from edgekit.bundle.manifest import SourceRecord
from edgekit.errors import ModelFileError
from edgekit.facts import ModelFacts
from edgekit.gguf_header import TensorInfo
from export.progress import Progress, silent
from export.student.base import Array, StudentTensor
from export.student.config import CheckpointConfig
from export.student.gguf_config import config_from_gguf
from export.student.gguf_file import GgufStudent
from export.student.gguf_names import checkpoint_tensor_name
from export.student.gguf_tokenizer import tokenizer_files, tokenizer_from_gguf
from export.student.integers import IntegerLayout, IntegerMatrix
from export.student.tokenizer import CheckpointTokenizer

__all__ = ["GgufCheckpoint", "as_checkpoint"]

_BLOCK: Final = 32
_FLOAT_STORAGE: Final = ("F32", "F16", "BF16")
_ROPE_DIVISORS: Final = "rope_freqs.weight"
_ReadRows = Callable[[slice], Array]


class GgufCheckpoint:
    """Satisfies `DecoderStudent`. `path`, facts, source and licence are the GGUF's own."""

    def __init__(
        self,
        student: GgufStudent,
        config: CheckpointConfig,
        tensors: tuple[StudentTensor, ...],
        stored_as: str,
    ) -> None:
        self._student = student
        self._config = config
        self._tensors = tensors
        self._stored_as = stored_as

    @property
    def path(self) -> Path:
        return self._student.path

    @property
    def facts(self) -> ModelFacts:
        return self._student.facts

    @property
    def config(self) -> CheckpointConfig:
        return self._config

    @property
    def stored_as(self) -> str:
        """Type of its embedding where that is of floats, as of a quantized checkpoint; "F32" otherwise."""
        return self._stored_as

    @cached_property
    def tokenizer(self) -> CheckpointTokenizer:
        return tokenizer_from_gguf(self._student.header)

    def tensors(self) -> Iterator[StudentTensor]:
        yield from self._tensors

    def tokenizer_files(self) -> dict[str, bytes]:
        """tokenizer.json and tokenizer_config.json, rebuilt.

        Raises:
            ModelFileError: the pre-tokenizer is not one that is known here.
        """
        return tokenizer_files(self.path, self.tokenizer, context_tokens=self.config.context_tokens)

    def source(self, progress: Progress = silent) -> SourceRecord:
        return self._student.source(progress)

    def license_text(self) -> str | None:
        return self._student.license_text()


def as_checkpoint(student: GgufStudent) -> GgufCheckpoint:
    """See a GGUF as a checkpoint. Reads no weights but the divisors of llama3 rope scaling.

    Raises:
        ModelFileError: a tensor or a setting has no counterpart in a checkpoint of the family.
    """
    path = student.path
    stored = {tensor.name: tensor for tensor in student.tensors()}
    divisors = stored.pop(_ROPE_DIVISORS, None)
    embedding = stored["token_embd.weight"].storage
    stored_as = embedding if embedding in _FLOAT_STORAGE else "F32"
    config = config_from_gguf(
        student.header,
        stored_as=stored_as,
        divisors=None if divisors is None else divisors.read_float32(),
    )
    shapes = config.tensor_shapes()
    places = {info.name: info for info in student.header.tensors}
    tensors = []
    for tensor in stored.values():
        name = _checkpoint_name(path, tensor.name)
        if shapes.pop(name, None) != tensor.shape:
            raise ModelFileError(
                f"{path}: tensor '{tensor.name}' of shape {list(tensor.shape)} has no counterpart in a "
                f"{config.raw['architectures'][0]}"
            )
        blocks = partial(_blocks, places[tensor.name])
        tensors.append(_tensor(config, replace(tensor, name=name), blocks))
    for name in shapes:
        raise ModelFileError(f"{path}: there is no tensor for '{name}', which a checkpoint must have")
    return GgufCheckpoint(student, config, tuple(tensors), stored_as)


def _checkpoint_name(path: Path, name: str) -> str:
    try:
        return checkpoint_tensor_name(name)
    except ModelFileError as error:
        raise ModelFileError(f"{path}: {error.message}") from error


def _tensor(config: CheckpointConfig, stored: StudentTensor, blocks: _ReadRows) -> StudentTensor:
    """`stored`, under its new name already, with its rows in a checkpoint's order."""
    if len(stored.shape) == 1:
        # Biases and norms, read as a whole: they are small.
        return replace(stored, _read=_ordering(config, stored)(lambda rows: stored.read()[rows]))
    ordered = _ordering(config, stored)
    return replace(stored, _read=ordered(stored.read), integers=_integers(stored, blocks, ordered))


def _ordering(config: CheckpointConfig, tensor: StudentTensor) -> Callable[[_ReadRows], _ReadRows]:
    """Makes a reader of rows in llama.cpp's order one of rows in a checkpoint's order."""
    if config.architecture == "llama" and tensor.name.split(".")[-2] in ("q_proj", "k_proj"):
        return partial(_halves_apart, tensor.shape[0], config.head_length)
    return _as_stored


def _as_stored(read: _ReadRows) -> _ReadRows:
    return read


def _halves_apart(rows: int, head_length: int, read: _ReadRows) -> _ReadRows:
    """Rows of rotary heads in a checkpoint's order: the first of all pairs, then the second of all.

    llama.cpp's "llama" rotates neighbouring rows 2i and 2i + 1; checkpoints keep them i and
    i + head_length/2.
    """

    def read_ordered(part: slice) -> Array:
        wanted = np.arange(rows)[part]
        if not wanted.size:
            return read(slice(0, 0))
        head, place = np.divmod(wanted, head_length)
        half, pair = np.divmod(place, head_length // 2)
        there = head * head_length + 2 * pair + half
        # Whole heads are read, and sorted out of there.
        first = int(head.min()) * head_length
        values: Array = read(slice(first, (int(head.max()) + 1) * head_length))[there - first]
        return values

    return read_ordered


def _integers(
    tensor: StudentTensor, blocks: _ReadRows, ordered: Callable[[_ReadRows], _ReadRows]
) -> IntegerMatrix | None:
    """Q4_0 and Q8_0 as integers. Source: ggml-common.h (block_q4_0, block_q8_0); ggml-quants.c."""
    if tensor.storage not in ("Q4_0", "Q8_0"):
        return None
    rows, columns = tensor.shape
    bits, codes_of = (4, _q4_0_codes) if tensor.storage == "Q4_0" else (8, _q8_0_codes)

    def zeros(part: slice) -> NDArray[np.int16]:
        return np.full((len(range(rows)[part]), columns // _BLOCK), 1 << (bits - 1), np.int16)

    return IntegerMatrix(
        shape=(rows, columns),
        # The scales are float16 as stored: there is nothing that a float16 could lose.
        layout=IntegerLayout(bits, _BLOCK, symmetric=True, in_order=True, scales_fit_f16=True),
        groups=None,
        _codes=ordered(lambda part: codes_of(blocks(part))),
        _scales=ordered(lambda part: _block_scales(blocks(part))),
        _zeros=zeros,
    )


def _blocks(info: TensorInfo, rows: slice) -> NDArray[np.uint8]:
    """The blocks of some rows as stored: uint8 [rows, blocks, bytes of a block], a float16 scale first."""
    columns, count = info.shape
    blocks = columns // _BLOCK
    shape = (count, blocks, info.size_bytes // count // blocks)
    return np.memmap(info.path, np.uint8, mode="r", offset=info.offset, shape=shape)[rows]


def _block_scales(blocks: NDArray[np.uint8]) -> NDArray[np.float32]:
    scales: NDArray[Any] = np.ascontiguousarray(blocks[:, :, :2]).view("<f2")
    return scales[:, :, 0].astype(np.float32)


def _q4_0_codes(blocks: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Byte j holds columns j (low nibble) and j + 16 of its block."""
    nibbles = np.concatenate([blocks[:, :, 2:] & 0x0F, blocks[:, :, 2:] >> 4], axis=2)
    return nibbles.reshape(blocks.shape[0], blocks.shape[1] * _BLOCK)


def _q8_0_codes(blocks: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Signed bytes, here counted from -128."""
    codes: NDArray[np.uint8] = blocks[:, :, 2:] ^ np.uint8(0x80)
    return codes.reshape(blocks.shape[0], blocks.shape[1] * _BLOCK)
