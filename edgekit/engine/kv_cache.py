"""Keeps the books of the KV cache: which sequence holds which tokens, who may have room, what goes first.

Pure bookkeeping: the scheduler tells the runner what this decides. A sequence whose request has ended stays
parked with its tokens, so that the next turn of the same chat finds its history computed; the one parked
longest makes room first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

__all__ = ["KvCache", "Lease"]

_REUSE_FROM_TOKENS = 8
"""A shorter common prefix is not worth throwing away a better parked sequence's tail."""

_PARKED_SHARE = 0.25
"""Of all cells, for all parked sequences but the last."""


@dataclass(slots=True)
class Lease:
    """A sequence of the cache, and the tokens that it holds from position 0 on."""

    sequence: int
    tokens: list[int] = field(default_factory=list)
    parked_at: int = 0


class KvCache:
    """The cells of a unified KV cache, lent to requests.

    Args:
        cells: tokens that the cache holds over all sequences.
        sequences: number of sequence ids.
    """

    def __init__(self, cells: int, sequences: int) -> None:
        self.cells = cells
        self.used = 0
        self._free = [Lease(sequence) for sequence in reversed(range(sequences))]
        self._parked: list[Lease] = []
        self._clock = 0

    @property
    def available(self) -> int:
        """Cells that are free or held by parked sequences."""
        return self.cells - self.used + sum(len(lease.tokens) for lease in self._parked)

    @property
    def has_sequence(self) -> bool:
        """Whether a sequence can be leased."""
        return bool(self._free or self._parked)

    def lease(self, prompt: Sequence[int]) -> Lease:
        """Lend the sequence that shares the longest beginning with `prompt`, cut down to that beginning.

        At least the prompt's last token is left to compute, for its logits. The caller makes the runner
        forget everything past the returned lease's tokens.
        """
        best, shared = None, 0
        for parked in self._parked:
            common = _common_prefix(parked.tokens, prompt, len(prompt) - 1)
            if common > shared:
                best, shared = parked, common
        if best is not None and (shared >= _REUSE_FROM_TOKENS or not self._free):
            self._parked.remove(best)
        elif self._free:
            best, shared = self._free.pop(), 0
        else:
            best, shared = self._parked.pop(self._oldest()), 0
        self.used -= len(best.tokens) - shared
        del best.tokens[shared:]
        return best

    def extend(self, lease: Lease, tokens: Sequence[int]) -> None:
        """Note that a step has computed `tokens` at the end of a lease."""
        lease.tokens.extend(tokens)
        self.used += len(tokens)

    def park(self, lease: Lease) -> None:
        """Give back a lease whose tokens may serve another request."""
        self._clock += 1
        lease.parked_at = self._clock
        self._parked.append(lease)

    def release(self, lease: Lease) -> None:
        """Give back a lease and its cells. The caller makes the runner forget the sequence."""
        self.used -= len(lease.tokens)
        lease.tokens.clear()
        self._free.append(lease)

    def evict_surplus(self) -> Lease | None:
        """Free the sequence parked longest while the parked hold more than their share, else None.

        Every step looks past all cells in use, whoever holds them: histories that nobody comes back to would
        slow down everybody. The one parked last stays, whatever its length.
        """
        parked = sum(len(lease.tokens) for lease in self._parked)
        if len(self._parked) < 2 or parked <= self.cells * _PARKED_SHARE:
            return None
        return self.evict()

    def evict(self) -> Lease | None:
        """Free the sequence parked longest, None when none is. The caller makes the runner forget it."""
        if not self._parked:
            return None
        lease = self._parked.pop(self._oldest())
        self.release(lease)
        return lease

    def _oldest(self) -> int:
        return min(range(len(self._parked)), key=lambda index: self._parked[index].parked_at)


def _common_prefix(held: Sequence[int], prompt: Sequence[int], limit: int) -> int:
    count = 0
    for ours, theirs in zip(held, prompt[:limit], strict=False):
        if ours != theirs:
            break
        count += 1
    return count
