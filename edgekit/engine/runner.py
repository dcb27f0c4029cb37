"""What the scheduler needs from a runtime: a vocabulary, samplers, and one call that computes a step.

`llama.LlamaRunner` is the one that exists; an ONNX runner takes its place behind the same interface.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from edgekit.engine.base import Sampling

__all__ = ["CacheFullError", "Runner", "Slice", "TokenSampler"]


class CacheFullError(Exception):
    """The KV cache has no room for this step. Nothing was computed; the scheduler makes room."""


@dataclass(frozen=True, slots=True)
class Slice:
    """A run of consecutive tokens of one sequence, computed in one step.

    `start` is the position of the first token. With `sample`, the logits after the last token are kept.
    """

    sequence: int
    start: int
    tokens: list[int]
    sample: bool


class TokenSampler(Protocol):
    """Draws one stream's tokens. Keeps that stream's random state and history."""

    def sample(self, row: int) -> int:
        """The next token id, from row `row` of the last step."""

    def close(self) -> None:
        """Free its memory."""


class Runner(Protocol):
    """A loaded model with its KV cache. Used by one thread."""

    @property
    def kv_cells(self) -> int:
        """Tokens that the KV cache holds, over all sequences."""

    @property
    def sequences(self) -> int:
        """Sequences that can be told apart; their ids are 0 … sequences-1."""

    @property
    def batch_tokens(self) -> int:
        """Tokens of one step at most."""

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        """Token ids of a text. Callable from any thread."""

    def piece(self, token: int) -> bytes:
        """The bytes that a token stands for; empty for control tokens."""

    def ends_generation(self, token: int) -> bool:
        """Whether the model ends its turn with this token."""

    def open_sampler(self, sampling: Sampling, prompt: Sequence[int]) -> TokenSampler:
        """A sampler for one stream. The prompt's tokens count as seen for penalties."""

    def run(self, slices: Sequence[Slice]) -> list[int]:
        """Compute one step.

        Returns:
            For each slice with `sample`, in order, the row to give to its sampler.

        Raises:
            CacheFullError: there is no room; nothing was computed.
            EngineError: the runtime failed; the sequences of this step are lost.
        """

    def forget(self, sequence: int, start: int) -> None:
        """Drop a sequence's cached tokens from position `start` on."""

    def close(self) -> None:
        """Free the model."""
