"""Graphs that give a longer KV cache back for the one they take: one sequence after another.

That is what optimum exports, for any architecture. Sequences of different lengths do not go into one batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekit.engine.onnx.session import DecoderGraph, run_bound
from edgekit.engine.runner import Slice

__all__ = ["GrowingDecoder"]


class GrowingDecoder:
    """A graph, and the KV cache of all sequences. See `InPlaceDecoder`, whose methods it has."""

    def __init__(self, graph: DecoderGraph, *, chunk_tokens: int) -> None:
        self._graph = graph
        self._chunk_tokens = chunk_tokens
        self._caches: dict[int, dict[str, NDArray[Any]]] = {}
        self._logits: list[NDArray[np.float32]] = []

    def run(self, slices: Sequence[Slice]) -> list[int]:
        self._logits = []
        rows = []
        for piece in slices:
            last = self._compute(piece)
            if piece.sample or piece.embed:
                rows.append(len(self._logits))
                self._logits.append(last)
        return rows

    def logits(self, row: int) -> NDArray[np.float32]:
        return self._logits[row]

    def share(self, source: int, target: int, end: int) -> None:
        self._caches[target] = _cut(self._caches[source], end)

    def forget(self, sequence: int, start: int) -> None:
        cache = self._caches.pop(sequence, None)
        if cache is not None and start > 0:
            self._caches[sequence] = _cut(cache, start)

    def close(self) -> None:
        self._caches.clear()
        del self._graph

    def _compute(self, piece: Slice) -> NDArray[np.float32]:
        """The logits after a slice's last token."""
        logits = None
        for at in range(0, len(piece.tokens), self._chunk_tokens):
            chunk = piece.tokens[at : at + self._chunk_tokens]
            start = piece.start + at
            total = start + len(chunk)
            binding = self._graph.session.io_binding()
            feeds = {
                "input_ids": np.array([chunk], np.int64),
                "attention_mask": np.ones((1, total), np.int64),
                "position_ids": np.arange(start, total, dtype=np.int64)[None],
            }
            for name in self._graph.inputs.intersection(feeds):
                binding.bind_cpu_input(name, feeds[name])
            past = self._caches.get(piece.sequence) or self._empty()
            for name in self._graph.caches:
                binding.bind_cpu_input(f"past_key_values.{name}", past[name])
                binding.bind_output(f"present.{name}")
            binding.bind_output("logits")
            run_bound(self._graph, binding)
            found = dict(zip((*self._graph.caches, "logits"), binding.copy_outputs_to_cpu(), strict=True))
            logits = found.pop("logits")
            self._caches[piece.sequence] = found
        assert logits is not None
        last: NDArray[np.float32] = logits[0, -1].astype(np.float32, copy=False)
        return last

    def _empty(self) -> dict[str, NDArray[Any]]:
        graph = self._graph
        nothing = np.zeros((1, graph.kv_heads, 0, graph.head_length), graph.element)
        return dict.fromkeys(graph.caches, nothing)


def _cut(cache: dict[str, NDArray[Any]], end: int) -> dict[str, NDArray[Any]]:
    return {name: np.ascontiguousarray(values[:, :, :end]) for name, values in cache.items()}
