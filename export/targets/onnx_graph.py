"""The decoder of Llama, Qwen2 and Qwen3 as an ONNX graph for onnxruntime.

Inputs and outputs carry the names that onnxruntime-genai expects: input_ids, attention_mask and
past_key_values.N.key/value in, logits and present.N.key/value out. Operators of the domain com.microsoft:
onnxruntime, docs/ContribOperators.md.

`logits` are those of each sequence's last token only: with long prompts the head is a quarter of a small
model's work. `LAST_TOKEN` begins the names of the nodes that leave the others out; without them the head sees
all.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Final

import numpy as np
import onnx
from onnx import helper

from edgekit.errors import ExportError
from export.student.base import DecoderStudent, StudentTensor
from export.student.config import CheckpointConfig
from export.student.rotary import make_rotary
from export.targets.onnx_data import ELEMENT_TYPES, Put, WeightFile
from export.targets.onnx_matrices import GraphStyle, GraphWriter, Part
from export.targets.onnx_weights import plan_blocks, row_chunks

__all__ = ["LAST_TOKEN", "build_graph"]

LAST_TOKEN: Final = "/model/last_token/GatherND"  # noqa: S105 (a node)
_OPSETS: Final = (("", 21), ("com.microsoft", 1))
_IR_VERSION: Final = 10
_SHORT_BLOCK: Final = 32


def build_graph(
    student: DecoderStudent, style: GraphStyle, *, context_tokens: int, weights: WeightFile
) -> onnx.ModelProto:
    """The graph; its weights are reserved in `weights`, to be written there."""
    return _Decoder(student, style, context_tokens, weights).build()


class _Decoder:
    def __init__(
        self, student: DecoderStudent, style: GraphStyle, context_tokens: int, weights: WeightFile
    ) -> None:
        self._style, self._context = style, context_tokens
        self._config: CheckpointConfig = student.config
        self._tensors = {tensor.name: tensor for tensor in student.tensors()}
        self._weights = weights
        self._writer = GraphWriter(self._tensors, style, weights)

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
            self._writer.nodes,
            "decoder",
            *self._inputs_and_outputs(),
            [*self._writer.constants.values(), *self._weights.initializers],
        )
        return helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid(domain, version) for domain, version in _OPSETS],
            ir_version=_IR_VERSION,
            producer_name="edgekit",
        )

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

    def _add_lengths(self) -> None:
        """GroupQueryAttention wants the last position of each sequence, and the longest length."""
        total = self._writer.node(
            "ReduceSum", "/model/mask/ReduceSum", ["attention_mask", self._writer.integers([1])], keepdims=0
        )
        last = self._writer.node("Sub", "/model/mask/Sub", [total, self._writer.integers([1])])
        self._last_positions = self._writer.node(
            "Cast", "/model/mask/last_positions", [last], to=onnx.TensorProto.INT32
        )
        self._add_last_rows(last)
        shape = self._writer.node("Shape", "/model/mask/Shape", ["attention_mask"])
        length = self._writer.node("Gather", "/model/mask/Gather", [shape, self._writer.integers(1)], axis=0)
        self._total_length = self._writer.node(
            "Cast", "/model/mask/total_length", [length], to=onnx.TensorProto.INT32
        )

    def _add_last_rows(self, last: str) -> None:
        """Where each sequence's last token is in this run, [batch, 1, 1]: shorter prompts of a batch end in
        padding. The mask's length tells nothing, onnxruntime-genai may give it room to grow."""
        path = "/model/last_token"
        longest = self._writer.node("ReduceMax", f"{path}/ReduceMax", [last], keepdims=1)
        padding = self._writer.node("Sub", f"{path}/Sub", [last, longest])
        length = self._writer.node("Shape", f"{path}/Shape", ["input_ids"], start=1, end=2)
        end = self._writer.node("Sub", f"{path}/Sub_1", [length, self._writer.integers([1])])
        row = self._writer.node("Add", f"{path}/Add", [end, padding])
        row = self._writer.node("Max", f"{path}/Max", [row, self._writer.integers([0])])
        self._last_rows = self._writer.node(
            "Unsqueeze", f"{path}/Unsqueeze", [row, self._writer.integers([1, 2])]
        )

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
            table = self._writer.float_matrix("model.embed_tokens.weight", [embedding])
            embedded = self._writer.node("Gather", "/model/embed_tokens/Gather", [table, "input_ids"], axis=0)
            matrix = table if head is None else self._writer.float_matrix("lm_head.weight", [head])
            return lambda value: self._writer.float_product(
                "/lm_head/MatMul", value, matrix, "logits"
            ), embedded
        return self._add_packed_embedding(embedding, head)

    def _add_packed_embedding(
        self, embedding: StudentTensor, head: StudentTensor | None
    ) -> tuple[Callable[[str], None], str]:
        bits = self._style.head_bits
        # Mistakes of the head reach the answer directly: short blocks where it has 4 bits.
        block_size = self._style.block_size if bits == 8 else _SHORT_BLOCK
        matrix = embedding if head is None else head
        of_head = plan_blocks(matrix, bits=bits, block_size=block_size)
        names = self._writer.packed_matrix("lm_head", [Part(matrix, None, of_head)])
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
            shared = self._writer.packed_matrix(
                "model.embed_tokens", [Part(embedding, None, blocks)], flat=True
            )
            table = shared[0]
        inputs = [table, "input_ids", *shared[1:]]
        embedded = self._writer.node(
            "GatherBlockQuantized",
            "/model/embed_tokens/GatherBlockQuantized",
            inputs,
            bits=blocks.bits,
            block_size=blocks.block,
            gather_axis=0,
            quantize_axis=1,
        )

        def add_head(value: str) -> None:
            self._writer.packed_product("/lm_head/MatMul", value, names, of_head, matrix.shape, "logits")

        return add_head, embedded

    def _add_norm(
        self, name: str, weight: str, value: str, skip: str | None, *, last: bool = False
    ) -> tuple[str, str]:
        """RMS norm of value + skip. Returns it and the sum."""
        scale = self._writer.vector(weight, [self._tensors[weight]])
        epsilon = self._config.rms_norm_epsilon
        if skip is None:
            return self._writer.node(
                "SimplifiedLayerNormalization", name, [value, scale], axis=-1, epsilon=epsilon, stash_type=1
            ), value
        normal, total = f"{name}/output_0", f"{name}/output_3"
        outputs = [normal] if last else [normal, "", "", total]
        self._writer.node(
            "SkipSimplifiedLayerNormalization", name, [value, skip, scale], outputs, epsilon=epsilon
        )
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
        (output,) = self._writer.linear(f"{path}/attn/o_proj", attended, [f"{name}.self_attn.o_proj"])
        normal, residual = self._add_norm(
            f"{path}/post_attention_layernorm", f"{name}.post_attention_layernorm.weight", residual, output
        )
        (down,) = self._writer.linear(
            f"{path}/mlp/down_proj", self._add_gate(path, name, normal), [f"{name}.mlp.down_proj"]
        )
        return residual, down

    def _add_last_token(self, name: str, value: str) -> str:
        return self._writer.node("GatherND", name, [value, self._last_rows], batch_dims=1)

    def _add_gate(self, path: str, name: str, value: str) -> str:
        modules = [f"{name}.mlp.gate_proj", f"{name}.mlp.up_proj"]
        blocks = self._writer.part(modules[0]).blocks
        if blocks is not None and blocks.order is not None:
            # Together they need their input reordered once.
            gate, up = self._writer.linear(f"{path}/mlp/gate_up_proj", value, modules)
        else:
            # Taking one product apart costs more than the second product.
            gate, up = (
                self._writer.linear(f"{path}/mlp/{module.rpartition('.')[2]}", value, [module])[0]
                for module in modules
            )
        # x · sigmoid(x). onnxruntime fuses the pair into one kernel where it has one.
        sigmoid = self._writer.node("Sigmoid", f"{path}/mlp/Sigmoid", [gate])
        activated = self._writer.node("Mul", f"{path}/mlp/Silu", [gate, sigmoid])
        return self._writer.node("Mul", f"{path}/mlp/Mul", [activated, up])

    def _add_attention(self, index: int, value: str) -> str:
        config, path = self._config, f"/model/layers.{index}/attn"
        modules = [f"model.layers.{index}.self_attn.{part}_proj" for part in "qkv"]
        normed = config.architecture == "qwen3"
        joined = self._writer.linear(f"{path}/qkv_proj", value, modules, split=normed)
        query, key, values = joined if len(joined) == 3 else (joined[0], "", "")
        if normed:
            query = self._add_head_norm(index, "q", query, config.heads)
            key = self._add_head_norm(index, "k", key, config.kv_heads)
        past = [f"past_key_values.{index}.{kind}" for kind in ("key", "value")]
        output = f"{path}/GroupQueryAttention/output_0"
        return self._writer.node(
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
        split = self._writer.node(
            "Reshape", f"{name}/Reshape", [value, self._writer.integers([0, -1, length])]
        )
        normal, _ = self._add_norm(name, f"model.layers.{index}.self_attn.{which}_norm.weight", split, None)
        return self._writer.node(
            "Reshape", f"{name}/Reshape_1", [normal, self._writer.integers([0, -1, heads * length])]
        )
