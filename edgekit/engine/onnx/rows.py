"""Which row of the KV cache's buffers each sequence has.

A batched step takes consecutive rows. Sequences keep their rows as long as they can; when streams end and
leave gaps, the cheapest ones move.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

__all__ = ["Rows"]


class Rows:
    """The rows of the sequences that hold tokens.

    Args:
        sequences: how many there are at most; they use one row more than that.
        move: gives what one row holds, so many tokens, to another that holds nothing.
    """

    def __init__(self, sequences: int, move: Callable[[int, int, int], None]) -> None:
        self._holders: list[int | None] = [None] * (sequences + 1)
        """By row, the sequence."""
        self._rows: dict[int, int] = {}
        self._move = move
        self._batch = (0, 0)
        """The rows of the last batch: from, to."""

    def __getitem__(self, sequence: int) -> int:
        """A sequence's row; it gets one if it has none: near the batch, which it will join."""
        row = self._rows.get(sequence)
        if row is None:
            row = min(self._free(), key=self._distance)
            self._put(sequence, row)
        return row

    def release(self, sequence: int) -> int | None:
        """Take a sequence's row from it; returns the row, None when it has none."""
        row = self._rows.pop(sequence, None)
        if row is not None:
            self._holders[row] = None
        return row

    def line_up(self, sequences: Collection[int], length: Callable[[int], int]) -> int:
        """Bring sequences into consecutive rows, in whatever order; returns the first row.

        Args:
            length: tokens that each sequence holds, which is what moving it costs.
        """
        rows = [self[sequence] for sequence in sequences]
        first, count = min(rows), len(rows)
        if max(rows) - first >= count:
            wanted = frozenset(sequences)
            first = min(
                range(len(self._holders) - count + 1),
                key=lambda start: self._cost(start, start + count, wanted, length),
            )
            self._gather(range(first, first + count), wanted, length)
        self._batch = (first, first + count)
        return first

    def _cost(
        self, start: int, end: int, wanted: Collection[int], length: Callable[[int], int]
    ) -> tuple[int, int]:
        """Tokens to move for a batch in these rows; of equals, the nearest to the last batch."""
        outside = sum(length(sequence) for sequence in wanted if not start <= self._rows[sequence] < end)
        in_the_way = sum(
            length(holder)
            for holder in self._holders[start:end]
            if holder is not None and holder not in wanted
        )
        return outside + in_the_way, abs(start - self._batch[0])

    def _gather(self, window: range, wanted: Collection[int], length: Callable[[int], int]) -> None:
        late = [sequence for sequence in wanted if self._rows[sequence] not in window]
        places = [row for row in window if self._holders[row] not in wanted]
        # Free ones first: whoever moves in leaves a free row elsewhere.
        places.sort(key=lambda row: self._holders[row] is not None)
        for sequence, place in zip(late, places, strict=True):
            holder = self._holders[place]
            if holder is not None:
                self._shift(holder, next(row for row in self._free() if row not in window), length)
            self._shift(sequence, place, length)

    def _shift(self, sequence: int, target: int, length: Callable[[int], int]) -> None:
        source = self._rows[sequence]
        self._move(source, target, length(sequence))
        self._holders[source] = None
        self._put(sequence, target)

    def _put(self, sequence: int, row: int) -> None:
        self._rows[sequence] = row
        self._holders[row] = sequence

    def _free(self) -> Sequence[int]:
        return [row for row, holder in enumerate(self._holders) if holder is None]

    def _distance(self, row: int) -> int:
        """How far a row is from the last batch."""
        start, end = self._batch
        return row - end if row >= end else max(0, start - 1 - row)
