"""The decoder of Llama, Qwen2 and Qwen3 as an ONNX graph for onnxruntime.

Inputs and outputs carry the names that onnxruntime-genai expects: input_ids, attention_mask and
past_key_values.N.key/value in, logits and present.N.key/value out. Operators of the domain com.microsoft:
onnxruntime, docs/ContribOperators.md.

`logits` are those of each sequence's last token only: with long prompts the head is a quarter of a small
model's work. `LAST_TOKEN` begins the names of the nodes that leave the others out; without them the head sees
all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import onnx
from onnx import helper, numpy_helper

from edgekit.errors import ExportError
from export.rotary import make_rotary
from export.student.base import DecoderStudent, StudentTensor
from export.student.config import CheckpointConfig
from export.targets.onnx_data import ELEMENT_TYPES, Put, WeightFile
from export.targets.onnx_weights import (
    Blocks,
    checked_float32,
    plan_blocks,
    put_packed,
    row_chunks,
)

__all__ = ["LAST_TOKEN", "GraphStyle", "build_graph"]

LAST_TOKEN: Final = "/model/last_token/GatherND"  # noqa: S105 (a node)
_OPSETS: Final = (("", 21), ("com.microsoft", 1))
_IR_VERSION: Final = 10
_SHORT_BLOCK: Final = 32


@dataclass(frozen=True, slots=True)
class GraphStyle:
    """What a graph is made of."""

    element: str
    """Type of activations, norms and the KV cache: "float32" or "float16"."""
    quantized: bool
    """Whether matrices are in blocks of integers."""
    block_size: int
    """Columns that share a scale, where floats are quantized."""
    head_bits: int
    """Of the head and of the embedding, which are one matrix in many models."""
    accuracy_level: int
    """MatMulNBits': 4 computes in int8, 1 in float32."""
    fused_bias: bool
    """Whether MatMulNBits adds the bias. CUDA's kernels do not in all cases."""


def build_graph(
    student: DecoderStudent, style: GraphStyle, *, context_tokens: int, weights: WeightFile
) -> onnx.ModelProto:
    """The graph; its weights are reserved in `weights`, to be written there."""
    return _Decoder(student, style, context_tokens, weights).build()


@dataclass(frozen=True, slots=True)
class _Part:
    """One matrix of several that lie on top of each other."""

    tensor: StudentTensor
    bias: StudentTensor | None
    blocks: Blocks | None


class _Decoder:
    def __init__(
        self, student: DecoderStudent, style: GraphStyle, context_tokens: int, weights: WeightFile
    ) -> None:
        self._student, self._style, self._context = student, style, context_tokens
        self._config: CheckpointConfig = student.config
        self._tensors = {tensor.name: tensor for tensor in student.tensors()}
        self._weights = weights
        self._nodes: list[onnx.NodeProto] = []
        self._constants: dict[str, onnx.TensorProto] = {}

    def build(self) -> onnx.ModelProto:
        self._add_lengths()
        head, embedded = self._add_embedding()
        self._add_rotary_tables()
        residual, skip = embedded, None
        for index in range(self._config.layers):
            residual, skip = self._add_layer(index, residual, skip)
        normal, _ = self._add_norm("/model/norm", "model.norm.weight", residual, skip, last=True)
        head(normal)
        graph = helper.make_graph(
            self._nodes,
            "decoder",
            *self._inputs_and_outputs(),
            [*self._constants.values(), *self._weights.initializers],
        )
        return helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid(domain, version) for domain, version in _OPSETS],
            ir_version=_IR_VERSION,
            producer_name="edgekit",
        )

    # Inputs, outputs, constants

    def _inputs_and_outputs(self) -> tuple[list[onnx.ValueInfoProto], list[onnx.ValueInfoProto]]:
        config, element = self._config, ELEMENT_TYPES[self._style.element]
        ids = onnx.TensorProto.INT64

        def cache(prefix: str, length: str) -> list[onnx.ValueInfoProto]:
            shape: list[str | int | None] = ["batch_size", config.kv_heads, length, config.head_length]
            return [
                helper.make_tensor_value_info(f"{prefix}.{index}.{kind}", element, shape)
                for index in range(config.layers)
                for kind in ("key", "value")
            ]

        inputs = [
            helper.make_tensor_value_info("input_ids", ids, ["batch_size", "sequence_length"]),
            helper.make_tensor_value_info("attention_mask", ids, ["batch_size", "total_sequence_length"]),
            *cache("past_key_values", "past_sequence_length"),
        ]
        # The length is left open: a variant of the graph without LAST_TOKEN gives all.
        logits = helper.make_tensor_value_info(
            "logits", element, ["batch_size", "logits_length", config.vocabulary]
        )
        return inputs, [logits, *cache("present", "total_sequence_length")]

    def _integers(self, values: Sequence[int] | int) -> str:
        name = f"/constants/int64/{values}".replace(" ", "")
        if name not in self._constants:
            self._constants[name] = numpy_helper.from_array(np.array(values, np.int64), name)
        return name

    def _node(
        self, kind: str, name: str, inputs: Sequence[str], outputs: int | Sequence[str] = 1, **attributes: Any
    ) -> str:
        """Add a node; returns the name of its first output."""
        domain = "com.microsoft" if kind in _MICROSOFT else ""
        names = [f"{name}/output_{i}" for i in range(outputs)] if isinstance(outputs, int) else list(outputs)
        self._nodes.append(
            helper.make_node(kind, list(inputs), names, name=name, domain=domain, **attributes)
        )
        return names[0]

    def _vector(self, name: str, tensors: Sequence[StudentTensor | int]) -> str:
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

    # Parts of the decoder

    def _add_lengths(self) -> None:
        """GroupQueryAttention wants the last position of each sequence, and the longest length."""
        total = self._node(
            "ReduceSum", "/model/mask/ReduceSum", ["attention_mask", self._integers([1])], keepdims=0
        )
        last = self._node("Sub", "/model/mask/Sub", [total, self._integers([1])])
        self._last_positions = self._node(
            "Cast", "/model/mask/last_positions", [last], to=onnx.TensorProto.INT32
        )
        self._add_last_rows(last)
        shape = self._node("Shape", "/model/mask/Shape", ["attention_mask"])
        length = self._node("Gather", "/model/mask/Gather", [shape, self._integers(1)], axis=0)
        self._total_length = self._node(
            "Cast", "/model/mask/total_length", [length], to=onnx.TensorProto.INT32
        )

    def _add_last_rows(self, last: str) -> None:
        """Where each sequence's last token is in this run, [batch, 1, 1]: shorter prompts of a batch end in
        padding. The mask's length tells nothing, onnxruntime-genai may give it room to grow."""
        path = "/model/last_token"
        longest = self._node("ReduceMax", f"{path}/ReduceMax", [last], keepdims=1)
        padding = self._node("Sub", f"{path}/Sub", [last, longest])
        length = self._node("Shape", f"{path}/Shape", ["input_ids"], start=1, end=2)
        end = self._node("Sub", f"{path}/Sub_1", [length, self._integers([1])])
        row = self._node("Add", f"{path}/Add", [end, padding])
        row = self._node("Max", f"{path}/Max", [row, self._integers([0])])
        self._last_rows = self._node("Unsqueeze", f"{path}/Unsqueeze", [row, self._integers([1, 2])])

    def _add_rotary_tables(self) -> None:
        positions, element = self._context, self._style.element
        shape = (positions, self._config.head_length // 2)
        names = [self._weights.reserve(name, element, shape) for name in ("cos_cache", "sin_cache")]
        rotary = make_rotary(self._config)

        def fill(put: Put) -> None:
            for rows in row_chunks(*shape):
                angles = np.outer(np.arange(rows.start, rows.stop, dtype=np.float32), rotary.frequencies)
                for name, function in zip(names, (np.cos, np.sin), strict=True):
                    table = function(angles) * np.float32(rotary.factor)
                    put(name, rows.start * shape[1] * np.dtype(element).itemsize, table.astype(element))

        self._weights.fill_with(fill, 2 * positions * shape[1] * 4)

    def _add_embedding(self) -> tuple[Callable[[str], None], str]:
        """Adds the embedding. Returns what adds the head, and the embedded tokens."""
        embedding = self._tensors["model.embed_tokens.weight"]
        head = self._tensors.get("lm_head.weight")
        if not self._style.quantized:
            table = self._float_matrix("model.embed_tokens.weight", [embedding])
            embedded = self._node("Gather", "/model/embed_tokens/Gather", [table, "input_ids"], axis=0)
            matrix = table if head is None else self._float_matrix("lm_head.weight", [head])
            return lambda value: self._add_float_product("/lm_head/MatMul", value, matrix, "logits"), embedded
        return self._add_packed_embedding(embedding, head)

    def _add_packed_embedding(
        self, embedding: StudentTensor, head: StudentTensor | None
    ) -> tuple[Callable[[str], None], str]:
        bits = self._style.head_bits
        # Mistakes of the head reach the answer directly: short blocks where it has 4 bits.
        block_size = self._style.block_size if bits == 8 else _SHORT_BLOCK
        matrix = embedding if head is None else head
        of_head = plan_blocks(matrix, bits=bits, block_size=block_size)
        names = self._packed_matrix("lm_head", [_Part(matrix, None, of_head)])
        rows, columns = embedding.shape
        blocks = of_head if head is None else plan_blocks(embedding, bits=bits, block_size=block_size)
        if blocks.order is not None or columns % blocks.block:
            # Rows are looked up as they lie: nothing may be reordered, nothing padded.
            blocks = plan_blocks(replace(embedding, integers=None), bits=bits, block_size=block_size)
            if columns % blocks.block:
                raise ExportError(
                    f"the embedding has {columns} columns, which is no multiple of {blocks.block}: "
                    "onnxruntime cannot look up quantized rows of this length",
                    hint="export as fp32",
                )
        if head is None and blocks is of_head:
            flat = (rows, columns * blocks.bits // 8)
            table = self._weights.alias("model.embed_tokens.qweight", "uint8", flat, of=names[0])
            shared = names
        else:
            shared = self._packed_matrix("model.embed_tokens", [_Part(embedding, None, blocks)], flat=True)
            table = shared[0]
        inputs = [table, "input_ids", *shared[1:]]
        embedded = self._node(
            "GatherBlockQuantized",
            "/model/embed_tokens/GatherBlockQuantized",
            inputs,
            bits=blocks.bits,
            block_size=blocks.block,
            gather_axis=0,
            quantize_axis=1,
        )

        def add_head(value: str) -> None:
            self._add_packed_product("/lm_head/MatMul", value, names, of_head, matrix.shape, "logits")

        return add_head, embedded

    def _add_norm(
        self, name: str, weight: str, value: str, skip: str | None, *, last: bool = False
    ) -> tuple[str, str]:
        """RMS norm of value + skip. Returns it and the sum."""
        scale = self._vector(weight, [self._tensors[weight]])
        epsilon = self._config.rms_norm_epsilon
        if skip is None:
            return self._node(
                "SimplifiedLayerNormalization", name, [value, scale], axis=-1, epsilon=epsilon, stash_type=1
            ), value
        normal, total = f"{name}/output_0", f"{name}/output_3"
        outputs = [normal] if last else [normal, "", "", total]
        self._node("SkipSimplifiedLayerNormalization", name, [value, skip, scale], outputs, epsilon=epsilon)
        return normal, total

    def _add_layer(self, index: int, residual: str, skip: str | None) -> tuple[str, str]:
        """Returns the residual stream and what is still to be added to it."""
        path, name = f"/model/layers.{index}", f"model.layers.{index}"
        normal, residual = self._add_norm(
            f"{path}/input_layernorm", f"{name}.input_layernorm.weight", residual, skip
        )
        attended = self._add_attention(index, normal)
        if index == self._config.layers - 1:
            # From here on, tokens do not see each other.
            attended = self._add_last_token(f"{LAST_TOKEN}_attention", attended)
            residual = self._add_last_token(LAST_TOKEN, residual)
        (output,) = self._add_linear(f"{path}/attn/o_proj", attended, [f"{name}.self_attn.o_proj"])
        normal, residual = self._add_norm(
            f"{path}/post_attention_layernorm", f"{name}.post_attention_layernorm.weight", residual, output
        )
        (down,) = self._add_linear(
            f"{path}/mlp/down_proj", self._add_gate(path, name, normal), [f"{name}.mlp.down_proj"]
        )
        return residual, down

    def _add_last_token(self, name: str, value: str) -> str:
        return self._node("GatherND", name, [value, self._last_rows], batch_dims=1)

    def _add_gate(self, path: str, name: str, value: str) -> str:
        modules = [f"{name}.mlp.gate_proj", f"{name}.mlp.up_proj"]
        blocks = self._part(modules[0]).blocks
        if blocks is not None and blocks.order is not None:
            # Together they need their input reordered once.
            gate, up = self._add_linear(f"{path}/mlp/gate_up_proj", value, modules)
        else:
            # Taking one product apart costs more than the second product.
            gate, up = (
                self._add_linear(f"{path}/mlp/{module.rpartition('.')[2]}", value, [module])[0]
                for module in modules
            )
        # x · sigmoid(x). onnxruntime fuses the pair into one kernel where it has one.
        sigmoid = self._node("Sigmoid", f"{path}/mlp/Sigmoid", [gate])
        activated = self._node("Mul", f"{path}/mlp/Silu", [gate, sigmoid])
        return self._node("Mul", f"{path}/mlp/Mul", [activated, up])

    def _add_attention(self, index: int, value: str) -> str:
        config, path = self._config, f"/model/layers.{index}/attn"
        modules = [f"model.layers.{index}.self_attn.{part}_proj" for part in "qkv"]
        normed = config.architecture == "qwen3"
        joined = self._add_linear(f"{path}/qkv_proj", value, modules, split=normed)
        query, key, values = joined if len(joined) == 3 else (joined[0], "", "")
        if normed:
            query = self._add_head_norm(index, "q", query, config.heads)
            key = self._add_head_norm(index, "k", key, config.kv_heads)
        past = [f"past_key_values.{index}.{kind}" for kind in ("key", "value")]
        output = f"{path}/GroupQueryAttention/output_0"
        return self._node(
            "GroupQueryAttention",
            f"{path}/GroupQueryAttention",
            [query, key, values, *past, self._last_positions, self._total_length, "cos_cache", "sin_cache"],
            [output, f"present.{index}.key", f"present.{index}.value"],
            num_heads=config.heads,
            kv_num_heads=config.kv_heads,
            scale=config.head_length**-0.5,
            do_rotary=1,
            rotary_interleaved=0,
        )

    def _add_head_norm(self, index: int, which: str, value: str, heads: int) -> str:
        """Qwen3 normalizes each head of queries and keys before they are rotated."""
        name, length = f"/model/layers.{index}/attn/{which}_norm", self._config.head_length
        split = self._node("Reshape", f"{name}/Reshape", [value, self._integers([0, -1, length])])
        normal, _ = self._add_norm(name, f"model.layers.{index}.self_attn.{which}_norm.weight", split, None)
        return self._node("Reshape", f"{name}/Reshape_1", [normal, self._integers([0, -1, heads * length])])

    # Matrices

    def _add_linear(self, name: str, value: str, modules: Sequence[str], *, split: bool = True) -> list[str]:
        """Products of one value with several matrices: in one node where their layouts allow it.

        `split` False: the products may come as one.
        """
        parts = [self._part(module) for module in modules]
        first = parts[0].blocks
        together = all(
            part.blocks is None if first is None else part.blocks is not None and first.joins(part.blocks)
            for part in parts
        )
        if not together:
            return [
                self._add_product(module, value, [part]) for module, part in zip(modules, parts, strict=True)
            ]
        product = self._add_product(name, value, parts)
        if len(parts) == 1 or not split:
            return [product]
        lengths = [part.tensor.shape[0] for part in parts]
        outputs = [f"{name}/Split/output_{index}" for index in range(len(parts))]
        self._node("Split", f"{name}/Split", [product, self._integers(lengths)], outputs, axis=-1)
        return outputs

    def _part(self, module: str) -> _Part:
        tensor, style = self._tensors[f"{module}.weight"], self._style
        blocks = plan_blocks(tensor, bits=4, block_size=style.block_size) if style.quantized else None
        return _Part(tensor, self._tensors.get(f"{module}.bias"), blocks)

    def _add_product(self, name: str, value: str, parts: Sequence[_Part]) -> str:
        stem = name.strip("/").replace("/", ".")
        bias = None
        if any(part.bias is not None for part in parts):
            bias = self._vector(f"{stem}.bias", [part.bias or part.tensor.shape[0] for part in parts])
        first, output = parts[0].blocks, f"{name}/output_0"
        rows, columns = sum(part.tensor.shape[0] for part in parts), parts[0].tensor.shape[1]
        if first is None:
            matrix = self._float_matrix(f"{stem}.weight", [part.tensor for part in parts])
            self._add_float_product(f"{name}/MatMul", value, matrix, output)
        else:
            names = self._packed_matrix(stem, parts)
            fused = bias if self._style.fused_bias else None
            self._add_packed_product(
                f"{name}/MatMulNBits", value, names, first, (rows, columns), output, fused
            )
            bias = None if fused else bias
        return output if bias is None else self._node("Add", f"{name}/Add", [output, bias])

    def _float_matrix(self, name: str, tensors: Sequence[StudentTensor]) -> str:
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

    def _add_float_product(self, name: str, value: str, matrix: str, output: str) -> None:
        self._node("FusedMatMul", name, [value, matrix], [output], transB=1)

    def _packed_matrix(self, stem: str, parts: Sequence[_Part], *, flat: bool = False) -> tuple[str, ...]:
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

    def _add_packed_product(
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
            value = self._node("Gather", f"{name}/order", [value, order], axis=-1)
        inputs = [value, *matrix]
        if bias is not None:
            inputs += [""] * (5 - len(inputs)) + [bias]
        self._node(
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


_MICROSOFT: Final = frozenset(
    {
        "FusedMatMul",
        "GatherBlockQuantized",
        "GroupQueryAttention",
        "MatMulNBits",
        "SkipSimplifiedLayerNormalization",
    }
)
