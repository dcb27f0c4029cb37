"""Many sequences in llama.cpp's KV cache, few of which are computed at a time.

llama_decode takes sequence ids below n_seq_max only, and reserves a row of logits for each (600 KB with
R1's vocabulary); the cache itself tells 256 apart (LLAMA_MAX_SEQ). So sequences change ids: those of a step
get low ones. In a unified cache that moves marks, not data.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

__all__ = ["SequenceIds"]


class SequenceIds:
    """Which id each sequence has in llama.cpp.

    Args:
        sequences: how many there are; they use one id more than that.
        computable: ids below this can be computed.
        move: gives what one id holds to another one that holds nothing.
    """

    def __init__(self, sequences: int, computable: int, move: Callable[[int, int], None]) -> None:
        self._ids = list(range(sequences))
        self._computable = computable
        self._spare = sequences
        self._move = move

    def __getitem__(self, sequence: int) -> int:
        """The id that a sequence has now."""
        return self._ids[sequence]

    def make_computable(self, sequences: Iterable[int]) -> None:
        """Give low ids to the sequences of a step, `computable` of them at most."""
        wanted = set(sequences)
        late = [sequence for sequence in wanted if self._ids[sequence] >= self._computable]
        if not late:
            return
        holders = {used: sequence for sequence, used in enumerate(self._ids)}
        places = (used for used in range(self._computable) if holders[used] not in wanted)
        for sequence, place in zip(late, places, strict=False):
            self._move(place, self._spare)
            self._move(self._ids[sequence], place)
            self._ids[holders[place]] = self._spare
            self._spare = self._ids[sequence]
            self._ids[sequence] = place
