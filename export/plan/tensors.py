"""What becomes of each of a checkpoint's tensors in a GGUF file. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import prod
from types import MappingProxyType
from typing import Final, Literal

from edgekit.facts import ModelFacts
from edgekit.gguf_header.tensor_types import FLOAT_TYPES, TENSOR_TYPES
from export.plan.quantization_mix import base_type, tensor_types
from export.plan.repacking import Repacking, repackings
from export.student.base import StudentTensor
from export.student.gguf_names import gguf_name
from export.student.integers import IntegerLayout

__all__ = [
    "Method",
    "TensorFacts",
    "TensorPlan",
    "plan_tensors",
    "planned_facts",
    "repack_quantization",
    "tensor_facts",
]

Method = Literal["copy", "convert", "repack", "quantize", "requantize"]
"""copy: the stored floats. convert: to another float type. repack: the student's integers, not quantized
again. quantize: floats by ggml's quantizer. requantize: packed weights dequantized first, which adds a
second loss to the first."""

_FILE_TYPE_OF_REPACKED: Final = MappingProxyType({"Q4_K": "Q4_K_S"})
"""Where file types have other names than the tensor type they are made of."""

_LEFT_ALONE_TYPE: Final = "Q8_0"
"""What matrices become that the student's own quantizer left in full precision: embedding and head.
It did so because they matter; at 8.5 bits their loss is below what one can measure."""


@dataclass(frozen=True, slots=True)
class TensorFacts:
    """A tensor of a student without its values. `shape` in numpy's order; the name is Hugging Face's."""

    name: str
    shape: tuple[int, ...]
    storage: str
    size_bytes: int
    layout: IntegerLayout | None = None


@dataclass(frozen=True, slots=True)
class TensorPlan:
    """What a tensor becomes. `exact`: every value as the student has it, bit for bit."""

    name: str
    gguf_name: str
    shape: tuple[int, ...]
    storage: str
    type_name: str
    method: Method
    exact: bool

    @property
    def size_bytes(self) -> int:
        return prod(self.shape) // _BLOCKS[self.type_name][0] * _BLOCKS[self.type_name][1]


_BLOCKS: Final = MappingProxyType(
    {kind.name: (kind.block_length, kind.block_bytes) for kind in TENSOR_TYPES.values()}
)


def tensor_facts(tensors: Iterable[StudentTensor]) -> tuple[TensorFacts, ...]:
    """What planning needs to know of a student's tensors."""
    return tuple(
        TensorFacts(
            tensor.name,
            tensor.shape,
            tensor.storage,
            tensor.size_bytes,
            None if tensor.integers is None else tensor.integers.layout,
        )
        for tensor in tensors
    )


def repack_quantization(tensors: Sequence[TensorFacts]) -> str | None:
    """The file type in which a student's integer matrices can stay as they are.

    None: it has none, or fewer than half of its packed weights could stay.
    """
    found, packed = Counter[str](), 0
    for tensor in tensors:
        if tensor.storage not in FLOAT_TYPES:
            packed += prod(tensor.shape)
        if options := _repackings(tensor):
            found[options[0].type_name] += prod(tensor.shape)
    if 2 * found.total() < packed or not found:
        return None
    name = found.most_common(1)[0][0]
    return _FILE_TYPE_OF_REPACKED.get(name, name)


def plan_tensors(
    tensors: Sequence[TensorFacts], facts: ModelFacts, quantization: str, *, importance: bool = False
) -> tuple[TensorPlan, ...]:
    """Choose type and method for each tensor, in the order given.

    Integers that the quantization's type holds are moved; where it is the one that `repack_quantization`
    names, so are those that another type holds. All else gets the type that llama.cpp gives it.

    Args:
        facts: of the student.
        quantization: a file type as llama-quantize spells it.
        importance: whether an importance matrix will be there, which changes llama.cpp's choice.
    """
    mix = {name: kind for name, _, kind in tensor_types(facts, quantization, importance=importance)}
    base = base_type(quantization)
    repacking = quantization == repack_quantization(tensors)
    return tuple(_plan(tensor, mix, base, repacking=repacking) for tensor in tensors)


def planned_facts(
    facts: ModelFacts, plans: Sequence[TensorPlan], quantization: str, *, extra_bytes: int = 0
) -> ModelFacts:
    """The facts of the model that a plan makes: other types, other sizes."""
    sizes = {plan.gguf_name: plan.size_bytes for plan in plans}
    total = sum(sizes.values()) + extra_bytes
    looked_up = 0 if facts.tied_embeddings else sizes["token_embd.weight"]
    return facts.model_copy(
        update={"quantization": quantization, "weight_bytes": total, "bytes_per_token": total - looked_up}
    )


def _repackings(tensor: TensorFacts) -> tuple[Repacking, ...]:
    return () if tensor.layout is None else repackings(tensor.layout, tensor.shape[1])


def _plan(
    tensor: TensorFacts, mix: MappingProxyType[str, str] | dict[str, str], base: str, *, repacking: bool
) -> TensorPlan:
    name = gguf_name(tensor.name)
    is_vector = len(tensor.shape) == 1
    type_name = "F32" if is_vector else mix.get(name, base)
    is_float = tensor.storage in FLOAT_TYPES
    method: Method
    options = _repackings(tensor)
    # Among matrices that stay as they are, others may, too, in types of their own: 8 bits among 4.
    other = options[0] if options and repacking else None
    moved = next((option for option in options if option.type_name == base), other)
    if moved is not None:
        type_name, method, exact = moved.type_name, "repack", moved.exact
    elif type_name in FLOAT_TYPES:
        method = "copy" if type_name == tensor.storage else "convert"
        exact = method == "copy" or type_name == "F32"
    else:
        if is_float and repacking and tensor.shape[-1] % 32 == 0:
            type_name = _LEFT_ALONE_TYPE
        method, exact = ("quantize" if is_float else "requantize"), False
    return TensorPlan(
        name=tensor.name,
        gguf_name=name,
        shape=tensor.shape,
        storage=tensor.storage,
        type_name=type_name,
        method=method,
        exact=exact,
    )
