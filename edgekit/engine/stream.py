"""One request on its way through the engine: its tokens, its text, its place in the KV cache, its times."""

from __future__ import annotations

from collections.abc import Callable

from edgekit.engine.answer import AnswerText
from edgekit.engine.base import Chunk, Request, RequestRecord, Sink, TokenLogprob
from edgekit.engine.kv_cache import Lease
from edgekit.engine.reasoning import Part
from edgekit.engine.runner import Matcher, Slice, TokenSampler

__all__ = ["Stream"]


class Stream:
    """The state of one request. It is also the ticket by which its client cancels it.

    `tokens` are the prompt and what was generated; `lease` holds those of them that the KV cache has.
    """

    def __init__(self, request: Request, sink: Sink, *, now: float, wake: Callable[[], None]) -> None:
        self.request = request
        self.sink = sink
        self.tokens = list(request.prompt)
        self.text = AnswerText(request.reasoning, request.stop)
        self.lease: Lease | None = None
        self.sampler: TokenSampler | None = None
        self.matcher: Matcher | None = None
        """The constraint, as long as it waits for the answer to begin."""
        self.opening_token: int | None = None
        """The token with which the model may begin to think although an answer is constrained."""
        self.cancelled = False
        self._wake = wake
        self._cached_tokens = 0
        self._generated = 0
        self._reasoned = 0
        self._submitted_at = now
        self._started_at: float | None = None
        self._first_token_at: float | None = None
        self._last_token_at = now
        # What the client has not been given yet.
        self._reasoning: list[str] = []
        self._content: list[str] = []
        self._logprobs: list[TokenLogprob] = []
        self.given_at: float | None = None
        """When the client was given its last chunk."""

    def cancel(self) -> None:
        if not self.cancelled:
            self.cancelled = True
            self._wake()

    @property
    def started(self) -> bool:
        """Whether it has had a place in the KV cache, be it that it had to step back since."""
        return self._started_at is not None

    @property
    def held(self) -> Lease:
        """The lease of a running stream."""
        assert self.lease is not None
        return self.lease

    @property
    def pending(self) -> int:
        """How many tokens are not in the KV cache yet."""
        return len(self.tokens) - len(self.held.tokens)

    @property
    def generating(self) -> bool:
        """Whether all but the newest generated token is in the KV cache."""
        return self._generated > 0 and len(self.tokens) - len(self.held.tokens) <= 1

    @property
    def fresh(self) -> bool:
        """Whether nothing has been generated yet."""
        return self._generated == 0

    @property
    def over_budget(self) -> bool:
        """Whether the stream is still thinking though its reasoning has had all the tokens it may have."""
        rules = self.request.reasoning
        return (
            rules is not None
            and rules.budget_tokens is not None
            and self.text.thinking
            and self._reasoned >= rules.budget_tokens
        )

    def overdue(self, now: float) -> bool:
        """Whether the request's deadline has passed."""
        limit = self.request.deadline_s
        return limit is not None and now - self._submitted_at > limit

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

    def draw(self, row: int) -> int:
        """Draw the next token from a row of the last step; the constraint holds where the answer begins."""
        assert self.sampler is not None
        if self.matcher is not None and not self.text.thinking:
            if self.fresh and self.opening_token is not None:
                token = self.sampler.sample(row)
                if token == self.opening_token:
                    return token
            self.sampler.constrain(self.matcher)
            self.matcher = None
        return self.sampler.sample(row)

    def take(self, token: int, piece: bytes, row: int) -> None:
        """Add a token that was drawn from a row of the last step."""
        self.tokens.append(token)
        logprob = None
        if self.request.top_logprobs is not None:
            assert self.sampler is not None
            logprob = self.sampler.logprobs(row, token, self.request.top_logprobs)
        self.write(self.text.push(piece), logprob)

    def put(self, token: int, piece: bytes) -> None:
        """Add a token that was not drawn. It counts, but takes no time of its own."""
        assert self.sampler is not None
        self._generated += 1
        if self.text.thinking:
            self._reasoned += 1
        self.tokens.append(token)
        self.sampler.accept(token)
        self.write(self.text.push(piece))

    def note_token(self, now: float) -> float | None:
        """Count a generated token; returns the seconds since the one before, None for the first."""
        self._generated += 1
        if self.text.thinking:
            self._reasoned += 1
        gap = None if self._first_token_at is None else now - self._last_token_at
        self._last_token_at = now
        if self._first_token_at is None:
            self._first_token_at = now
        return gap

    def write(self, part: Part, logprob: TokenLogprob | None = None) -> None:
        """Add to what the client is to be given."""
        if part.reasoning:
            self._reasoning.append(part.reasoning)
        if part.content:
            self._content.append(part.content)
        if logprob is not None:
            self._logprobs.append(logprob)

    def give(self, now: float) -> bool:
        """Give the client what there is for it; returns whether there was anything."""
        if not (self._content or self._reasoning or self._logprobs):
            return False
        chunk = Chunk("".join(self._content), "".join(self._reasoning), tuple(self._logprobs))
        self._content.clear()
        self._reasoning.clear()
        self._logprobs.clear()
        self.given_at = now
        self.sink(chunk)
        return True

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
            reasoning_tokens=self._reasoned,
        )
