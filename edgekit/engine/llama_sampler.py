"""Draws tokens with llama.cpp's native samplers.

API: llama.h and src/llama-sampler.cpp of the llama.cpp that llama-cpp-python vendors.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from typing import Any, Final

from edgekit.engine.base import Sampling
from edgekit.errors import EngineError

__all__ = ["LlamaSampler", "LlamaSamplers"]

_PENALTY_WINDOW_TOKENS: Final = 64
"""How far back repetition counts, as llama-server's default."""
_SEED_LIMIT: Final = 2**32 - 1
"""LLAMA_DEFAULT_SEED: asks llama.cpp to draw one, so it is not a seed itself."""


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
        self.context = context
        self.piece = piece

    def open(self, sampling: Sampling, prompt: Sequence[int]) -> LlamaSampler:
        """A sampler for one stream. The prompt's tokens count as seen for penalties."""
        return LlamaSampler(self.api, self.vocab, self.context, sampling, prompt)


class LlamaSampler:
    """A chain of llama.cpp's native samplers for one stream.

    Order as in llama-server: bias and penalties on all logits, then top-k, top-p, min-p, temperature, draw.
    """

    def __init__(self, api: Any, vocab: Any, context: Any, sampling: Sampling, prompt: Sequence[int]) -> None:
        self._api = api
        self._context = context
        params = api.llama_sampler_chain_default_params()
        params.no_perf = True
        parts = self._parts(vocab, sampling)
        self._chain = api.llama_sampler_chain_init(params)
        for part in parts:
            api.llama_sampler_chain_add(self._chain, part)
        if self._penalizes(sampling):
            for token in prompt[-_PENALTY_WINDOW_TOKENS:]:
                api.llama_sampler_accept(self._chain, token)

    def _parts(self, vocab: Any, sampling: Sampling) -> list[Any]:
        api = self._api
        parts: list[Any] = []
        if sampling.logit_bias:
            count = api.llama_vocab_n_tokens(vocab)
            # llama.cpp would look for these one by one, for every token that is drawn.
            if unknown := [token for token in sampling.logit_bias if not 0 <= token < count]:
                raise EngineError(f"logit_bias: token {unknown[0]} is not one of the model's {count}")
            entries = [api.llama_logit_bias(token, bias) for token, bias in sampling.logit_bias.items()]
            array = (api.llama_logit_bias * len(entries))(*entries)
            parts.append(api.llama_sampler_init_logit_bias(count, len(entries), array))
        if self._penalizes(sampling):
            parts.append(
                api.llama_sampler_init_penalties(
                    _PENALTY_WINDOW_TOKENS,
                    sampling.repeat_penalty,
                    sampling.frequency_penalty,
                    sampling.presence_penalty,
                )
            )
        if sampling.temperature <= 0 or sampling.top_k == 1:
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

    @staticmethod
    def _penalizes(sampling: Sampling) -> bool:
        return (
            sampling.repeat_penalty != 1.0
            or sampling.frequency_penalty != 0.0
            or sampling.presence_penalty != 0.0
        )

    def sample(self, row: int) -> int:
        return int(self._api.llama_sampler_sample(self._chain, self._context, row))

    def close(self) -> None:
        if self._chain:
            self._api.llama_sampler_free(self._chain)
            self._chain = None
