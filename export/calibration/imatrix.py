"""The importance matrix: how much each column of a weight matrix matters, as llama.cpp defines it.

For every matrix the mean, over calibration tokens, of the squares of what its columns are multiplied with.
llama_model_quantize_params.imatrix and ggml_quantize_chunk take that mean (quantize.cpp, load_imatrix, of
llama.cpp 0c1e57098: `in_sum2 / counts`); its files hold the sums and the number of tokens, as here. Only
the ratios of a matrix's columns have an effect. Rows are not told apart, so that the order in which
llama.cpp wants a Llama's q and k rows plays no part.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from edgekit.errors import ExportError, MissingExtraError, ModelFileError
from edgekit.gguf_header import GgufHeader, TensorInfo, read_gguf_header
from export.progress import Progress, silent
from export.quality.reference import Reference
from export.student.base import DecoderStudent
from export.student.gguf_names import gguf_name

try:
    import gguf
except ImportError as error:
    raise MissingExtraError("gguf", extra="export", feature="writing an importance matrix") from error

__all__ = ["Imatrix", "compute_imatrix", "read_imatrix", "write_imatrix"]

_SUMS, _COUNTS = ".in_sum2", ".counts"
_EXACT_ROWS: Final = 512
"""Rows that are summed in float32 before the sum goes on in float64."""


@dataclass(frozen=True, slots=True)
class Imatrix:
    """Sums of squares by llama.cpp's tensor name ("blk.0.attn_q.weight"), float32 [columns], and the
    number of tokens behind each. `datasets` names the texts; `chunk_tokens` is the length of their pieces."""

    sums: Mapping[str, NDArray[np.float32]]
    counts: Mapping[str, int]
    datasets: tuple[str, ...]
    chunk_tokens: int

    @property
    def tokens(self) -> int:
        return max(self.counts.values(), default=0)

    def importance(self) -> dict[str, NDArray[np.float32]]:
        """Mean squares by tensor name, float32 [columns]: what quantizers take."""
        # A file may hold a matrix that no token reached; llama-quantize takes 1 for it.
        return {
            name: values / np.float32(self.counts[name]) if self.counts[name] else np.ones_like(values)
            for name, values in self.sums.items()
        }

    def check(self, shapes: Mapping[str, Sequence[int]], source: str) -> None:
        """Refuse a matrix that is not this student's.

        Args:
            shapes: by llama.cpp's tensor name, in numpy's order.
            source: where the importance matrix comes from, for the message.

        Raises:
            ModelFileError: a tensor's columns differ, or a matrix of the layers is missing.
        """
        hint = "compute it for this very model"
        for name, shape in shapes.items():
            if len(shape) != 2 or not name.startswith("blk."):
                continue
            found = self.sums.get(name)
            if found is None:
                raise ModelFileError(f"{source}: nothing on tensor '{name}'", hint=hint)
            if found.shape != (shape[-1],):
                raise ModelFileError(
                    f"{source}: {found.size} columns for tensor '{name}', which has {shape[-1]}", hint=hint
                )


def compute_imatrix(
    student: DecoderStudent,
    sequences: Sequence[Sequence[int]],
    *,
    datasets: Sequence[str] = (),
    include_head: bool = False,
    progress: Progress = silent,
) -> Imatrix:
    """Run a student over token sequences and sum up what its matrices are multiplied with.

    Args:
        sequences: token ids; each begins at position 0 and sees no other. See `Reference.hidden_states`.
        include_head: take the output matrix, too. llama-imatrix leaves it out ("typically, it is better
            not to utilize the importance matrix when quantizing output.weight", tools/imatrix/README.md).

    Raises:
        UsageError: a sequence is empty, or has a token that the student does not know.
        ModelFileError: the student computes NaN or infinity.
    """
    sums: dict[str, NDArray[np.float64]] = {}
    counts: dict[str, int] = {}
    last: tuple[NDArray[np.float32], NDArray[np.float64]] | None = None

    def observe(name: str, inputs: NDArray[np.float32]) -> None:
        nonlocal last
        name = gguf_name(name)
        if not name.startswith("blk.") and not include_head:
            return
        # q, k and v, and gate and up, are shown the same array one after another.
        if last is None or last[0] is not inputs:
            last = (inputs, _squares(inputs))
        sums[name] = sums[name] + last[1] if name in sums else last[1]
        counts[name] = counts.get(name, 0) + len(inputs)

    Reference(student).hidden_states(sequences, observe=observe, progress=progress)
    return Imatrix(
        sums={name: values.astype(np.float32) for name, values in sorted(sums.items())},
        counts=counts,
        datasets=tuple(datasets),
        chunk_tokens=max(map(len, sequences)),
    )


def write_imatrix(imatrix: Imatrix, path: Path) -> None:
    """Write the file that llama-imatrix writes and `llama-quantize --imatrix` reads.

    Raises:
        ExportError: the file cannot be written. A part of it may be left.
    """
    # No general.architecture, as in llama-imatrix's files: the writer leaves out what is empty.
    writer = gguf.GGUFWriter(path=None, arch="")
    writer.add_type("imatrix")
    writer.add_array(gguf.Keys.IMatrix.DATASETS, list(imatrix.datasets) or ["unknown"])
    chunks = max(1, imatrix.tokens // max(1, imatrix.chunk_tokens))
    writer.add_uint32(gguf.Keys.IMatrix.CHUNK_COUNT, chunks)
    writer.add_uint32(gguf.Keys.IMatrix.CHUNK_SIZE, imatrix.chunk_tokens)
    for name, values in sorted(imatrix.sums.items()):
        writer.add_tensor(f"{name}{_SUMS}", values.reshape(1, -1))
        writer.add_tensor(f"{name}{_COUNTS}", np.array([[imatrix.counts[name]]], np.float32))
    try:
        writer.write_header_to_file(path)
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
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


def read_imatrix(path: Path) -> Imatrix:
    """Read a file of `write_imatrix` or llama-imatrix, in GGUF.

    Raises:
        ModelFileError: the file is damaged, is something else, is of the format before GGUF, or describes a
            mixture of experts.
    """
    _refuse_other_formats(path)
    header = read_gguf_header(path)
    kind = header.metadata.get("general.type")
    if kind != "imatrix":
        raise ModelFileError(f"{path}: a GGUF of type {kind!r}, not an importance matrix")
    tensors = {tensor.name: tensor for tensor in header.tensors}
    sums: dict[str, NDArray[np.float32]] = {}
    counts: dict[str, int] = {}
    for name in sorted(name.removesuffix(_SUMS) for name in tensors if name.endswith(_SUMS)):
        count = tensors.get(f"{name}{_COUNTS}")
        if count is None:
            raise ModelFileError(f"{path}: sums of '{name}' without the number of tokens")
        values, number = _floats(tensors[f"{name}{_SUMS}"]), _floats(count)
        if number.size != 1:
            raise ModelFileError(
                f"{path}: '{name}' has {number.size} experts; only dense models are known here"
            )
        if not (np.isfinite(values).all() and (values >= 0).all() and 0 <= number[0] < 2**53):
            raise ModelFileError(f"{path}: sums of squares of '{name}' that are none")
        sums[name], counts[name] = values, round(float(number[0]))
    if not sums:
        raise ModelFileError(f"{path}: an importance matrix of no tensor")
    return Imatrix(sums, counts, _datasets(header), _number(header, gguf.Keys.IMatrix.CHUNK_SIZE))


def _squares(inputs: NDArray[np.float32]) -> NDArray[np.float64]:
    total = np.zeros(inputs.shape[1])
    for start in range(0, len(inputs), _EXACT_ROWS):
        part = inputs[start : start + _EXACT_ROWS]
        total += np.einsum("tk,tk->k", part, part)
    return total


def _refuse_other_formats(path: Path) -> None:
    try:
        with path.open("rb") as file:
            magic = file.read(4)
    except OSError as error:
        raise ModelFileError(f"{path}: cannot be read: {error.strerror or error}") from error
    if magic != b"GGUF":
        raise ModelFileError(
            f"{path}: not a GGUF",
            hint="an importance matrix of the old format becomes one with: "
            f"llama-imatrix -m MODEL --in-file {path.name} --output-format gguf -o {path.stem}.gguf",
        )


def _floats(tensor: TensorInfo) -> NDArray[np.float32]:
    if tensor.type_name != "F32":
        raise ModelFileError(f"{tensor.path}: '{tensor.name}' is {tensor.type_name}, not F32")
    with tensor.path.open("rb") as file:
        return np.fromfile(file, dtype="<f4", count=tensor.elements, offset=tensor.offset)


def _datasets(header: GgufHeader) -> tuple[str, ...]:
    names = header.metadata.get(gguf.Keys.IMatrix.DATASETS)
    return tuple(str(name) for name in names) if isinstance(names, tuple) else ()


def _number(header: GgufHeader, key: str) -> int:
    value = header.metadata.get(key)
    return value if isinstance(value, int) else 0
