"""Reads GPTQ weights: AutoGPTQ's and GPTQModel's checkpoints of 2, 3, 4 and 8 bits.

A module [N, K] is stored as

    qweight  I32 [ceil(K·bits/32), N]   codes, packed along K
    qzeros   I32 [G, ceil(N·bits/32)]   zeros, packed along N
    scales   F16, BF16 or F32 [G, N]
    g_idx    I32 [K]                    group of each column; absent in old files

with value[n, k] = scale[g, n] · (code[k, n] - zero[g, n]), g = g_idx[k].

`checkpoint_format` "gptq_v2" stores the zeros as they are. "gptq" (v1, and the default) stores zero - 1, and
how it subtracts matters. With 2, 4 and 8 bits GPTQModel subtracts from whole words, so that a zero of 0
borrows from the next one: adding to whole words undoes it. 3 bits cross words; there each zero is shifted by
itself, modulo 8. Two faults of earlier releases, told by `meta.quantizer`, are undone in kind: before 6.1
three-bit words were shifted by constants that do not line up with the zeros, and before 7.3.2 modules whose
bits are set by `dynamic` were shifted as if they had the checkpoint's bits.

Source: `pack_block` and `dequantize_weight` (nn_modules/qlinear/__init__.py), `dynamic_get`
(quantization/config.py) and `convert_gptq_v1_to_v2_format_module` (utils/model.py) of GPTQModel 7.7.0; `pack`
(qlinear_cuda.py) of AutoGPTQ 0.7.1.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from edgekit.errors import ModelFileError
from export.student.base import StudentTensor, as_float32
from export.student.bit_packing import PACKED_BITS, unpack, word_count
from export.student.integers import IntegerLayout, IntegerMatrix
from export.student.packed_parts import check_parts, check_scales, is_packed, part, row_span
from export.student.packed_settings import DynamicRules, PackedSettings
from export.student.safetensors_file import StoredTensor
from export.student.weight_reader import FLOAT_STORAGE, Parts

__all__ = ["GptqReader", "open_reader"]

AGAIN_HINT: Final = (
    "save it again in the format 'gptq' or 'gptq_v2' with GPTQModel, "
    "or give the checkpoint that it was quantized from"
)
PARTS: Final = ("qweight", "qzeros", "scales", "g_idx", "bias")
WORDS_LESS: Final[Mapping[int, tuple[int, ...]]] = MappingProxyType(
    {2: (0x55555555,), 4: (0x11111111,), 8: (0x01010101,)}
)
"""What v1 subtracts from words of zeros, by bits."""
OLD_WORDS_LESS: Final[Mapping[int, tuple[int, ...]]] = MappingProxyType(
    {**WORDS_LESS, 3: (0x24924924, 0x92492492, 0x49249249)}
)
"""The same of GPTQModel before 6.1: 3 bits have constants for the first, second and third of three words."""


@dataclass(frozen=True, slots=True)
class _Packing:
    bits: int
    group_size: int
    """Columns that share a scale; -1: the whole row."""
    words_less: tuple[int, ...]
    """What was subtracted from the words of zeros, in turn."""
    zeros_less: int
    """What was subtracted from each zero, modulo 2^bits."""
    activation_order: bool
    """What the config says of it."""


class GptqReader:
    """Reads the modules of one GPTQ checkpoint. Satisfies `WeightReader`."""

    quantization: Final = "GPTQ"
    ignored_suffixes: Final[tuple[str, ...]] = ()

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        self._settings = PackedSettings(path, settings, AGAIN_HINT)
        self._dynamic = DynamicRules(path, settings)
        for overrides in ({}, *self._dynamic.overrides()):
            self._packing(overrides)

    def weight(self, module: str, shape: tuple[int, ...], parts: Parts) -> StudentTensor | None:
        if not is_packed(parts):
            return None
        overrides = self._dynamic.for_packed(module)
        if module.endswith("embed_tokens"):
            raise ModelFileError(
                f"module '{module}': the embedding is packed by GPTQ, which is not read", hint=AGAIN_HINT
            )
        check_parts(module, parts, PARTS)
        return _tensor(module, (shape[0], shape[1]), parts, self._packing(overrides))

    def _packing(self, overrides: Mapping[str, Any]) -> _Packing:
        settings = self._settings.replaced(overrides)
        bits = settings.get("bits")
        if type(bits) is not int or bits not in PACKED_BITS:
            settings.fail(f"bits is {bits!r}; known are {', '.join(map(str, PACKED_BITS))}")
        name = settings.storage_format(("checkpoint_format", "format"), default="gptq")
        if name not in ("gptq", "gptq_v2"):
            settings.fail(f"the format is {name!r}; known are 'gptq' and 'gptq_v2'")
        settings.refuse_unknown_packing("is_marlin_format", "is_bitblas_format", "rotation")
        method = settings.get("method", "gptq")
        if method != "gptq":
            settings.fail(f"method is {method!r} beside quant_method 'gptq'")
        words_less, zeros_less = ((0,), 0) if name == "gptq_v2" else self._less_one(bits)
        return _Packing(
            bits=bits,
            group_size=settings.group_columns(),
            words_less=words_less,
            zeros_less=zeros_less,
            activation_order=bool(settings.get("desc_act")),
        )

    def _less_one(self, bits: int) -> tuple[tuple[int, ...], int]:
        """How v1 zeros of `bits` were shifted: what their words, and what the zeros themselves, are less."""
        version = _gptqmodel_version(self._settings.get("meta"))
        general: int = self._settings.values["bits"]  # checked first of all
        if version is not None and version < (7, 3, 2) and general != bits:
            if general == 3 and version >= (6, 1):
                self._settings.fail(f"GPTQModel {version} shifted the zeros of {bits} bits as if they had 3")
            return OLD_WORDS_LESS[general], 0
        if bits == 3:
            return (OLD_WORDS_LESS[3], 0) if version is not None and version < (6, 1) else ((0,), 1)
        return WORDS_LESS[bits], 0


def open_reader(path: Path, settings: Mapping[str, Any]) -> GptqReader:
    """The reader for a checkpoint's `quantization_config`; `path` is where that is from, for errors.

    Raises:
        ModelFileError: a setting is missing or not known: another format such as marlin, another width.
    """
    return GptqReader(path, settings)


def _tensor(module: str, shape: tuple[int, int], parts: Parts, packing: _Packing) -> StudentTensor:
    rows, columns = shape
    bits = packing.bits
    group_size = columns if packing.group_size == -1 else packing.group_size
    groups = -(-columns // group_size)
    says = f"{bits} bits, groups of {group_size}"
    qweight = part(module, parts, "qweight", ("I32",), (word_count(columns, bits), rows), says)
    qzeros = part(module, parts, "qzeros", ("I32",), (groups, word_count(rows, bits)), says)
    scales = part(module, parts, "scales", FLOAT_STORAGE, (groups, rows), says)
    order = _activation_order(module, parts, columns, group_size, packing.activation_order)

    def read_codes(span: slice) -> NDArray[np.uint8]:
        words = qweight.read()[:, row_span(span, rows)]
        return unpack(words, bits, axis=0, count=columns).T

    def read_scales(span: slice) -> NDArray[np.float32]:
        return np.ascontiguousarray(as_float32(scales.read()[:, row_span(span, rows)]).T)

    def read_zeros(span: slice) -> NDArray[np.int16]:
        return _read_zeros(qzeros, packing, rows, row_span(span, rows))

    def read_nibbles(span: slice) -> NDArray[np.uint8]:
        words = qweight.read()[:, row_span(span, rows)]
        return np.ascontiguousarray(words.T).view(np.uint8)

    layout = IntegerLayout(
        bits=bits,
        group_columns=group_size,
        symmetric=bool((read_zeros(slice(None)) == 1 << (bits - 1)).all()),
        in_order=order is None,
        scales_fit_f16=check_scales(module, scales),
    )
    matrix = IntegerMatrix(
        shape,
        layout,
        order,
        read_codes,
        read_scales,
        read_zeros,
        _nibbles=read_nibbles if bits == 4 and columns % 8 == 0 else None,
    )
    return StudentTensor(
        name=f"{module}.weight",
        shape=shape,
        storage=f"INT{bits}",
        size_bytes=sum(stored.size_bytes for stored in parts.values()),
        _read=matrix.dequantized,
        integers=matrix,
    )


def _read_zeros(qzeros: StoredTensor, packing: _Packing, rows: int, span: slice) -> NDArray[np.int16]:
    """int16 [rows of the span, G], out of the words that the span lies in."""
    bits = packing.bits
    first = span.start // 32 * 32  # 32 zeros fill whole words, whatever the width
    last = max(first, min(-(-span.stop // 32) * 32, rows))
    start, stop = first * bits // 32, word_count(last, bits)
    less = np.array(packing.words_less, np.uint32)[np.arange(start, stop) % len(packing.words_less)]
    words = qzeros.read()[:, start:stop].view(np.uint32) + less  # modulo 2^32
    zeros = unpack(words.view(np.int32), bits, axis=1, count=last - first)
    if packing.zeros_less:
        zeros = (zeros + np.uint8(packing.zeros_less)) & np.uint8((1 << bits) - 1)
    return np.ascontiguousarray(zeros[:, span.start - first : span.stop - first].T.astype(np.int16))


def _activation_order(
    module: str, parts: Parts, columns: int, group_size: int, desc_act: bool
) -> NDArray[np.int32] | None:
    """The group of each column, int32 [K]; None where they are in order, whatever the config says of it."""
    in_order = np.arange(columns, dtype=np.int32) // group_size
    groups = int(in_order[-1]) + 1
    stored: NDArray[np.int32] | None = None
    if "g_idx" in parts:
        stored = part(module, parts, "g_idx", ("I32",), (columns,), f"{columns} columns").read()
    if groups > 1 and (stored is None or not stored.any()):
        # AutoGPTQ's kernels take g_idx of zeros only for none: some writers never filled it in.
        if desc_act:
            raise ModelFileError(
                f"module '{module}': desc_act is on, but g_idx, the order of the columns, is "
                f"{'missing' if stored is None else 'all zero'}",
                hint="download the checkpoint again, or give the one that it was quantized from",
            )
        return None
    if stored is None or np.array_equal(stored, in_order):
        return None
    if stored.min() < 0 or stored.max() >= groups:
        bad = int(np.flatnonzero((stored < 0) | (stored >= groups))[0])
        raise ModelFileError(
            f"module '{module}': g_idx of column {bad} is {stored[bad]}; there are groups 0 to {groups - 1}"
        )
    sizes, expected = np.bincount(stored, minlength=groups), np.bincount(in_order)
    if not np.array_equal(sizes, expected):
        bad = int(np.flatnonzero(sizes != expected)[0])
        raise ModelFileError(
            f"module '{module}': g_idx gives group {bad} {sizes[bad]} columns instead of {expected[bad]}"
        )
    return stored.copy()


def _gptqmodel_version(meta: Any) -> tuple[int, ...] | None:
    """Which GPTQModel wrote the checkpoint, by `meta.quantizer`: "gptqmodel:5.8.0", alone or in a list."""
    quantizers = meta.get("quantizer") if isinstance(meta, Mapping) else None
    for text in quantizers if isinstance(quantizers, list) else [quantizers]:
        found = re.match(r"gptqmodel:(\d+)\.(\d+)(?:\.(\d+))?", str(text).lower())
        if found:
            return tuple(int(number or 0) for number in found.groups())
    return None
