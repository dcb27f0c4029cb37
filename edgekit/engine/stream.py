"""One request on its way through the engine: its tokens, its place in the KV cache, its times."""

from __future__ import annotations

from collections.abc import Callable

from edgekit.engine.base import Request, RequestRecord, Sink
from edgekit.engine.kv_cache import Lease
from edgekit.engine.runner import Slice, TokenSampler
from edgekit.engine.text import TextStream

__all__ = ["Stream"]


class Stream:
    """The state of one request. It is also the ticket by which its client cancels it.

    `tokens` are the prompt and what was generated; `lease` holds those of them that the KV cache has.
    """

    def __init__(self, request: Request, sink: Sink, *, now: float, wake: Callable[[], None]) -> None:
        self.request = request
        self.sink = sink
        self.tokens = list(request.prompt)
        self.text = TextStream(request.stop)
        self.lease: Lease | None = None
        self.sampler: TokenSampler | None = None
        self.cancelled = False
        self._wake = wake
        self._cached_tokens = 0
        self._generated = 0
        self._submitted_at = now
        self._started_at: float | None = None
        self._first_token_at: float | None = None
        self._last_token_at = now

    def cancel(self) -> None:
        self.cancelled = True
        self._wake()

    @property
    def held(self) -> Lease:
        """The lease of a running stream."""
        assert self.lease is not None
        return self.lease

    @property
    def pending(self) -> list[int]:
        """Tokens that are not in the KV cache yet."""
        return self.tokens[len(self.held.tokens) :]

    @property
    def generating(self) -> bool:
        """Whether all but the newest generated token is in the KV cache."""
        return self._generated > 0 and len(self.tokens) - len(self.held.tokens) <= 1

    def start(self, lease: Lease, *, now: float) -> None:
        """Take a place in the KV cache, for the first time or after stepping back."""
        self.lease = lease
        if self._started_at is None:
            self._started_at = now
            self._cached_tokens = len(lease.tokens)

    def slice(self, limit: int) -> Slice:
        """The next tokens to compute, `limit` at most."""
        held = self.held
        start = len(held.tokens)
        end = min(len(self.tokens), start + limit)
        return Slice(held.sequence, start, self.tokens[start:end], sample=end == len(self.tokens))

    def note_token(self, now: float) -> None:
        """Count a generated token."""
        self._generated += 1
        self._last_token_at = now
        if self._first_token_at is None:
            self._first_token_at = now

    def exhausted(self, context_tokens: int) -> bool:
        """Whether the stream has reached its max_tokens or the end of the context."""
        limit = self.request.max_tokens
        return len(self.tokens) >= context_tokens or (limit is not None and self._generated >= limit)

    def record(self, now: float) -> RequestRecord:
        """What the request has cost, as of `now`."""
        started = now if self._started_at is None else self._started_at
        first = now if self._first_token_at is None else self._first_token_at
        return RequestRecord(
            prompt_tokens=len(self.request.prompt),
            cached_tokens=self._cached_tokens,
            completion_tokens=self._generated,
            queue_s=started - self._submitted_at,
            prefill_s=first - started,
            decode_s=max(0.0, self._last_token_at - first),
        )
