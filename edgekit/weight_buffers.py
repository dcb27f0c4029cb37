"""Where llama.cpp keeps a model's weights, and what they take there.

It maps the model's file. Matrices for which ggml's CPU kernels want another layout are copied into memory of
their own, rearranged, when the model is loaded; their pages of the file are not needed any more. So every
weight is needed once, in one place or the other, but for a token embedding that is the output matrix as
well: rows are looked up in the file, and the multiplication wants the copy. Some layouts are larger than the
file's.

Source: llama.cpp 0c1e57098 (llama-cpp-python 0.3.36), ggml/src/ggml-cpu: repack.cpp
(ggml_repack_get_optimal_repack_type), amx/amx.cpp (supports_op), amx/mmq.cpp (get_row_size), and
llama-model-loader.cpp (buft_for_tensor). KleidiAI, which changes what ARM copies, is off by default.
"""

from __future__ import annotations

from collections.abc import Iterable, Set
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, Protocol

from edgekit.facts import ModelFacts

__all__ = ["HeldWeights", "WeightTensor", "copy_bytes", "estimate_weights", "held_weights", "isa_of_build"]

_FEATURES: Final = MappingProxyType(
    {
        "AVX2": "avx2",
        "AVX512": "avx512f",
        "AVX512_VNNI": "avx512_vnni",
        "AMX_INT8": "amx_int8",
        "NEON": "asimd",
        "DOTPROD": "asimddp",
        "MATMUL_INT8": "i8mm",
    }
)
"""What llama.cpp calls the extensions of its build, and what /proc/cpuinfo does."""

_AMX_COLUMNS: Final = MappingProxyType(
    {"F16": 16, "Q4_0": 32, "Q4_1": 32, "Q8_0": 32, "Q4_K": 256, "Q5_K": 256, "Q6_K": 256, "IQ4_XS": 256}
)
"""Types that AMX takes to what a row's length must be a multiple of. Rows must be a multiple of 32."""
_AMX_ADDED: Final = MappingProxyType(
    {"Q8_0": (32, 4), "Q4_K": (256, 4), "Q5_K": (256, 4), "IQ4_XS": (256, 2)}
)
"""Types that grow in AMX's layout: for a block of so many values, so many bytes."""
_AVX2_ROWS: Final = MappingProxyType({"Q4_0": 8, "Q4_K": 8, "IQ4_NL": 8, "MXFP4": 8})
_AVX512_ROWS: Final = MappingProxyType({"Q2_K": 8})
_ARM_ROWS: Final = MappingProxyType(
    {"Q4_0": 4, "Q8_0": 4, "IQ4_NL": 4, "MXFP4": 4, "Q1_0": 4, "Q4_K": 8, "Q5_K": 8, "Q6_K": 8}
)
"""Types that are interleaved to what the number of rows must be a multiple of."""

_EMBEDDING_BYTES: Final = MappingProxyType(
    {"F32": 4.0, "F16": 2.0, "BF16": 2.0, "Q8_0": 34 / 32, "Q6_K": 210 / 256}
)
"""Bytes a value of the types that llama.cpp's quantizer gives the output matrix."""
_FOR_SHORT_ROWS: Final = MappingProxyType(
    {"Q2_K": "Q4_0", "Q3_K": "Q4_0", "Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0", "IQ4_XS": "IQ4_NL"}
)
"""What becomes of types with blocks of 256 where rows are no multiple of it."""


class WeightTensor(Protocol):
    """What `edgekit.gguf_header.TensorInfo` has. `shape` in ggml's order: columns, rows."""

    @property
    def name(self) -> str: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def type_name(self) -> str: ...
    @property
    def size_bytes(self) -> int: ...


@dataclass(frozen=True, slots=True)
class HeldWeights:
    """Bytes of the weights that must be in memory to compute."""

    mapped_bytes: int
    """Read from the mapped file."""
    copied_bytes: int
    """Rearranged, in memory of their own."""

    @property
    def total_bytes(self) -> int:
        return self.mapped_bytes + self.copied_bytes


def isa_of_build(system_info: str) -> frozenset[str]:
    """The extensions that a build of llama.cpp rearranges weights for, by the names of /proc/cpuinfo.

    Args:
        system_info: what llama_print_system_info returns, "CPU : AVX2 = 1 | REPACK = 1 | ".
    """
    entries = (entry.partition("=") for entry in system_info.replace("CPU :", "|").split("|"))
    found = {name.strip() for name, _, value in entries if value.strip() == "1"}
    isa = {cpuinfo for feature, cpuinfo in _FEATURES.items() if feature in found}
    return frozenset(isa if "REPACK" in found else isa & {"amx_int8", "avx512_vnni"})


def copy_bytes(type_name: str, shape: tuple[int, ...], size_bytes: int, isa: Set[str]) -> int | None:
    """Bytes of the copy that ggml makes of a matrix it multiplies with; None: it computes from the file.

    Args:
        shape: columns, rows.
        size_bytes: in the file.
        isa: extensions that ggml is built for, by the names of /proc/cpuinfo.
    """
    if len(shape) != 2:
        return None
    columns, rows = shape
    has_amx = {"amx_int8", "avx512_vnni"} <= isa and type_name in _AMX_COLUMNS
    if has_amx and columns % _AMX_COLUMNS[type_name] == 0 and rows % 32 == 0:
        block, added = _AMX_ADDED.get(type_name, (1, 0))
        return size_bytes + rows * (columns // block) * added
    multiples = [
        table[type_name]
        for extension, table in (
            ("avx2", _AVX2_ROWS),
            ("avx512f", _AVX512_ROWS),
            ("asimddp", _ARM_ROWS),
            ("i8mm", _ARM_ROWS),
        )
        if extension in isa and type_name in table
    ]
    return size_bytes if any(rows % multiple == 0 for multiple in multiples) else None


def held_weights(tensors: Iterable[WeightTensor], isa: Set[str], *, on_gpu: bool = False) -> HeldWeights:
    """What a GGUF's tensors take once they are loaded.

    Args:
        tensors: all of a file's.
        isa: extensions that ggml is built for, by the names of /proc/cpuinfo.
        on_gpu: all layers and the output are on an accelerator; it gets copies of the file's size, and the
            token embedding stays behind.
    """
    known = {tensor.name: tensor for tensor in tensors}
    mapped = copied = 0
    for tensor in known.values():
        is_embedding = tensor.name == "token_embd.weight"
        if is_embedding:
            mapped += tensor.size_bytes
            if "output.weight" in known:
                continue
        size = tensor.size_bytes
        copy = size if on_gpu else copy_bytes(tensor.type_name, tensor.shape, size, isa)
        if copy is not None:
            copied += copy
        elif not is_embedding:
            mapped += size
    return HeldWeights(mapped, copied)


def estimate_weights(facts: ModelFacts, isa: Set[str], *, on_gpu: bool = False) -> HeldWeights:
    """`held_weights` of a model whose tensors are not at hand, by the types that its quantization implies.

    Against the tensors of nine quantizations of SmolLM2 and five of a 1B llama: the sum within 0.4 %, as the
    types of a mix grow more or less than its main one (AMX only). Which part is copied is less certain.
    """
    width, vocabulary = facts.embedding_length, facts.vocabulary
    head = _head_type(facts.quantization, width)
    if facts.tied_embeddings:
        embedding = head_bytes = round(vocabulary * width * _EMBEDDING_BYTES[head])
        layers = facts.weight_bytes - embedding
    else:
        embedding = facts.weight_bytes - facts.bytes_per_token
        head_bytes = min(facts.bytes_per_token, round(vocabulary * width * _EMBEDDING_BYTES[head]))
        layers = facts.bytes_per_token - head_bytes
    if on_gpu:
        return HeldWeights(embedding, layers + head_bytes)
    copied = 0
    mapped = embedding
    head_copy = copy_bytes(head, (width, vocabulary), head_bytes, isa)
    if head_copy is not None:
        copied += head_copy
    elif not facts.tied_embeddings:
        mapped += head_bytes
    main = facts.quantization.removesuffix("_M").removesuffix("_S")
    if width % 256:
        main = _FOR_SHORT_ROWS.get(main, main)
    # One matrix stands for all: its rows are as long as most, its size is that of the layers together.
    values = facts.parameters - (1 if facts.tied_embeddings else 2) * vocabulary * width
    layers_copy = copy_bytes(main, (width, max(0, values) // width // 32 * 32), layers, isa)
    if layers_copy is None:
        mapped += layers
    else:
        copied += layers_copy
    return HeldWeights(mapped, copied)


def _head_type(quantization: str, width: int) -> str:
    """The type of the output matrix (llama-quant.cpp, llama_tensor_get_type_impl)."""
    if quantization in ("F32", "F16", "BF16"):
        return quantization
    if quantization == "Q8_0" or width % 256:
        return "Q8_0"
    return "Q6_K"
