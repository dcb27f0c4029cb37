"""Reads compressed-tensors checkpoints, as llm-compressor writes them for vLLM.

Per linear, with `weight_scale` for each tensor, row, group of columns or block:

- pack-quantized: `weight_packed` int32 [N, K·bits/32] along K, integers offset by 2^(bits-1);
  `weight_zero_point` likewise, packed along N to [N·bits/32, G] where there is one a group or a row;
  `weight_shape` [2]; `weight_g_idx` int32 [K], the group of each column, for activation order by group.
- int-quantized: `weight` int8 [N, K], `weight_zero_point` int8.
- float-quantized: `weight` F8_E4M3 [N, K].
- naive-quantized: either of the last two.

3-bit integers run across words since release 0.18 and lie ten to a word before; the width tells which. Scales
of quantized activations and of the KV cache do not change the weights: they are passed over. Source:
compressed-tensors 0.9 to 0.20, compressors/pack_quantized and compressors/naive_quantized.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from export.student.base import StudentTensor
from export.student.bit_packing import unpack, word_count
from export.student.compressed_tensors_config import CompressedTensorsConfig, WeightScheme, read_settings
from export.student.fp8 import ACTIVATION_SUFFIXES, float8_tensor
from export.student.integers import ALL_ROWS, IntegerLayout, IntegerMatrix
from export.student.module_parts import ModuleParts, is_float
from export.student.safetensors_file import StoredTensor
from export.student.scale_grid import block_count, grid_shapes, rows_of_grid, take_scales
from export.student.weight_reader import Parts

__all__ = ["CompressedTensorsReader", "open_reader"]

Shape = tuple[int, int]
Codes = Callable[[slice], NDArray[np.uint8]]

_LOOSE_PER_WORD: Final = 10
"""3-bit integers in a word that the older releases packed without crossing its border."""


class CompressedTensorsReader:
    """Reads the matrices of a compressed-tensors checkpoint. Satisfies `WeightReader`."""

    ignored_suffixes = ACTIVATION_SUFFIXES

    def __init__(self, config: CompressedTensorsConfig) -> None:
        self._config = config
        self.quantization = config.name

    def weight(self, module: str, shape: tuple[int, ...], parts: Parts) -> StudentTensor | None:
        scheme = self._config.scheme(module)
        if scheme is None or is_float(parts):
            return None
        stored, matrix = ModuleParts(module, parts), (shape[0], shape[1])
        if scheme.kind == "float":
            scales = take_scales(stored, "weight_scale", matrix, scheme.block(matrix))
            return float8_tensor(stored, matrix, scales)
        return _integer_tensor(stored, matrix, scheme)


def open_reader(path: Path, config: Mapping[str, Any]) -> CompressedTensorsReader:
    """The reader for a `quantization_config` in the config.json at `path`.

    Raises:
        ModelFileError: a setting is malformed, or of a kind that is not known.
    """
    return CompressedTensorsReader(read_settings(path, config))


def _integer_tensor(stored: ModuleParts, shape: Shape, scheme: WeightScheme) -> StudentTensor:
    bits, block = scheme.bits, scheme.block(shape)
    packed = "weight_packed" in stored if scheme.packed is None else scheme.packed
    nibbles: Codes | None = None
    if packed:
        words = _words(stored, shape, bits)
        loose = words.shape[1] != word_count(shape[1], bits)
        codes = _packed_codes(words, shape[1], bits, loose=loose)
        nibbles = _nibbles(words, shape[1]) if bits == 4 and shape[1] % 2 == 0 else None
        _check_shape(stored, shape)
    else:
        codes, loose = _byte_codes(stored, shape, bits), False
    scales = take_scales(stored, "weight_scale", shape, block)
    zeros = _zeros(stored, shape, scheme, packed=packed, loose=loose)
    groups = _groups(stored, shape, scheme)
    stored.finish()
    integers = IntegerMatrix(
        shape=shape,
        layout=IntegerLayout(
            bits=bits,
            group_columns=block[1],
            symmetric=scheme.symmetric or bool((zeros(ALL_ROWS) == 1 << (bits - 1)).all()),
            in_order=groups is None,
            scales_fit_f16=scales.fit_f16,
        ),
        groups=groups,
        _codes=codes,
        _scales=scales.of_rows,
        _zeros=zeros,
        _nibbles=nibbles,
    )
    return StudentTensor(
        name=f"{stored.module}.weight",
        shape=shape,
        storage=f"INT{bits}",
        size_bytes=stored.size_bytes,
        _read=integers.dequantized,
        integers=integers,
    )


def _words(stored: ModuleParts, shape: Shape, bits: int) -> StoredTensor:
    rows, columns = shape
    dense, loose = word_count(columns, bits), -(-columns // _LOOSE_PER_WORD)
    if bits == 3 and dense == loose:
        stored.fail(f"3-bit integers of {columns} columns: which of two packings they have cannot be told")
    widths = [dense, loose] if bits == 3 else [dense]
    return stored.take("weight_packed", storage=("I32",), shapes=[(rows, width) for width in widths])


def _packed_codes(words: StoredTensor, columns: int, bits: int, *, loose: bool) -> Codes:
    def codes(rows: slice) -> NDArray[np.uint8]:
        part = words.read()[rows]
        if not part.size:
            return np.empty((0, columns), np.uint8)
        if loose:
            return _unpack_loose(part)[:, :columns]
        return unpack(part, bits, axis=1, count=columns)

    return codes


def _nibbles(words: StoredTensor, columns: int) -> Codes:
    """4-bit codes two to a byte: the words' own bytes."""
    return lambda rows: np.ascontiguousarray(words.read()[rows]).view(np.uint8)[:, : columns // 2]


def _byte_codes(stored: ModuleParts, shape: Shape, bits: int) -> Codes:
    weight = stored.take("weight", storage=("I8",), shapes=[shape])
    least = -(1 << (bits - 1))

    def codes(rows: slice) -> NDArray[np.uint8]:
        values = weight.read()[rows]
        if bits < 8 and ((values < least) | (values >= -least)).any():
            stored.fail(f"'weight' holds more than {bits}-bit integers")
        result: NDArray[np.uint8] = values.view(np.uint8) + np.uint8(-least)  # modulo 256
        if bits < 8:
            result &= np.uint8((1 << bits) - 1)
        return result

    return codes


def _check_shape(stored: ModuleParts, shape: Shape) -> None:
    if "weight_shape" in stored:
        said = stored.take("weight_shape", storage=("I64", "I32"), shapes=[(2,)]).read().tolist()
        if said != list(shape):
            stored.fail(f"'weight_shape' is {said}; config.json says {list(shape)}")


def _zeros(
    stored: ModuleParts, shape: Shape, scheme: WeightScheme, *, packed: bool, loose: bool
) -> Callable[[slice], NDArray[np.int16]]:
    """The zeros as codes count, int16 [rows, G]."""
    bits, block, name = scheme.bits, scheme.block(shape), "weight_zero_point"
    middle, grid = 1 << (bits - 1), block_count(shape, block)
    if scheme.symmetric and name not in stored:
        return lambda rows: np.full((len(range(shape[0])[rows]), grid[1]), middle, np.int16)
    if packed and not scheme.symmetric and scheme.strategy in ("group", "channel"):
        height = -(-shape[0] // _LOOSE_PER_WORD) if loose else word_count(shape[0], bits)
        shapes = [(height, grid[1]), *grid_shapes(shape, block)]
        part = stored.take(name, storage=("I32", "I8"), shapes=shapes)
        if part.storage == "I32" and part.shape == shapes[0]:
            return lambda rows: _packed_zeros(part, rows, shape[0], bits, loose=loose)
    else:
        part = stored.take(name, storage=("I8",), shapes=grid_shapes(shape, block))
    if part.storage != "I8" or part.shape not in grid_shapes(shape, block):
        stored.fail(f"'{name}' of type {part.storage} has shape {list(part.shape)}")
    if scheme.symmetric and part.read().any():
        stored.fail(f"'{name}' is not zero, though the weights are said to be symmetric")
    if bits < 8 and ((part.read() < -middle) | (part.read() >= middle)).any():
        stored.fail(f"'{name}' holds more than {bits}-bit integers")

    def zeros(rows: slice) -> NDArray[np.int16]:
        offsets: NDArray[np.int8] = part.read().reshape(grid)
        wide = offsets[rows_of_grid(rows, shape[0], block[0])].astype(np.int16)
        wide += np.int16(middle)
        return wide

    return zeros


def _packed_zeros(
    words: StoredTensor, rows: slice, count: int, bits: int, *, loose: bool
) -> NDArray[np.int16]:
    wanted = range(count)[rows]
    if not wanted:
        return np.empty((0, words.shape[1]), np.int16)
    unit = _LOOSE_PER_WORD if loose else 32  # rows after which packing starts anew
    first, last = min(wanted) // unit * unit, max(wanted) + 1
    if loose:
        part = words.read()[first // unit : -(-last // unit)]
        zeros = _unpack_loose(np.ascontiguousarray(part.T)).T
    else:
        part = words.read()[first * bits // 32 : word_count(last, bits)]
        zeros = unpack(part, bits, axis=0, count=last - first)
    wide: NDArray[np.int16] = zeros[np.asarray(wanted) - first].astype(np.int16)
    return wide


def _groups(stored: ModuleParts, shape: Shape, scheme: WeightScheme) -> NDArray[np.int32] | None:
    """The group of each column, or None where they are in order."""
    name, columns = "weight_g_idx", shape[1]
    if scheme.strategy != "group" or (name not in stored and not scheme.activation_order):
        return None
    part = stored.take(name, storage=("I32", "I64"), shapes=[(columns,)])
    groups: NDArray[np.int32] = part.read().astype(np.int32)
    if (groups == -1).all():  # the library's way to say that there is no order
        return None
    across = block_count(shape, scheme.block(shape))[1]
    if groups.min() < 0 or groups.max() >= across:
        stored.fail(f"'{name}' names groups from {groups.min()} to {groups.max()} of {across}")
    in_order = np.arange(columns, dtype=np.int32) // scheme.block(shape)[1]
    return None if np.array_equal(groups, in_order) else groups


def _unpack_loose(words: NDArray[np.int32]) -> NDArray[np.uint8]:
    """3-bit integers, ten to a word: [..., words] to [..., 10 · words]."""
    shifts = np.arange(0, 3 * _LOOSE_PER_WORD, 3, dtype=np.int32)
    spread = ((words[..., None] >> shifts) & 7).astype(np.uint8)
    return spread.reshape(*words.shape[:-1], -1)
