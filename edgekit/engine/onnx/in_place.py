"""Graphs whose attention writes into the KV cache that it reads (GroupQueryAttention): batches of streams.

onnxruntime, docs/ContribOperators.md: with the same memory as past and present, the operator appends in
place. Rows of a batch may be of different lengths when each has one new token; more new tokens than one go
through alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from edgekit.engine.onnx.memory import CacheMemory
from edgekit.engine.onnx.rows import Rows
from edgekit.engine.onnx.session import DecoderGraph, run_bound
from edgekit.engine.runner import Slice

__all__ = ["InPlaceDecoder"]

_BINDINGS: Final = 64
"""Binding all layers anew takes half a millisecond; to keep it takes tens of kilobytes."""


class InPlaceDecoder:
    """A graph, and the KV cache of all sequences.

    Args:
        sequences: whose tokens are kept; ids are 0 … sequences-1.
        streams: sequences of a batch at most.
        context_tokens: of a sequence at most.
        chunk_tokens: of a prompt that are computed at once.
    """

    def __init__(
        self, graph: DecoderGraph, *, sequences: int, streams: int, context_tokens: int, chunk_tokens: int
    ) -> None:
        self._graph = graph
        self._chunk_tokens = chunk_tokens
        self._memory = CacheMemory(
            graph.caches,
            rows=sequences + 1,
            heads=graph.kv_heads,
            tokens=context_tokens,
            head_length=graph.head_length,
            element=graph.element,
        )
        self._rows = Rows(sequences, self._move)
        self._lengths = dict.fromkeys(range(sequences), 0)
        self._logits = np.zeros((streams + 1, 1, graph.vocabulary), graph.element)
        """The last row is for what nobody reads."""
        self._positions = np.arange(self._memory.tokens)
        self._ones = np.ones((1, self._memory.tokens), np.int64)
        self._bindings: dict[tuple[int, int], Any] = {}
        """By first row and number of rows."""

    def run(self, slices: Sequence[Slice]) -> list[int]:
        """Compute a step; returns the row of logits of each slice that wants one.

        Raises:
            EngineError: onnxruntime failed.
        """
        rows: dict[int, int] = {}
        single = {piece.sequence: piece for piece in slices if len(piece.tokens) == 1}
        if single:
            first = self._rows.line_up(single, self._lengths)
            batch = sorted(single.values(), key=lambda piece: self._rows[piece.sequence])
            self._decode(batch, first)
            rows = {piece.sequence: row for row, piece in enumerate(batch)}
        used = len(single)
        for piece in slices:
            if len(piece.tokens) > 1:
                wanted = piece.sample or piece.embed
                rows[piece.sequence] = used if wanted else len(self._logits) - 1
                self._prefill(piece, rows[piece.sequence])
                used += wanted
        return [rows[piece.sequence] for piece in slices if piece.sample or piece.embed]

    def logits(self, row: int) -> NDArray[np.float32]:
        """A row of the last step: float32 [vocabulary], to be read only. Valid until the next step."""
        values: NDArray[np.float32] = self._logits[row, 0].astype(np.float32, copy=False)
        return values

    def share(self, source: int, target: int, end: int) -> None:
        """Copy the first `end` tokens of a sequence to one that holds nothing."""
        self._memory.copy(self._rows[source], self._rows[target], end)
        self._lengths[target] = end

    def forget(self, sequence: int, start: int) -> None:
        """Drop a sequence's tokens from position `start` on."""
        end = self._lengths[sequence]
        if end > start:
            self._memory.release(self._rows[sequence], start, end)
            self._lengths[sequence] = start
        if start == 0:
            self._rows.release(sequence)

    def close(self) -> None:
        """Free the cache and the graph."""
        self._bindings.clear()
        del self._memory, self._graph

    def _decode(self, batch: Sequence[Slice], first: int) -> None:
        """One token of each of some sequences, whose rows are `first` and those after it."""
        ids = np.array([piece.tokens for piece in batch], np.int64)
        totals = np.array([[piece.start + 1] for piece in batch])
        # Row by row, as many ones as there are tokens.
        mask = (self._positions[: totals.max()] < totals).astype(np.int64)
        self._compute(first, ids, mask, 0)
        for piece in batch:
            self._lengths[piece.sequence] = piece.start + 1

    def _prefill(self, piece: Slice, logits_row: int) -> None:
        row, tokens = self._rows[piece.sequence], np.array([piece.tokens], np.int64)
        for at in range(0, tokens.shape[1], self._chunk_tokens):
            chunk = np.ascontiguousarray(tokens[:, at : at + self._chunk_tokens])
            total = piece.start + at + chunk.shape[1]
            self._compute(row, chunk, self._ones[:, :total], logits_row)
            self._lengths[piece.sequence] = total

    def _compute(self, row: int, ids: NDArray[np.int64], mask: NDArray[np.int64], logits_row: int) -> None:
        count = len(ids)
        binding = self._bindings.get((row, count))
        if binding is None:
            if len(self._bindings) >= _BINDINGS:
                self._bindings.clear()
            binding = self._bindings[row, count] = self._bind(row, count)
        for name, values in (("input_ids", ids), ("attention_mask", mask)):
            binding.bind_input(name, "cpu", 0, np.int64, values.shape, values.ctypes.data)
        logits = self._logits[logits_row : logits_row + count]
        binding.bind_output("logits", "cpu", 0, self._graph.element, logits.shape, logits.ctypes.data)
        run_bound(self._graph, binding)

    def _bind(self, row: int, count: int) -> Any:
        """A binding of the KV cache's rows from `row` on, as past and as present."""
        binding = self._graph.session.io_binding()
        for name, buffer in self._memory.buffers.items():
            rows = buffer[row : row + count]
            place = ("cpu", 0, self._graph.element, rows.shape, rows.ctypes.data)
            binding.bind_input(f"past_key_values.{name}", *place)
            binding.bind_output(f"present.{name}", *place)
        return binding

    def _move(self, source: int, target: int, tokens: int) -> None:
        self._memory.copy(source, target, tokens)
        self._memory.release(source, 0, tokens)
