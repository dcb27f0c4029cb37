"""Keeps the books of the KV cache: which sequence holds which tokens, what is shared, what goes first.

Pure bookkeeping: the scheduler tells the runner what this decides. The cells of a beginning that several
prompts have in common (a system prompt, a chat's history) are computed once and belong to all of them. A
sequence whose request has ended stays parked with its tokens, so that the next turn of the same chat finds
its history computed; the one parked longest makes room first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

__all__ = ["KvCache", "Lease", "Prefix", "common_prefix"]

_REUSE_FROM_TOKENS = 8
"""A shorter common beginning is computed again: that costs less than keeping its books."""

_PARKED_SHARE = 0.25
"""Of all cells, for all parked sequences but the last."""


@dataclass(slots=True, eq=False)
class _Run:
    """Consecutive cells that the same sequences hold."""

    length: int
    holders: int = 1


@dataclass(slots=True, eq=False)
class Lease:
    """A sequence of the cache, and the tokens that it holds from position 0 on."""

    sequence: int
    tokens: list[int] = field(default_factory=list)
    parked_at: int | None = None
    """When it was parked, by the cache's own count; None while a request uses it."""
    runs: list[_Run] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Prefix:
    """The longest beginning of a prompt that the cache holds."""

    lease: Lease | None
    """Who holds it, None when nobody does."""
    length: int


class KvCache:
    """The cells of a unified KV cache, lent to requests.

    Args:
        cells: tokens that the cache holds over all sequences.
        sequences: number of sequence ids.
    """

    def __init__(self, cells: int, sequences: int) -> None:
        self.cells = cells
        self.used = 0
        self._free = list(reversed(range(sequences)))
        self._running: list[Lease] = []
        self._parked: list[Lease] = []
        """In the order in which they were parked."""
        self._clock = 0

    @property
    def available(self) -> int:
        """Cells that are free, or would be if all parked sequences went."""
        held = {run: run.length for lease in self._running for run in lease.runs}
        return self.cells - sum(held.values())

    @property
    def has_sequence(self) -> bool:
        """Whether a sequence can be leased."""
        return bool(self._free or self._parked)

    @property
    def has_free_sequence(self) -> bool:
        """Whether `lease` can be called."""
        return bool(self._free)

    def find(self, prompt: Sequence[int]) -> Prefix:
        """The longest beginning of `prompt` that a sequence holds.

        At least the prompt's last token is left to compute, for its logits.
        """
        best, longest = None, _REUSE_FROM_TOKENS - 1
        for lease in (*self._parked, *self._running):
            length = common_prefix(lease.tokens, prompt, len(prompt) - 1)
            # Of equals, a parked one: it may be taken over whole.
            if length > longest:
                best, longest = lease, length
        return Prefix(best, longest) if best is not None else Prefix(None, 0)

    def lease(self) -> Lease:
        """Lend a sequence that holds nothing. There must be a free one: `evict` makes one."""
        lease = Lease(self._free.pop())
        self._running.append(lease)
        return lease

    def take_over(self, prefix: Prefix) -> Lease | None:
        """Lend the parked sequence that holds a beginning, cut down to it; None when it is better shared.

        A history that goes on otherwise is kept: somebody may come back to it. The caller makes the runner
        forget what is past the lease's tokens.
        """
        parked = prefix.lease
        if parked is None or parked.parked_at is None:
            return None
        lost = len(parked.tokens) - prefix.length
        if lost >= _REUSE_FROM_TOKENS and (self._free or len(self._parked) > 1):
            return None
        self._parked.remove(parked)
        self._running.append(parked)
        parked.parked_at = None
        self._cut(parked, prefix.length)
        return parked

    def share(self, source: Lease, target: Lease, length: int, *, copied: bool) -> None:
        """Note that `target`, which was empty, holds the first `length` tokens of `source` as well.

        Args:
            copied: they take up cells of their own.
        """
        target.tokens = source.tokens[:length]
        if copied:
            target.runs = [_Run(length)]
            self.used += length
            return
        self._split(source, length)
        position = 0
        for run in source.runs:
            if position == length:
                break
            run.holders += 1
            target.runs.append(run)
            position += run.length

    def extend(self, lease: Lease, tokens: Sequence[int]) -> None:
        """Note that a step has computed `tokens` at the end of a lease."""
        lease.tokens.extend(tokens)
        self.used += len(tokens)
        if lease.runs and lease.runs[-1].holders == 1:
            lease.runs[-1].length += len(tokens)
        else:
            lease.runs.append(_Run(len(tokens)))

    def park(self, lease: Lease) -> None:
        """Give back a lease whose tokens may serve another request."""
        self._clock += 1
        lease.parked_at = self._clock
        self._running.remove(lease)
        self._parked.append(lease)

    def release(self, lease: Lease) -> None:
        """Give back a lease and its cells. The caller makes the runner forget the sequence."""
        self._cut(lease, 0)
        (self._running if lease.parked_at is None else self._parked).remove(lease)
        self._free.append(lease.sequence)

    def surplus(self) -> Lease | None:
        """The sequence to free while the parked hold more than their share, else None.

        Every step looks past all cells in use, whoever holds them: histories that nobody comes back to would
        slow down everybody. The one parked last stays, whatever its length.
        """
        if len(self._parked) < 2 or self.available - (self.cells - self.used) <= self.cells * _PARKED_SHARE:
            return None
        return self._parked[0]

    def oldest(self, but: Lease | None = None) -> Lease | None:
        """The sequence parked longest, other than `but`; None when none is."""
        return next((lease for lease in self._parked if lease is not but), None)

    def _cut(self, lease: Lease, length: int) -> None:
        """Take from a lease what is past its first `length` tokens."""
        self._split(lease, length)
        kept = position = 0
        while kept < len(lease.runs) and position < length:
            position += lease.runs[kept].length
            kept += 1
        for run in lease.runs[kept:]:
            run.holders -= 1
            if not run.holders:
                self.used -= run.length
        del lease.runs[kept:]
        del lease.tokens[length:]

    def _split(self, lease: Lease, length: int) -> None:
        """Let a run of this lease end at `length`."""
        position = 0
        for run in lease.runs:
            if position < length < position + run.length:
                rest = _Run(position + run.length - length, run.holders)
                run.length = length - position
                for holder in (*self._running, *self._parked):
                    if run in holder.runs:
                        holder.runs.insert(holder.runs.index(run) + 1, rest)
                return
            position += run.length


def common_prefix(held: Sequence[int], prompt: Sequence[int], limit: int) -> int:
    """How many tokens two sequences have in common at their beginning, `limit` at most."""
    low, high = 0, min(len(held), len(prompt), max(limit, 0))
    if held[:high] == prompt[:high]:
        return high
    # Slices are compared in C: a search by halves beats a loop over tokens.
    while high - low > 1:
        middle = (low + high) // 2
        if held[low:middle] == prompt[low:middle]:
            low = middle
        else:
            high = middle
    return low
