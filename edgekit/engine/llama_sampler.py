"""Draws tokens with llama.cpp's native samplers.

API: llama.h and src/llama-sampler.cpp of the llama.cpp that llama-cpp-python vendors.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final

from edgekit.engine.base import LikelyToken, Sampling, TokenLogprob
from edgekit.engine.llama_candidates import Candidates, make_chain, selected, write
from edgekit.engine.runner import Matcher
from edgekit.errors import ConstraintError, EngineError

__all__ = ["LlamaSampler", "LlamaSamplers"]

_PENALTY_WINDOW_TOKENS: Final = 64
"""How far back repetition counts, as llama-server's default."""
_SEED_LIMIT: Final = 2**32 - 1
"""LLAMA_DEFAULT_SEED: asks llama.cpp to draw one, so it is not a seed itself."""
_LIKELIEST: Final = 128
"""Tokens among which those that a constraint allows are looked for first. llama.cpp sorts out so many in one
pass over the vocabulary, more of them in several."""


class LlamaSamplers:
    """Opens samplers over one llama_context, and holds what they share.

    Args:
        api: the module `llama_cpp.llama_cpp`.
        vocab: its llama_vocab.
        context: its llama_context, whose rows of logits are drawn from.
        piece: the bytes that a token stands for.
    """

    def __init__(self, api: Any, vocab: Any, context: Any, piece: Callable[[int], bytes]) -> None:
        self.api = api
        self.vocab = vocab
        self.piece = piece
        self.candidates = Candidates(api, vocab, context)

    def open(self, sampling: Sampling, prompt: Sequence[int]) -> LlamaSampler:
        """A sampler for one stream. The prompt's tokens count as seen for penalties.

        Raises:
            EngineError: logit_bias names a token that there is not.
        """
        return LlamaSampler(self, sampling, prompt)


class LlamaSampler:
    """A chain of llama.cpp's native samplers for one stream. Implements `edgekit.engine.runner.TokenSampler`.

    Order as in llama-server: bias and penalties on all logits, then top-k, top-p, min-p, temperature, draw.
    A constraint comes before all of these. The draw is first made without it, and repeated among the tokens
    that are allowed only when it gave one that is not: that spares most steps the work. Without top-k, top-p
    and min-p the distribution stays the same; with them the tokens that can be drawn do, and those that are
    drawn freely get a larger share.
    """

    def __init__(self, shared: LlamaSamplers, sampling: Sampling, prompt: Sequence[int]) -> None:
        self._api = shared.api
        self._candidates = shared.candidates
        self._piece = shared.piece
        self._matcher: Matcher | None = None
        self._penalizes = _penalizes(sampling)
        self._needed = _needed(sampling)
        self._chain = make_chain(shared.api, _parts(shared.api, shared.vocab, sampling))
        if self._penalizes:
            for token in prompt[-_PENALTY_WINDOW_TOKENS:]:
                self._api.llama_sampler_accept(self._chain, token)

    def sample(self, row: int) -> int:
        """The next token id, from row `row` of the last step.

        Raises:
            ConstraintError: the constraint allows no token at all.
        """
        if self._matcher is None:
            return self._candidates.draw(self._chain, row)
        token = self._candidates.visit(row, self._draw)
        if not self._matcher.allows(token):
            token = self._draw_allowed(row, self._matcher.allowed())
        if self._penalizes:
            self._api.llama_sampler_accept(self._chain, token)
        self._matcher.accept(token)
        return token

    def logprobs(self, row: int, token: int, top: int) -> TokenLogprob:
        """What the model thought of a token of row `row` of the last step, and of the `top` likeliest.

        Natural logarithms of the softmax over all tokens, before bias, penalties and temperature.

        Raises:
            EngineError: the model's output is not a number.
        """
        tokens = [
            LikelyToken(likely, self._piece(likely), logprob)
            for likely, logprob in self._candidates.logprobs(row, token, top)
        ]
        return TokenLogprob(tokens[0], tuple(tokens[1:]))

    def accept(self, token: int) -> None:
        """Take a token that was not drawn but put into the stream."""
        if self._penalizes:
            self._api.llama_sampler_accept(self._chain, token)
        if self._matcher is not None:
            self._matcher.accept(token)

    def constrain(self, matcher: Matcher | None) -> None:
        """Draw what the matcher allows from now on; None draws freely."""
        self._matcher = matcher

    def close(self) -> None:
        """Free its memory."""
        if self._chain:
            self._api.llama_sampler_free(self._chain)
            self._chain = None

    def _draw(self, candidates: Any) -> int:
        self._candidates.apply(self._chain, candidates)
        return selected(candidates)

    def _draw_allowed(self, row: int, mask: bytes) -> int:
        """Draw among the tokens whose bits are set in `mask`, as `Matcher.allowed` gives them."""
        size = int.from_bytes(mask, "little").bit_count()
        if size == 0:
            raise ConstraintError(
                "the constraint leaves no token that could come next",
                hint="check that the schema or grammar can be met by some text",
            )
        return self._candidates.visit(row, partial(self._draw_among, row, mask, size))

    def _draw_among(self, row: int, mask: bytes, size: int, candidates: Any) -> int:
        if not (0 < self._needed < size and self._keep_likeliest(candidates, mask)):
            self._candidates.keep(candidates, row, mask)
        return self._draw(candidates)

    def _keep_likeliest(self, candidates: Any, mask: bytes) -> bool:
        """Keep as many allowed tokens as the chain will look at, if they are easily found."""
        first = self._candidates.likeliest(candidates, _LIKELIEST)
        kept = [(token, logit) for token, logit, _ in first if mask[token >> 3] >> (token & 7) & 1]
        if len(kept) < self._needed:
            return False
        write(candidates, *zip(*kept[: self._needed], strict=True))
        return True


def _parts(api: Any, vocab: Any, sampling: Sampling) -> list[Any]:
    """The samplers of a chain, in order."""
    parts: list[Any] = []
    count = api.llama_vocab_n_tokens(vocab)
    if not sampling.repeat_penalty > 0:
        raise EngineError(f"repeat_penalty is {sampling.repeat_penalty:g} and has to be above 0")
    if sampling.logit_bias:
        # llama.cpp would look for these one by one, for every token that is drawn.
        if unknown := [token for token in sampling.logit_bias if not 0 <= token < count]:
            raise EngineError(f"logit_bias: token {unknown[0]} is not one of the model's {count}")
        entries = [api.llama_logit_bias(token, bias) for token, bias in sampling.logit_bias.items()]
        array = (api.llama_logit_bias * len(entries))(*entries)
        parts.append(api.llama_sampler_init_logit_bias(count, len(entries), array))
    if _penalizes(sampling):
        parts.append(
            api.llama_sampler_init_penalties(
                count,
                _PENALTY_WINDOW_TOKENS,
                sampling.repeat_penalty,
                sampling.frequency_penalty,
                sampling.presence_penalty,
            )
        )
    if _is_greedy(sampling):
        return [*parts, api.llama_sampler_init_greedy()]
    if sampling.top_k > 0:
        parts.append(api.llama_sampler_init_top_k(sampling.top_k))
    if sampling.top_p < 1:
        parts.append(api.llama_sampler_init_top_p(sampling.top_p, 1))
    if sampling.min_p > 0:
        parts.append(api.llama_sampler_init_min_p(sampling.min_p, 1))
    parts.append(api.llama_sampler_init_temp(sampling.temperature))
    seed = secrets.randbelow(_SEED_LIMIT) if sampling.seed is None else sampling.seed % _SEED_LIMIT
    return [*parts, api.llama_sampler_init_dist(seed)]


def _is_greedy(sampling: Sampling) -> bool:
    return sampling.temperature <= 0 or sampling.top_k == 1


def _penalizes(sampling: Sampling) -> bool:
    return (
        sampling.repeat_penalty != 1.0
        or sampling.frequency_penalty != 0.0
        or sampling.presence_penalty != 0.0
    )


def _needed(sampling: Sampling) -> int:
    """How many of the likeliest tokens a chain looks at; 0 where it must be given all."""
    if sampling.logit_bias or _penalizes(sampling):
        return 0
    if _is_greedy(sampling):
        return 1
    return sampling.top_k if sampling.top_k <= _LIKELIEST else 0
