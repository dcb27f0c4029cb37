"""Draws tokens with numpy. Each stream has a generator of its own: others do not change what it draws."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from edgekit.engine.base import LikelyToken, Sampling, TokenLogprob
from edgekit.engine.onnx.distribution import distribution, is_greedy, likeliest, penalize, penalizes
from edgekit.engine.runner import Matcher
from edgekit.errors import ConstraintError, EngineError

__all__ = ["OnnxSampler"]

_PENALTY_WINDOW_TOKENS: Final = 64
"""How far back repetition counts, as llama-server's default."""
_SEED_LIMIT: Final = 2**64


class OnnxSampler:
    """Draws one stream's tokens. Implements `edgekit.engine.runner.TokenSampler`.

    What each setting does, and their order, are those of `edgekit.engine.llama_sampler`: bias and penalties
    on all logits, then top-k, top-p, min-p, temperature, draw. A constraint comes before all of these; the
    draw is repeated among the tokens that are allowed only when it gave one that is not.

    Args:
        logits: a row of the last step, float32 [vocabulary]; not to be written.
        piece: the bytes that a token stands for.
        vocabulary: number of tokens.
        prompt: its tokens count as seen for penalties.

    Raises:
        EngineError: logit_bias names a token that there is not.
    """

    def __init__(
        self,
        logits: Callable[[int], NDArray[np.float32]],
        piece: Callable[[int], bytes],
        vocabulary: int,
        sampling: Sampling,
        prompt: Sequence[int],
    ) -> None:
        if unknown := [token for token in sampling.logit_bias if not 0 <= token < vocabulary]:
            raise EngineError(f"logit_bias: token {unknown[0]} is not one of the model's {vocabulary}")
        self._logits = logits
        self._piece = piece
        self._sampling = sampling
        self._biased = np.fromiter(sampling.logit_bias.keys(), np.intp)
        self._bias = np.fromiter(sampling.logit_bias.values(), np.float32)
        self._penalizes = penalizes(sampling)
        self._seen = deque(prompt[-_PENALTY_WINDOW_TOKENS:], maxlen=_PENALTY_WINDOW_TOKENS)
        self._random = np.random.Generator(
            np.random.PCG64(None if sampling.seed is None else sampling.seed % _SEED_LIMIT)
        )
        self._matcher: Matcher | None = None

    def sample(self, row: int) -> int:
        """The next token id, from row `row` of the last step.

        Raises:
            ConstraintError: the constraint allows no token at all.
        """
        logits = self._adjusted(self._logits(row))
        token = self._draw(logits)
        if self._matcher is not None and not self._matcher.allows(token):
            allowed = _set_bits(self._matcher.allowed(), logits.size)
            if not allowed.size:
                raise ConstraintError(
                    "the constraint leaves no token that could come next",
                    hint="check that the schema or grammar can be met by some text",
                )
            token = int(allowed[self._draw(logits[allowed])])
        self.accept(token)
        return token

    def logprobs(self, row: int, token: int, top: int) -> TokenLogprob:
        """What the model thought of a token of row `row` of the last step, and of the `top` likeliest.

        Natural logarithms of the softmax over all tokens, before bias, penalties and temperature.
        """
        logits = self._logits(row)
        largest = float(logits.max())
        total = float(np.exp(logits - np.float32(largest)).sum(dtype=np.float64))
        offset = largest + math.log(total)
        tokens = [token, *(likeliest(logits, top).tolist() if top > 0 else ())]
        found = [LikelyToken(index, self._piece(index), float(logits[index]) - offset) for index in tokens]
        return TokenLogprob(found[0], tuple(found[1:]))

    def accept(self, token: int) -> None:
        """Take a token that was not drawn but put into the stream."""
        self._seen.append(token)
        if self._matcher is not None:
            self._matcher.accept(token)

    def constrain(self, matcher: Matcher | None) -> None:
        """Draw what the matcher allows from now on; None draws freely."""
        self._matcher = matcher

    def close(self) -> None:
        """There is nothing to free."""

    def _adjusted(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        """The logits with bias and penalties."""
        if not self._biased.size and not self._penalizes:
            return logits
        logits = logits.copy()
        logits[self._biased] += self._bias
        if self._penalizes:
            penalize(logits, self._seen, self._sampling)
        return logits

    def _draw(self, logits: NDArray[np.float32]) -> int:
        """An index of the logits."""
        if is_greedy(self._sampling):
            return int(logits.argmax())
        indices, weights = distribution(logits, self._sampling)
        reached = np.cumsum(weights, dtype=np.float64)
        drawn = int(np.searchsorted(reached, self._random.random() * reached[-1], side="right"))
        drawn = min(drawn, reached.size - 1)  # the product may have been rounded up
        return drawn if indices is None else int(indices[drawn])


def _set_bits(mask: bytes, size: int) -> NDArray[np.intp]:
    """The tokens below `size` whose bits are set."""
    bits = np.unpackbits(np.frombuffer(mask, np.uint8), bitorder="little")
    return np.flatnonzero(bits[:size])
