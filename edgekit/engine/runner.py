"""What the scheduler needs from a runtime: a vocabulary, samplers, and one call that computes a step.

`llama.LlamaRunner` is the one that exists; an ONNX runner takes its place behind the same interface.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from edgekit.engine.base import Constraint, Sampling, TokenLogprob

__all__ = ["CacheFullError", "Matcher", "ModelText", "Runner", "Slice", "TokenSampler"]


class CacheFullError(Exception):
    """The KV cache has no room for this step. Nothing was computed; the scheduler makes room."""


@dataclass(frozen=True, slots=True)
class Slice:
    """A run of consecutive tokens of one sequence, computed in one step.

    `start` is the position of the first token. With `sample`, the logits after the last token are kept; with
    `embed`, what the model makes of it. All slices of a step embed, or none.
    """

    sequence: int
    start: int
    tokens: list[int]
    sample: bool
    embed: bool = False


class Matcher(Protocol):
    """Follows one answer through its constraint."""

    def allows(self, token: int) -> bool:
        """Whether a token may come next."""

    def allowed(self) -> bytes:
        """All tokens that may come next, as bits: token t is bit t % 8 of byte t // 8."""

    def accept(self, token: int) -> None:
        """Take the token that came. It must be one that is allowed."""


class TokenSampler(Protocol):
    """Draws one stream's tokens. Keeps that stream's random state and history."""

    def sample(self, row: int) -> int:
        """The next token id, from row `row` of the last step. With a constraint, one that it allows."""

    def logprobs(self, row: int, token: int, top: int) -> TokenLogprob:
        """What the model thought of a token of row `row` of the last step, and of the `top` likeliest."""

    def accept(self, token: int) -> None:
        """Take a token that was not drawn but put into the stream."""

    def constrain(self, matcher: Matcher | None) -> None:
        """Draw what the matcher allows from now on; None draws freely."""

    def close(self) -> None:
        """Free its memory."""


@dataclass(frozen=True, slots=True)
class ModelText:
    """What a model file says about prompts and about sampling."""

    chat_template: str | None
    bos: str
    """Text of the token that begins a prompt; empty where the model has none."""
    eos: str
    sampling: Sampling
    """What applies where a request says nothing."""


class Runner(Protocol):
    """A loaded model with its KV cache. Used by one thread."""

    @property
    def kv_cells(self) -> int:
        """Tokens that the KV cache holds, over all sequences."""

    @property
    def sequences(self) -> int:
        """Sequences that the KV cache tells apart; their ids are 0 … sequences-1."""

    @property
    def streams(self) -> int:
        """Of these, how many may be computed in one step."""

    @property
    def keeps_prefixes(self) -> bool:
        """Whether a sequence can be cut back to any of its beginnings, and shared there."""

    @property
    def batch_tokens(self) -> int:
        """Tokens of one step at most."""

    @property
    def text(self) -> ModelText:
        """What the model file says about prompts and sampling."""

    @property
    def vocabulary(self) -> int:
        """Number of token ids."""

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        """Token ids of a text. Callable from any thread."""

    def piece(self, token: int) -> bytes:
        """The bytes that a token stands for; empty for control tokens."""

    def ends_generation(self, token: int) -> bool:
        """Whether the model ends its turn with this token."""

    def open_sampler(self, sampling: Sampling, prompt: Sequence[int]) -> TokenSampler:
        """A sampler for one stream. The prompt's tokens count as seen for penalties."""

    def open_matcher(self, constraint: Constraint) -> Matcher:
        """Follow a new answer through a constraint. Callable from any thread.

        Raises:
            ConstraintError: the constraint is not valid.
            MissingExtraError: the package that does it is not installed.
        """

    def run(self, slices: Sequence[Slice]) -> list[int]:
        """Compute one step.

        Returns:
            For each slice with `sample` or `embed`, in order, its row: for a sampler, or `embedding`.

        Raises:
            CacheFullError: there is no room; nothing was computed.
            EngineError: the runtime failed; the sequences of this step are lost.
        """

    def embedding(self, row: int) -> tuple[float, ...]:
        """The last layer's output, normalized to length 1, for a row of the last step."""

    def share(self, source: int, target: int, end: int) -> bool:
        """Give a sequence that holds nothing the first `end` tokens that another one holds.

        Returns:
            Whether they take up no cells of their own. A runtime that has to copy them says False.
        """

    def forget(self, sequence: int, start: int) -> None:
        """Drop a sequence's cached tokens from position `start` on."""

    def close(self) -> None:
        """Free the model."""
