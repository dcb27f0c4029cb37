"""What a step of decoding reads from memory: the weights once, and the keys and values of every stream."""

from __future__ import annotations

from collections.abc import Iterable, Set

from edgekit.facts import ModelFacts
from edgekit.forecast import kv_bytes
from edgekit.profiles import ServeSettings
from edgekit.weight_buffers import WeightTensor, copy_bytes

__all__ = ["step_bytes", "weight_bytes_read"]


def weight_bytes_read(tensors: Iterable[WeightTensor], isa: Set[str]) -> int:
    """Bytes of weights that a step reads: all in the layout that they are computed from, rearranged or not.

    Of a token embedding only a row a token is read, unless it is the output matrix as well.

    Args:
        tensors: all of a GGUF's.
        isa: extensions that ggml is built for, see `edgekit.weight_buffers`; empty for an accelerator.
    """
    known = {tensor.name: tensor for tensor in tensors}
    read = 0
    for tensor in known.values():
        if tensor.name == "token_embd.weight" and "output.weight" in known:
            continue
        copy = copy_bytes(tensor.type_name, tensor.shape, tensor.size_bytes, isa)
        read += tensor.size_bytes if copy is None else copy
    return read


def step_bytes(
    weight_bytes: int, facts: ModelFacts, settings: ServeSettings, *, streams: int, depth: int, tokens: int
) -> int:
    """Bytes read in the mean step of a run that decodes `tokens` tokens of each stream from a depth on."""
    mean_cells = depth + (tokens + 1) / 2
    return weight_bytes + streams * round(kv_bytes(facts, settings, tokens=1) * mean_cells)
