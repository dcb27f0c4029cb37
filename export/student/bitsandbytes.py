"""Reads bitsandbytes checkpoints: NF4 and FP4 weights in blocks, and LLM.int8.

4 bit, per linear: `weight`, the bytes of two codes each, the first in the high half, over the matrix [N, K]
flattened; `weight.absmax`, the scale of each block of `blocksize` values; `weight.quant_map`, the 16 values
that the codes stand for; `weight.quant_state.bitsandbytes__nf4` (or fp4), JSON as bytes. With double
quantization absmax is uint8: nested_quant_map[absmax] · nested_absmax + nested_offset, by nested blocks.
Values are given in float32; at run time bitsandbytes rounds them to the type that it computes in.

8 bit: `weight` int8 [N, K], `SCB` float32 [N], the largest magnitude of each row; the value is
weight · SCB / 127. Source: bitsandbytes 0.50, functional.py (QuantState, dequantize_4bit) and
nn/modules.py (Linear8bitLt).

What is stored decides whether a module is quantized: `llm_int8_skip_modules` lists what its writer left out,
in terms that have changed between releases of transformers.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from edgekit.errors import ModelFileError
from export.student.base import StudentTensor, as_float32
from export.student.integers import IntegerLayout, IntegerMatrix, scales_fit_f16
from export.student.module_parts import ModuleParts, is_float
from export.student.safetensors_file import StoredTensor
from export.student.weight_reader import FLOAT_STORAGE, Parts

__all__ = ["BitsAndBytesReader", "open_reader"]

FOUR_BIT_TYPES: Final = ("nf4", "fp4")
STATE_PREFIX: Final = "weight.quant_state.bitsandbytes__"
# `bnb_4bit_quant_storage`: the bytes of the codes may be disguised as another type.
CODE_STORAGE: Final = ("U8", "I8", "BF16", "F16", "F32", "F64")


class BitsAndBytesReader:
    """Reads the matrices of a bitsandbytes checkpoint. Satisfies `WeightReader`."""

    ignored_suffixes: tuple[str, ...] = ()

    def __init__(self, quantization: str) -> None:
        self.quantization = quantization

    def weight(self, module: str, shape: tuple[int, ...], parts: Parts) -> StudentTensor | None:
        if is_float(parts):
            return None
        stored, matrix = ModuleParts(module, parts), (shape[0], shape[1])
        states = [name for name in parts if name.startswith(STATE_PREFIX)]
        if states or self.quantization != "INT8":
            return _four_bit_tensor(stored, matrix, states)
        return _int8_tensor(stored, matrix)


def open_reader(path: Path, config: Mapping[str, Any]) -> BitsAndBytesReader:
    """The reader for a `quantization_config` in the config.json at `path`.

    Raises:
        ModelFileError: neither 4 nor 8 bit, or a 4-bit type that is not known.
    """
    if config.get("load_in_8bit"):
        return BitsAndBytesReader("INT8")
    if not config.get("load_in_4bit"):
        raise ModelFileError(f"{path}: quantization_config has neither load_in_4bit nor load_in_8bit")
    kind = config.get("bnb_4bit_quant_type", "fp4")
    if kind not in FOUR_BIT_TYPES:
        raise ModelFileError(
            f"{path}: bnb_4bit_quant_type is {kind!r}; known are {', '.join(FOUR_BIT_TYPES)}"
        )
    return BitsAndBytesReader(kind.upper())


def _int8_tensor(stored: ModuleParts, shape: tuple[int, int]) -> StudentTensor:
    weight = stored.take("weight", storage=("I8",), shapes=[shape])
    rows, columns = shape
    part = stored.take("SCB", storage=FLOAT_STORAGE, shapes=[(rows,), (rows, 1)])
    scales = (stored.finite("SCB", part).reshape(-1, 1) / np.float32(127)).astype(np.float32)
    if "weight_format" in stored:
        form = stored.take("weight_format", storage=("U8",), shapes=[(), (1,)]).read().item()
        if form != 0:
            stored.fail(f"'weight_format' is {form}; only 0, by rows, is known")
    stored.finish()

    def codes(rows: slice) -> NDArray[np.uint8]:
        values: NDArray[np.uint8] = weight.read()[rows].view(np.uint8) ^ np.uint8(0x80)
        return values

    integers = IntegerMatrix(
        shape=shape,
        layout=IntegerLayout(
            bits=8,
            group_columns=columns,
            symmetric=True,
            in_order=True,
            scales_fit_f16=scales_fit_f16(scales),
        ),
        groups=None,
        _codes=codes,
        _scales=lambda rows: scales[rows],
        _zeros=lambda rows: np.full(scales[rows].shape, 128, np.int16),
    )
    return StudentTensor(
        name=f"{stored.module}.weight",
        shape=shape,
        storage="INT8",
        size_bytes=stored.size_bytes,
        _read=integers.dequantized,
        integers=integers,
    )


@dataclass(frozen=True, slots=True)
class _BlockScales:
    """The scale of each block: as it is stored, or quantized itself."""

    stored: StoredTensor
    nested_size: int = 1
    nested_scales: NDArray[np.float32] | None = None
    quant_map: NDArray[np.float32] | None = None  # [256]
    offset: float = 0.0

    def read(self, start: int, stop: int) -> NDArray[np.float32]:
        """float32 [stop - start]."""
        values = self.stored.read()[start:stop]
        if self.nested_scales is None or self.quant_map is None:
            return as_float32(values)
        scales: NDArray[np.float32] = self.quant_map[values]
        scales *= self.nested_scales[np.arange(start, stop) // self.nested_size]
        scales += np.float32(self.offset)
        return scales


@dataclass(frozen=True, slots=True)
class _FourBitMatrix:
    """A matrix [N, K] whose values lie in blocks that do not heed the rows."""

    shape: tuple[int, int]
    blocksize: int
    pairs: NDArray[np.complex64]  # [256]: the two values that a byte stands for
    scales: _BlockScales
    stored: StoredTensor

    def read(self, rows: slice) -> NDArray[np.float32]:
        height, columns = self.shape
        wanted = range(height)[rows]
        if not wanted:
            return np.empty((0, columns), np.float32)
        first, last = min(wanted), max(wanted) + 1
        begin, end = first * columns, last * columns
        # Whole blocks; they hold an even number of values, so that bytes are never split.
        start, stop = begin // self.blocksize, -(-end // self.blocksize)
        octets = self.stored.read().reshape(-1).view(np.uint8)
        octets = octets[start * self.blocksize // 2 : stop * self.blocksize // 2]
        values = self.pairs.take(octets).view(np.float32)
        scales = self.scales.read(start, stop)
        whole = values.size // self.blocksize
        blocks = values[: whole * self.blocksize].reshape(whole, self.blocksize)
        blocks *= scales[:whole, None]
        if whole < stop - start:  # the last block of the matrix may be cut short
            values[whole * self.blocksize :] *= scales[-1]
        offset = start * self.blocksize
        matrix = values[begin - offset : end - offset].reshape(-1, columns)
        return matrix if wanted.step == 1 else matrix[np.asarray(wanted) - first]


def _four_bit_tensor(stored: ModuleParts, shape: tuple[int, int], states: list[str]) -> StudentTensor:
    if len(states) != 1 or (kind := states[0].removeprefix(STATE_PREFIX)) not in FOUR_BIT_TYPES:
        stored.fail(
            f"there has to be one '{STATE_PREFIX}...' of {' or '.join(FOUR_BIT_TYPES)}; "
            f"there is {', '.join(states) or 'none'}"
        )
    state = _state(stored, states[0], shape)
    weight = stored.take("weight", storage=CODE_STORAGE)
    if weight.size_bytes != (octets := -(-shape[0] * shape[1] // 2)):
        stored.fail(f"'weight' has {weight.size_bytes} bytes, expected {octets} for {list(shape)}")
    quant_map = stored.take("weight.quant_map", storage=FLOAT_STORAGE, shapes=[(16,)])
    values = stored.finite("weight.quant_map", quant_map)
    codes = np.arange(256)
    matrix = _FourBitMatrix(
        shape=shape,
        blocksize=_blocksize(stored, state, "blocksize"),
        pairs=np.stack([values[codes >> 4], values[codes & 0x0F]], axis=1).view(np.complex64)[:, 0],
        scales=_block_scales(stored, state, shape[0] * shape[1]),
        stored=weight,
    )
    stored.finish()
    return StudentTensor(
        name=f"{stored.module}.weight",
        shape=shape,
        storage=kind.upper(),
        size_bytes=stored.size_bytes,
        _read=matrix.read,
    )


def _state(stored: ModuleParts, name: str, shape: tuple[int, int]) -> dict[str, Any]:
    raw = stored.take(name, storage=("U8",)).read().tobytes()
    try:
        state = json.loads(raw)
    except (ValueError, RecursionError) as error:
        stored.fail(f"'{name}' is not JSON: {error}")
    if not isinstance(state, dict):
        stored.fail(f"'{name}' is not a JSON object")
    if state.get("quant_type") != name.removeprefix(STATE_PREFIX):
        stored.fail(f"'{name}' says that the type is {state.get('quant_type')!r}")
    if state.get("shape") != list(shape):
        stored.fail(f"'{name}' is of shape {state.get('shape')}; config.json says {list(shape)}")
    return state


def _blocksize(stored: ModuleParts, state: Mapping[str, Any], key: str) -> int:
    size = state.get(key)
    if type(size) is not int or size < 2 or size % 2:
        stored.fail(f"the quantization state has the {key} {size!r}")
    return size


def _block_scales(stored: ModuleParts, state: Mapping[str, Any], count: int) -> _BlockScales:
    blocks = -(-count // _blocksize(stored, state, "blocksize"))
    if "weight.nested_absmax" not in stored:
        part = stored.take("weight.absmax", storage=FLOAT_STORAGE, shapes=[(blocks,)])
        stored.finite("weight.absmax", part)
        return _BlockScales(part)
    size, offset = _blocksize(stored, state, "nested_blocksize"), state.get("nested_offset")
    if not isinstance(offset, int | float) or not isfinite(offset):
        stored.fail(f"the quantization state has the nested_offset {offset!r}")
    nested, quant_map = (
        np.array(stored.finite(name, stored.take(name, storage=FLOAT_STORAGE, shapes=[(length,)])))
        for name, length in (("weight.nested_absmax", -(-blocks // size)), ("weight.nested_quant_map", 256))
    )
    part = stored.take("weight.absmax", storage=("U8",), shapes=[(blocks,)])
    return _BlockScales(part, size, nested, quant_map, float(offset))
