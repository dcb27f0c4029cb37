"""Nodes of a graph with weights: vectors, products with float matrices and with blocks of integers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import onnx
from onnx import helper, numpy_helper

from export.student.base import StudentTensor
from export.targets.onnx_data import Put, WeightFile
from export.targets.onnx_weights import Blocks, checked_float32, plan_blocks, put_packed, row_chunks

__all__ = ["GraphStyle", "GraphWriter", "Part"]

_MICROSOFT: Final = frozenset(
    {
        "FusedMatMul",
        "GatherBlockQuantized",
        "GroupQueryAttention",
        "MatMulNBits",
        "SkipSimplifiedLayerNormalization",
    }
)


@dataclass(frozen=True, slots=True)
class GraphStyle:
    """What a graph is made of."""

    element: str
    """Type of activations, norms and the KV cache: "float32" or "float16"."""
    quantized: bool
    """Whether matrices are in blocks of integers."""
    block_size: int
    """Columns that share a scale, where floats are quantized."""
    matrix_bits: int
    """Of matrices of floats within the layers."""
    head_bits: int
    """Of the head and of the embedding, which are one matrix in many models."""
    accuracy_level: int
    """MatMulNBits': 4 computes in int8, 1 in float32."""
    fused_bias: bool
    """Whether MatMulNBits adds the bias. CUDA's kernels do not in all cases."""


@dataclass(frozen=True, slots=True)
class Part:
    """One matrix of several that lie on top of each other."""

    tensor: StudentTensor
    bias: StudentTensor | None
    blocks: Blocks | None


class GraphWriter:
    """Collects nodes and constants; reserves the weights that they use."""

    def __init__(self, tensors: Mapping[str, StudentTensor], style: GraphStyle, weights: WeightFile) -> None:
        self._tensors, self._style, self._weights = tensors, style, weights
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, onnx.TensorProto] = {}

    def integers(self, values: Sequence[int] | int) -> str:
        name = f"/constants/int64/{values}".replace(" ", "")
        if name not in self.constants:
            self.constants[name] = numpy_helper.from_array(np.array(values, np.int64), name)
        return name

    def node(
        self, kind: str, name: str, inputs: Sequence[str], outputs: int | Sequence[str] = 1, **attributes: Any
    ) -> str:
        """Add a node; returns the name of its first output."""
        domain = "com.microsoft" if kind in _MICROSOFT else ""
        names = [f"{name}/output_{i}" for i in range(outputs)] if isinstance(outputs, int) else list(outputs)
        self.nodes.append(helper.make_node(kind, list(inputs), names, name=name, domain=domain, **attributes))
        return names[0]

    def vector(self, name: str, tensors: Sequence[StudentTensor | int]) -> str:
        """Vectors one after another as one; a number stands for so many zeros."""
        element = self._style.element
        lengths = [item if isinstance(item, int) else item.shape[0] for item in tensors]
        self._weights.reserve(name, element, (sum(lengths),))

        def fill(put: Put) -> None:
            parts = [
                np.zeros(item, np.float32) if isinstance(item, int) else checked_float32(item, slice(None))
                for item in tensors
            ]
            put(name, 0, np.concatenate(parts).astype(element))

        self._weights.fill_with(fill, sum(lengths) * 4)
        return name

    def linear(self, name: str, value: str, modules: Sequence[str], *, split: bool = True) -> list[str]:
        """Products of one value with several matrices: in one node where their layouts allow it.

        `split` False: the products may come as one.
        """
        parts = [self.part(module) for module in modules]
        first = parts[0].blocks
        together = all(
            part.blocks is None if first is None else part.blocks is not None and first.joins(part.blocks)
            for part in parts
        )
        if not together:
            return [self._product(module, value, [part]) for module, part in zip(modules, parts, strict=True)]
        product = self._product(name, value, parts)
        if len(parts) == 1 or not split:
            return [product]
        lengths = [part.tensor.shape[0] for part in parts]
        outputs = [f"{name}/Split/output_{index}" for index in range(len(parts))]
        self.node("Split", f"{name}/Split", [product, self.integers(lengths)], outputs, axis=-1)
        return outputs

    def part(self, module: str) -> Part:
        tensor, style = self._tensors[f"{module}.weight"], self._style
        blocks = (
            plan_blocks(tensor, bits=style.matrix_bits, block_size=style.block_size)
            if style.quantized
            else None
        )
        return Part(tensor, self._tensors.get(f"{module}.bias"), blocks)

    def _product(self, name: str, value: str, parts: Sequence[Part]) -> str:
        stem = name.strip("/").replace("/", ".")
        bias = None
        if any(part.bias is not None for part in parts):
            bias = self.vector(f"{stem}.bias", [part.bias or part.tensor.shape[0] for part in parts])
        first, output = parts[0].blocks, f"{name}/output_0"
        rows, columns = sum(part.tensor.shape[0] for part in parts), parts[0].tensor.shape[1]
        if first is None:
            matrix = self.float_matrix(f"{stem}.weight", [part.tensor for part in parts])
            self.float_product(f"{name}/MatMul", value, matrix, output)
        else:
            names = self.packed_matrix(stem, parts)
            fused = bias if self._style.fused_bias else None
            self.packed_product(f"{name}/MatMulNBits", value, names, first, (rows, columns), output, fused)
            bias = None if fused else bias
        return output if bias is None else self.node("Add", f"{name}/Add", [output, bias])

    def float_matrix(self, name: str, tensors: Sequence[StudentTensor]) -> str:
        rows, columns = sum(tensor.shape[0] for tensor in tensors), tensors[0].shape[1]
        self._weights.reserve(name, self._style.element, (rows, columns))
        size = np.dtype(self._style.element).itemsize

        def fill(put: Put) -> None:
            done = 0
            for tensor in tensors:
                for chunk in row_chunks(*tensor.shape):
                    put(name, (done + chunk.start) * columns * size, checked_float32(tensor, chunk))
                done += tensor.shape[0]

        self._weights.fill_with(fill, rows * columns * size)
        return name

    def float_product(self, name: str, value: str, matrix: str, output: str) -> None:
        self.node("FusedMatMul", name, [value, matrix], [output], transB=1)

    def packed_matrix(self, stem: str, parts: Sequence[Part], *, flat: bool = False) -> tuple[str, ...]:
        """Reserves B, scales and, where a part has them, zero points. `flat`: B as rows, not as blocks."""
        blocks = [part.blocks for part in parts if part.blocks is not None]
        has_zeros = any(item.has_zeros for item in blocks)
        rows, columns = sum(part.tensor.shape[0] for part in parts), parts[0].tensor.shape[1]
        packed, scales, zeros = blocks[0].shapes(rows, columns)
        shape = (rows, packed[1] * packed[2]) if flat else packed
        names = [
            self._weights.reserve(f"{stem}.qweight", "uint8", shape),
            self._weights.reserve(f"{stem}.scales", self._style.element, scales),
        ]
        if has_zeros:
            names.append(self._weights.reserve(f"{stem}.zero_points", "uint8", zeros))
        tensors = [
            (part.tensor, replace(item, has_zeros=has_zeros))
            for part, item in zip(parts, blocks, strict=True)
        ]
        element = self._style.element

        def fill(put: Put) -> None:
            put_packed(put, tensors, (names[0], names[1], names[2] if has_zeros else None), element)

        self._weights.fill_with(fill, rows * columns * blocks[0].bits // 8)
        return tuple(names)

    def packed_product(
        self,
        name: str,
        value: str,
        matrix: tuple[str, ...],
        blocks: Blocks,
        shape: tuple[int, ...],
        output: str,
        bias: str | None = None,
    ) -> None:
        if blocks.order is not None:
            order = self._weights.reserve(f"{matrix[0]}.order", "int64", (shape[1],))
            columns = blocks.order
            self._weights.fill_with(lambda put: put(order, 0, columns), columns.nbytes)
            value = self.node("Gather", f"{name}/order", [value, order], axis=-1)
        inputs = [value, *matrix]
        if bias is not None:
            inputs += [""] * (5 - len(inputs)) + [bias]
        self.node(
            "MatMulNBits",
            name,
            inputs,
            [output],
            K=shape[1],
            N=shape[0],
            bits=blocks.bits,
            block_size=blocks.block,
            accuracy_level=self._style.accuracy_level,
        )
