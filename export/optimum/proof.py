"""The proof of a graph of optimum's: against the float32 graph, which gave transformers' logits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence, Set
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from export.progress import Progress, silent
from export.quality.limits import ProofLimits
from export.quality.prove import Greedy, LogitsAt, LogitsOf, prove_against
from export.quality.record import Proof
from export.runtimes.optimum_decoder import OptimumDecoder
from export.tokenizer_guard.reference import TokenizerReference

__all__ = ["prove_graph"]

_STEP_TOKENS: Final = 64


def prove_graph(
    directory: Path,
    floats: Path,
    tokenizer: TokenizerReference,
    *,
    ends: Set[int],
    context_tokens: int,
    quantization: str,
    limits: ProofLimits,
    progress: Progress = silent,
) -> Proof:
    """Compare the graph in `directory`, in steps with its cache, with that in `floats`, each text at once.

    Memory: both graphs, and the logits of one text.

    Args:
        ends: tokens that end an answer.
        context_tokens: longest sequence that the model takes.

    Raises:
        ExportError, ModelFileError: see `prove_against`.
    """
    artifact = OptimumDecoder(directory)
    return prove_against(
        _Float32Graph(artifact if floats == directory else OptimumDecoder(floats)),
        tokenizer,
        _in_steps(artifact),
        runtime="onnxruntime",
        quantization=quantization,
        greedy=_greedy(artifact, ends),
        limits=limits,
        context_tokens=context_tokens,
        progress=progress,
    )


class _Float32Graph:
    """The student of a proof. Keeps the logits of one sequence: float32 [tokens, vocabulary]."""

    def __init__(self, decoder: OptimumDecoder) -> None:
        self._decoder = decoder
        self._tokens: tuple[int, ...] = ()
        self._rows: NDArray[np.float32] = np.zeros((0, 0), np.float32)

    def __call__(self, sequences: Sequence[Sequence[int]]) -> list[LogitsAt]:
        return [partial(self._logits, tuple(sequence)) for sequence in sequences]

    def _logits(self, tokens: tuple[int, ...], positions: slice) -> NDArray[np.float32]:
        if tokens != self._tokens:
            self._rows, self._tokens = self._decoder.logits(tokens), tokens
        return self._rows[positions]


def _in_steps(decoder: OptimumDecoder) -> LogitsOf:
    def logits_of(tokens: Sequence[int]) -> Iterator[NDArray[np.float32]]:
        return decoder.steps(tokens, _STEP_TOKENS)

    return logits_of


def _greedy(decoder: OptimumDecoder, ends: Set[int]) -> Greedy:
    def answer(prompt: Sequence[int], most: int) -> list[int]:
        tokens: list[int] = []
        logits, cache = decoder.run(prompt)
        token = int(logits[-1].argmax())
        while token not in ends:
            tokens.append(token)
            if len(tokens) == most:
                break
            logits, cache = decoder.run([token], cache)
            token = int(logits[-1].argmax())
        return tokens

    return answer
