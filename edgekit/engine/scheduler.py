"""Continuous batching: in each step, one thread decodes the running streams and prefills new ones.

    step = take what came in → admit → compose a batch → run → sample, emit, retire

Every running stream adds its next token to each step; what is left of the step's budget goes to prompts.
What a prompt has in common with what the KV cache holds is not computed again; where another prompt is just
being computed that begins alike, a new one waits for it. When the cache is full, the youngest stream steps
back: its cells are freed, and it is computed again, answer so far included, when there is room. Its client
sees a pause and nothing else.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from edgekit.engine.base import (
    Constraint,
    EngineStats,
    Failed,
    Finished,
    FinishReason,
    Request,
    RequestRecord,
    Sink,
)
from edgekit.engine.kv_cache import KvCache, Lease, Prefix, common_prefix
from edgekit.engine.ledger import Ledger
from edgekit.engine.pace import PrefillPace
from edgekit.engine.runner import CacheFullError, Runner, Slice
from edgekit.engine.stream import Stream
from edgekit.engine.waiting_line import WaitingLine
from edgekit.errors import (
    ContextOverflowError,
    DeadlineExceededError,
    EdgekitError,
    EngineBusyError,
    EngineError,
    EngineStoppedError,
)

__all__ = ["Scheduler"]

log = logging.getLogger(__name__)

_GROWTH_TOKENS = 32
"""Cells kept free for each running stream when another is admitted, so that it need not step back at once."""

_FOLLOW_FROM_TOKENS = 16
"""A prompt waits for one that is being computed if it can then share so many more tokens."""

_GIVE_EVERY_S = 0.020
"""A client is woken fifty times a second at most: tokens that come faster go together. Each wake-up takes
time on cores that compute, and nobody reads faster. The first token goes at once."""

_HAND_OVER_S = 100e-6
"""After a step that gave clients text, while nobody computes, the cores are left to whoever sends it. A
moment later he would take a core from one compute thread, and all the others would wait for that one: with
eight streams over HTTP on two cores this pause gives 4 to 8 % more tokens/s."""


class Scheduler:
    """The engine over a runner. Implements `edgekit.engine.base.Engine`.

    Args:
        runner: the loaded model. Used by the scheduler's thread only, but for what says otherwise.
        context_tokens: what one request may use, prompt and answer together.
        prefill_tokens: prompt tokens of one step at most while other streams decode.
        queue_limit: requests that may wait. One more is refused.
        on_failure: called on the scheduler's thread when the engine stops for good.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        runner: Runner,
        *,
        context_tokens: int,
        prefill_tokens: int = 128,
        queue_limit: int = 64,
        on_failure: Callable[[EngineError], None] = lambda error: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._runner = runner
        self._context_tokens = min(context_tokens, runner.kv_cells)
        self._queue_limit = queue_limit
        self._on_failure = on_failure
        self._clock = clock
        self._cache = KvCache(runner.kv_cells, runner.sequences)
        self._pace = PrefillPace(prefill_tokens)
        self._inbox: queue.SimpleQueue[Stream | None] = queue.SimpleQueue()
        """New streams; None wakes the thread."""
        self._arrived = 0
        """Streams in the inbox."""
        self._waiting = WaitingLine()
        self._copies_prefixes = False
        """Whether the runtime has turned out to copy what it shares."""
        self._running: list[Stream] = []
        self._ledger = Ledger(clock)
        self._step_began: float | None = None
        self._closing = False
        self._gate = threading.Condition()
        """Guards the two below: nothing comes in, and nobody uses the model, once it is freed."""
        self._stopped = False
        self._borrowers = 0
        self._failure: EngineError | None = None
        self._thread = threading.Thread(target=self._work, name="scheduler", daemon=True)
        self._thread.start()

    # What other threads call.

    @property
    def context_tokens(self) -> int:
        return self._context_tokens

    @property
    def failure(self) -> EngineError | None:
        """Why the engine has stopped for good, None while it works."""
        return self._failure

    def submit(self, request: Request, sink: Sink) -> Stream:
        if len(request.prompt) >= self._context_tokens:
            raise ContextOverflowError(len(request.prompt), self._context_tokens)
        if not request.prompt:
            raise EngineError("the prompt has no tokens")
        queued = self._queued()
        if queued >= self._queue_limit:
            self._ledger.refused += 1
            raise EngineBusyError(queued, self._ledger.expected_wait_s(queued, self._runner.streams))
        stream = Stream(request, sink, now=self._clock(), wake=lambda: self._inbox.put(None))
        if request.constraint is not None:
            with self._borrowed_runner() as runner:
                stream.matcher = runner.open_matcher(request.constraint)
                if request.reasoning is not None:
                    stream.opening_token = _only_token(runner, request.reasoning.tags.opening)
        with self._gate:
            self._refuse_when_stopped()
            self._arrived += 1
            self._inbox.put(stream)
        return stream

    def check(self, constraint: Constraint) -> None:
        with self._borrowed_runner() as runner:
            runner.open_matcher(constraint)

    def tokenize(self, text: str, *, add_special: bool = False, parse_special: bool = True) -> list[int]:
        with self._borrowed_runner() as runner:
            return runner.tokenize(text, add_special=add_special, parse_special=parse_special)

    def pieces(self, tokens: Sequence[int]) -> list[bytes]:
        with self._borrowed_runner() as runner:
            for token in tokens:
                if not 0 <= token < runner.vocabulary:
                    raise EngineError(f"token {token} is not one of the model's {runner.vocabulary}")
            return [runner.piece(token) for token in tokens]

    def stats(self) -> EngineStats:
        return self._ledger.snapshot(
            active=len(self._running),
            queued=self._queued(),
            kv_cells_used=self._cache.used,
            kv_cells_total=self._cache.cells,
        )

    def step_age_s(self) -> float | None:
        began = self._step_began
        return None if began is None else self._clock() - began

    def observe(self, observer: Callable[[RequestRecord], None]) -> None:
        self._ledger.observers.append(observer)

    def close(self) -> None:
        self._closing = True
        self._inbox.put(None)
        self._thread.join()

    @contextmanager
    def _borrowed_runner(self) -> Iterator[Runner]:
        """The runner, for what any thread may call; it is not freed meanwhile."""
        with self._gate:
            self._refuse_when_stopped()
            self._borrowers += 1
        try:
            yield self._runner
        finally:
            with self._gate:
                self._borrowers -= 1
                self._gate.notify_all()

    def _refuse_when_stopped(self) -> None:
        if self._stopped:
            raise self._failure or EngineStoppedError("the server is shutting down")

    def _queued(self) -> int:
        return len(self._waiting) + self._arrived

    # What the scheduler's thread does.

    def _work(self) -> None:
        try:
            while not self._closing:
                self._take_in()
                self._step_began = self._clock()
                self._drop_unwanted()
                self._admit()
                gave = self._step()
                self._step_began = None
                if gave:
                    time.sleep(_HAND_OVER_S)
        except BaseException as error:  # a panic of llguidance's is no Exception
            log.exception("the engine has stopped")
            self._failure = EngineError(
                f"the engine has stopped: {type(error).__name__}: {error}", hint="restart the server"
            )
        finally:
            self._step_began = None
            self._stop()

    def _stop(self) -> None:
        """End all streams and free the model."""
        with self._gate:
            self._stopped = True
        self._take_in(wait=False)
        reason = self._failure or EngineStoppedError("the server is shutting down")
        for stream in [*self._running, *self._waiting]:
            try:
                self._fail(stream, reason)
            except Exception:
                # The books may be what broke. Its client is told all the same.
                log.exception("a stream could not be put away")
                stream.sink(Failed(reason))
        if self._failure is not None:
            self._on_failure(self._failure)
        with self._gate:
            self._gate.wait_for(lambda: self._borrowers == 0)
        self._runner.close()

    def _take_in(self, *, wait: bool = True) -> None:
        """Move new streams from the inbox to the queue. With nothing to do, sleep until one comes."""
        wait = wait and not (self._running or len(self._waiting))
        while True:
            try:
                stream = self._inbox.get(block=wait)
            except queue.Empty:
                return
            wait = False
            if stream is not None:
                self._waiting.join(stream)
                with self._gate:
                    self._arrived -= 1

    def _drop_unwanted(self) -> None:
        now = self._clock()
        for stream in [*self._running, *self._waiting]:
            if stream.cancelled:
                self._retire(stream, FinishReason.CANCELLED)
            elif stream.overdue(now):
                assert stream.request.deadline_s is not None
                self._fail(stream, DeadlineExceededError(stream.request.deadline_s))

    # Admission.

    def _admit(self) -> None:
        while len(self._running) < self._runner.streams and self._cache.has_sequence:
            chosen = self._choose()
            if chosen is None:
                return
            stream, prefix = chosen
            lease = self._place(prefix)
            self._waiting.leave(stream)
            if not stream.started:
                self._ledger.note_prefix(bool(lease.tokens))
            stream.start(lease, now=self._clock())
            self._running.append(stream)
            if stream.sampler is None:
                with self._alone(stream):
                    stream.sampler = self._runner.open_sampler(stream.request.sampling, stream.request.prompt)
                    if stream.over_budget:
                        self._close_reasoning(stream)

    def _choose(self) -> tuple[Stream, Prefix] | None:
        """Who is next, and what the cache holds of its prompt."""
        if not len(self._waiting):
            return None
        for stream in self._waiting.in_turn(self._running):
            prefix = self._cache.find(stream.tokens) if self._runner.keeps_prefixes else Prefix(None, 0)
            if self._better_soon(stream, prefix):
                continue
            return (stream, prefix) if self._has_room_for(stream, prefix) else None
        return None

    def _better_soon(self, stream: Stream, prefix: Prefix) -> bool:
        """Whether a prompt that is being computed will hold more of this one's beginning."""
        return self._runner.keeps_prefixes and any(
            not other.generating
            and common_prefix(other.tokens, stream.tokens, len(stream.tokens) - 1)
            >= prefix.length + _FOLLOW_FROM_TOKENS
            for other in self._running
        )

    def _has_room_for(self, stream: Stream, prefix: Prefix) -> bool:
        if not self._running:
            return True
        promised = sum(other.pending + _GROWTH_TOKENS for other in self._running)
        # What only parked sequences hold counts as available: it must still be there when it is used.
        free = prefix.lease is not None and prefix.lease.parked_at is None and not self._copies_prefixes
        shared = prefix.length if free else 0
        return self._cache.available - promised >= len(stream.tokens) - shared + _GROWTH_TOKENS

    def _place(self, prefix: Prefix) -> Lease:
        """A sequence that holds a prefix."""
        lease = self._cache.take_over(prefix)
        if lease is not None:
            self._runner.forget(lease.sequence, len(lease.tokens))
            return lease
        if not self._cache.has_free_sequence and (oldest := self._cache.oldest(but=prefix.lease)) is not None:
            self._evict(oldest)
        lease = self._cache.lease()
        if prefix.lease is not None:
            self._copies_prefixes = not self._runner.share(
                prefix.lease.sequence, lease.sequence, prefix.length
            )
            self._cache.share(prefix.lease, lease, prefix.length, copied=self._copies_prefixes)
        return lease

    # The step.

    def _step(self) -> bool:
        """Compute a step; returns whether a client was given something."""
        batch = self._compose()
        gave = self._run(batch) if batch else False
        embedding = next((stream for stream in self._running if _is_to_embed(stream)), None)
        if embedding is not None:
            self._embed(embedding)
        return gave or embedding is not None

    def _run(self, batch: list[tuple[Stream, Slice]]) -> bool:
        decoded = sum(stream.generating for stream, _ in batch)
        started = self._clock()
        rows = self._compute(batch)
        if rows is None:
            return False
        total = sum(len(piece.tokens) for _, piece in batch)
        gave = self._sample(batch, rows)
        seconds = self._clock() - started
        self._ledger.note_step(seconds, decoded=decoded, prefilled=total - decoded)
        self._pace.note(seconds, decoded=decoded, prefilled=total - decoded)
        return gave

    def _compute(self, batch: list[tuple[Stream, Slice]]) -> list[int] | None:
        """Run the batch's slices and note them; None when they could not be computed."""
        try:
            rows = self._runner.run([piece for _, piece in batch])
        except CacheFullError:
            # The books said that there was room: the runtime needs some slack of its own.
            if not self._make_room():
                self._fail(batch[0][0], EngineError("the KV cache is too small for this request"))
            return None
        except EngineError as error:
            log.error("a step failed: %s", error)
            for stream, _ in batch:
                self._fail(stream, error)
            return None
        for stream, piece in batch:
            self._cache.extend(stream.held, piece.tokens)
        return rows

    def _compose(self) -> list[tuple[Stream, Slice]]:
        """The next step's slices: a token of each generating stream, then prompts within the budget.

        Half of the budget is the oldest prompt's, so that it is not overtaken for ever; the rest goes to the
        shortest first, which gives most of them their first token soonest.
        """
        generating = [stream for stream in self._running if stream.generating]
        prompts = [stream for stream in self._running if not stream.generating and not _is_to_embed(stream)]
        budget = self._runner.batch_tokens - len(generating)
        if generating:
            budget = min(budget, self._pace.budget())
        batch = [(stream, stream.slice(1)) for stream in generating]
        if prompts:
            oldest = prompts[0]
            granted = dict.fromkeys(prompts, 0)
            granted[oldest] = min(_to_compute(oldest), (budget + 1) // 2)
            budget -= granted[oldest]
            for stream in sorted(prompts, key=_to_compute):
                more = min(budget, _to_compute(stream) - granted[stream])
                granted[stream] += more
                budget -= more
            batch += [(stream, stream.slice(tokens)) for stream, tokens in granted.items() if tokens > 0]
        needed = sum(len(piece.tokens) for _, piece in batch)
        if self._cache.cells - self._cache.used >= needed or not self._make_room():
            return batch
        return self._compose()

    def _make_room(self) -> bool:
        """Free the cells of the sequence parked longest, else of the youngest stream. False: none is left."""
        oldest = self._cache.oldest()
        if oldest is not None:
            self._evict(oldest)
            return True
        if len(self._running) < 2:
            return False
        youngest = self._running.pop()
        youngest.give(self._clock())
        self._give_back(youngest)
        self._waiting.join(youngest)
        self._ledger.preemptions += 1
        return True

    def _sample(self, batch: list[tuple[Stream, Slice]], rows: list[int]) -> bool:
        """Draw the next tokens; returns whether a client was given something."""
        gave = False
        sampled = [stream for stream, piece in batch if piece.sample]
        for stream, row in zip(sampled, rows, strict=True):
            if stream.cancelled:
                continue
            with self._alone(stream):
                gave |= self._advance(stream, row)
        return gave

    @contextmanager
    def _alone(self, stream: Stream) -> Iterator[None]:
        """What goes wrong here comes of the stream's own settings (a grammar, a bias) and ends no other."""
        try:
            yield
        except EngineError as error:
            self._fail(stream, error)
        except Exception as error:
            log.exception("a stream failed")
            self._fail(stream, EngineError(f"this request fails: {type(error).__name__}: {error}"))

    def _advance(self, stream: Stream, row: int) -> bool:
        """Draw a stream's next token and take it; returns whether its client was given something."""
        token = stream.draw(row)
        now = self._clock()
        self._ledger.note_gap(stream.note_token(now))
        if self._runner.ends_generation(token):
            if stream.matcher is not None and stream.text.thinking:
                # It would end without the answer whose form was asked for.
                self._close_reasoning(stream)
                return True
            self._retire(stream, FinishReason.STOP)
            return True
        stream.take(token, self._runner.piece(token), row)
        if stream.text.stopped:
            self._retire(stream, FinishReason.STOP)
        elif stream.exhausted(self._context_tokens):
            self._retire(stream, FinishReason.LENGTH)
        else:
            if stream.over_budget:
                self._close_reasoning(stream)
            return self._is_due(stream, now) and stream.give(now)
        return True

    def _is_due(self, stream: Stream, now: float) -> bool:
        """Whether a client is to be given its text now, and not together with the next step's."""
        step_s = self._pace.decode_step_s
        if stream.given_at is None or step_s is None:
            return True
        if len(self._waiting) or not all(other.generating for other in self._running):
            return True  # the next step may take long
        return now + step_s - stream.given_at > _GIVE_EVERY_S

    def _close_reasoning(self, stream: Stream) -> None:
        """Put the end of the reasoning into the model's mouth."""
        assert stream.request.reasoning is not None
        closing = f"\n{stream.request.reasoning.tags.closing}\n\n"
        for token in self._runner.tokenize(closing, add_special=False, parse_special=True):
            if not stream.exhausted(self._context_tokens):
                stream.put(token, self._runner.piece(token))
        if stream.exhausted(self._context_tokens):
            self._retire(stream, FinishReason.LENGTH)

    def _embed(self, stream: Stream) -> None:
        """Compute the last token of a text that is to be embedded, in a step of its own."""
        last = stream.slice(1)
        piece = Slice(last.sequence, last.start, last.tokens, sample=False, embed=True)
        if self._cache.cells == self._cache.used and not self._make_room():
            self._fail(stream, EngineError("the KV cache is too small for this request"))
            return
        if stream.lease is None:
            return  # it was itself the one to step back
        started = self._clock()
        rows = self._compute([(stream, piece)])
        if rows is None:
            return
        try:
            embedding = self._runner.embedding(rows[0])
        except EngineError as error:
            self._fail(stream, error)
            return
        self._ledger.note_step(self._clock() - started, decoded=0, prefilled=1)
        self._retire(stream, FinishReason.STOP, embedding)

    # How streams end.

    def _retire(
        self, stream: Stream, reason: FinishReason, embedding: tuple[float, ...] | None = None
    ) -> None:
        now = self._clock()
        if reason is not FinishReason.CANCELLED:
            stream.write(stream.text.finish())
            stream.give(now)
        self._remove(stream, keep_tokens=reason is not FinishReason.CANCELLED)
        record = stream.record(now)
        self._ledger.note_request(record, reason)
        stream.sink(Finished(reason, record, embedding))

    def _fail(self, stream: Stream, error: EdgekitError) -> None:
        self._remove(stream, keep_tokens=False)
        self._ledger.failed += 1
        stream.give(self._clock())
        stream.sink(Failed(error))

    def _remove(self, stream: Stream, *, keep_tokens: bool) -> None:
        if stream in self._running:
            self._running.remove(stream)
        elif stream in self._waiting:
            self._waiting.leave(stream)
        if stream.lease is not None and keep_tokens and self._runner.keeps_prefixes:
            self._cache.park(stream.lease)
            stream.lease = None
            while (surplus := self._cache.surplus()) is not None:
                self._evict(surplus)
        self._give_back(stream)
        if stream.sampler is not None:
            stream.sampler.close()
            stream.sampler = None

    def _give_back(self, stream: Stream) -> None:
        if stream.lease is not None:
            self._evict(stream.lease)
            stream.lease = None

    def _evict(self, lease: Lease) -> None:
        self._runner.forget(lease.sequence, 0)
        self._cache.release(lease)


def _is_to_embed(stream: Stream) -> bool:
    """Whether all of a text that is to be embedded is computed but its last token."""
    return stream.request.embed and stream.pending == 1


def _to_compute(stream: Stream) -> int:
    """Tokens of a prompt for mixed steps; the last one of a text that is to be embedded has its own."""
    return stream.pending - stream.request.embed


def _only_token(runner: Runner, text: str) -> int | None:
    """The token that stands for a text, None when it takes several."""
    tokens = runner.tokenize(text, add_special=False, parse_special=True)
    return tokens[0] if len(tokens) == 1 else None
