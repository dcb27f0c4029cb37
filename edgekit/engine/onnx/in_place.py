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
_QUERY_BLOCK: Final = 16
"""Attention goes through a prompt in blocks of a multiple of so many tokens: one more would be left alone."""


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
        self._chunk_tokens = max(4, chunk_tokens // 2 * 2)
        self._memory = CacheMemory(
            graph.caches,
            rows=sequences + 1,
            heads=graph.kv_heads,
            tokens=context_tokens,
            head_length=graph.head_length,
            element=graph.element,
        )
        self._rows = Rows(sequences, self._move)
        self._tokens: dict[int, list[int]] = {sequence: [] for sequence in range(sequences)}
        """What the rows hold."""
        self._sampled: set[int] = set()
        """Sequences whose next token was drawn from the last logits they had."""
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
        batch = [piece for piece in slices if self._is_decode(piece)]
        prompts = [piece for piece in slices if not self._is_decode(piece)]
        rows: dict[int, int] = {}
        if batch:
            first = self._rows.line_up([piece.sequence for piece in batch], self._length)
            batch.sort(key=lambda piece: self._rows[piece.sequence])
            self._decode(batch, first)
            rows = {piece.sequence: row for row, piece in enumerate(batch)}
        used = len(batch)
        for piece in prompts:
            wanted = piece.sample or piece.embed
            rows[piece.sequence] = used if wanted else len(self._logits) - 1
            self._prefill(piece, rows[piece.sequence])
            used += wanted
        for piece in slices:
            self._note(piece)
        return [rows[piece.sequence] for piece in slices if piece.sample or piece.embed]

    def logits(self, row: int) -> NDArray[np.float32]:
        """A row of the last step: float32 [vocabulary], to be read only. Valid until the next step."""
        values: NDArray[np.float32] = self._logits[row, 0].astype(np.float32, copy=False)
        return values

    def share(self, source: int, target: int, end: int) -> None:
        """Copy the first `end` tokens of a sequence to one that holds nothing."""
        self._memory.copy(self._rows[source], self._rows[target], end)
        self._tokens[target] = self._tokens[source][:end]

    def forget(self, sequence: int, start: int) -> None:
        """Drop a sequence's tokens from position `start` on."""
        end = self._length(sequence)
        if end > start:
            self._memory.release(self._rows[sequence], start, end)
            del self._tokens[sequence][start:]
        self._sampled.discard(sequence)
        if start == 0:
            self._rows.release(sequence)

    def close(self) -> None:
        """Free the cache and the graph."""
        self._bindings.clear()
        del self._memory, self._graph

    def _is_decode(self, piece: Slice) -> bool:
        """Whether a slice is a generated token, or the only one of a prompt."""
        return len(piece.tokens) == 1 and (piece.start == 0 or piece.sequence in self._sampled)

    def _length(self, sequence: int) -> int:
        return len(self._tokens[sequence])

    def _note(self, piece: Slice) -> None:
        self._tokens[piece.sequence][piece.start :] = piece.tokens
        if piece.sample:
            self._sampled.add(piece.sequence)
        else:
            self._sampled.discard(piece.sequence)

    def _decode(self, batch: Sequence[Slice], first: int) -> None:
        """One token of each of some sequences, whose rows are `first` and those after it."""
        ids = np.array([piece.tokens for piece in batch], np.int64)
        totals = np.array([[piece.start + 1] for piece in batch])
        # Row by row, as many ones as there are tokens.
        mask = (self._positions[: totals.max()] < totals).astype(np.int64)
        self._compute(first, ids, mask, 0)

    def _prefill(self, piece: Slice, logits_row: int) -> None:
        start, tokens = piece.start, piece.tokens
        if len(tokens) == 1:
            start -= 1
            tokens = [self._tokens[piece.sequence][start], *tokens]
        row = self._rows[piece.sequence]
        ids, done = np.array([tokens], np.int64), 0
        for count in _chunks(len(tokens), self._chunk_tokens):
            chunk = np.ascontiguousarray(ids[:, done : done + count])
            done += count
            self._compute(row, chunk, self._ones[:, : start + done], logits_row)

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


def _chunks(tokens: int, most: int) -> list[int]:
    """How many tokens of a prompt to compute at once, one time after another: never one alone.

    Args:
        tokens: 2 or more.
        most: of one time; an even number from 4 on.
    """
    chunks = []
    while tokens:
        count = min(tokens, most)
        if tokens - count == 1 or count % _QUERY_BLOCK == 1:
            count -= 2
        chunks.append(count)
        tokens -= count
    return chunks
