"""The matrices of an ONNX export, read back by what the operators' documentation says of them.

Source: onnxruntime, docs/ContribOperators.md, MatMulNBits and GatherBlockQuantized; onnx.proto on external
data.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from export.quality.tensors import TensorPair
from export.student.base import DecoderStudent, StudentTensor

__all__ = ["onnx_pairs"]

_MODULES: Final = MappingProxyType(
    {
        "qkv_proj": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        "gate_up_proj": ("mlp.gate_proj", "mlp.up_proj"),
        "o_proj": ("self_attn.o_proj",),
        "gate_proj": ("mlp.gate_proj",),
        "up_proj": ("mlp.up_proj",),
        "down_proj": ("mlp.down_proj",),
    }
)
"""Products by the last part of their path in the graph, and the modules whose rows they hold."""

Stored = Mapping[str, Callable[[], NDArray[Any]]]


def onnx_pairs(student: DecoderStudent, model: Path) -> list[TensorPair]:
    """A student's tensors that a graph at `model` holds as blocks of integers, beside what they stand for."""
    graph = onnx.load(model, load_external_data=False).graph
    stored = {tensor.name: _reader(model.parent, tensor) for tensor in graph.initializer}
    orders = {node.output[0]: node.input[1] for node in graph.node if node.name.endswith("/order")}
    tensors = {tensor.name: tensor for tensor in student.tensors()}
    pairs = []
    for node in graph.node:
        if node.op_type == "GatherBlockQuantized":
            parts = (node.input[0], node.input[2], node.input[3] if len(node.input) > 3 else "")
            names, order = ["model.embed_tokens.weight"], None
        elif node.op_type == "MatMulNBits":
            parts = (node.input[1], node.input[2], node.input[3] if len(node.input) > 3 else "")
            names, order = [f"{module}.weight" for module in _modules(node.name)], orders.get(node.input[0])
        else:
            continue
        settings = {item.name: helper.get_attribute_value(item) for item in node.attribute}
        first = 0
        for name in names:
            # A tied head multiplies with the embedding.
            original = tensors.get(name) or tensors["model.embed_tokens.weight"]
            read = _matrix(stored, parts, settings, first, original.shape, order)
            artifact = StudentTensor(name, original.shape, f"INT{settings['bits']}", 0, read)
            pairs.append(TensorPair(original, artifact))
            first += original.shape[0]
    return pairs


def _modules(path: str) -> Iterator[str]:
    """The student's modules whose rows lie in a product, in order; `path` is the node's name."""
    stem = path.rpartition("/")[0]
    if not stem.startswith("/model/"):
        yield stem.strip("/")
        return
    _, _, layer, _, product = stem.split("/")
    for module in _MODULES[product]:
        yield f"model.{layer}.{module}"


def _reader(directory: Path, tensor: onnx.TensorProto) -> Callable[[], NDArray[Any]]:
    """Maps an initializer, which may lie in the file beside the graph, when it is called."""
    if tensor.data_location != onnx.TensorProto.EXTERNAL:
        return lambda: onnx.numpy_helper.to_array(tensor)
    where = {entry.key: entry.value for entry in tensor.external_data}
    dtype = helper.tensor_dtype_to_np_dtype(tensor.data_type)
    path, offset, shape = directory / where["location"], int(where.get("offset", 0)), tuple(tensor.dims)
    return lambda: np.memmap(path, dtype, "r", offset, shape)


def _matrix(
    stored: Stored,
    parts: tuple[str, str, str],
    settings: Mapping[str, Any],
    first: int,
    shape: tuple[int, ...],
    order: str | None,
) -> Callable[[slice], NDArray[np.float32]]:
    """Reads rows of a matrix of `shape` that begins at row `first` of what is stored."""
    bits, block = int(settings["bits"]), int(settings["block_size"])

    def codes_of(values: NDArray[Any]) -> NDArray[np.uint8]:
        flat = np.asarray(values).reshape(values.shape[0], -1).view(np.uint8)
        if bits == 8:
            return flat
        pairs = np.stack([flat & np.uint8(15), flat >> np.uint8(4)], axis=-1)
        return pairs.reshape(flat.shape[0], -1)

    def read(rows: slice) -> NDArray[np.float32]:
        start, stop, _ = rows.indices(shape[0])
        span = slice(first + start, first + stop)
        scales = np.asarray(stored[parts[1]]()[span], np.float32)
        count, blocks = scales.shape
        steps = codes_of(stored[parts[0]]()[span]).reshape(count, blocks, block).astype(np.float32)
        if parts[2]:
            steps -= codes_of(stored[parts[2]]()[span])[:, :blocks, None].astype(np.float32)
        else:
            steps -= np.float32(1 << (bits - 1))
        steps *= scales[:, :, None]
        values = steps.reshape(count, -1)[:, : shape[1]]
        if order is None:
            return values
        # Column j of what is stored is the student's column order[j].
        sorted_back = np.empty_like(values)
        sorted_back[:, stored[order]()] = values
        return sorted_back

    return read
