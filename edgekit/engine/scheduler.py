"""Continuous batching: in each step, one thread decodes the running streams and prefills new ones.

    step = take what came in → admit → compose a batch → run → sample, emit, retire

Every running stream adds its next token to each step; what is left of the step's budget goes to prompts, in
order of arrival. When the KV cache is full, the youngest stream steps back: its cells are freed, and it is
computed again, answer so far included, when there is room. Its client sees a pause and nothing else.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable

from edgekit.engine.base import (
    Chunk,
    EngineStats,
    Failed,
    Finished,
    FinishReason,
    Request,
    RequestRecord,
    Sink,
)
from edgekit.engine.kv_cache import KvCache
from edgekit.engine.ledger import Ledger
from edgekit.engine.runner import CacheFullError, Runner, Slice
from edgekit.engine.stream import Stream
from edgekit.errors import (
    ContextOverflowError,
    EdgekitError,
    EngineBusyError,
    EngineError,
    EngineStoppedError,
)

__all__ = ["Scheduler"]

log = logging.getLogger(__name__)

_GROWTH_TOKENS = 32
"""Cells kept free for each running stream when another is admitted, so that it need not step back at once."""

_HAND_OVER_S = 100e-6
"""After each step, while nobody computes, the cores are left to whoever sends the step's text. A moment later
he would take a core from one compute thread, and all the others would wait for that one: with eight streams
over HTTP on two cores this pause gives 4 to 8 % more tokens/s, with one stream 1 to 2 %."""


class Scheduler:
    """The engine over a runner. Implements `edgekit.engine.base.Engine`.

    Args:
        runner: the loaded model. Used by the scheduler's thread only, but for `tokenize`.
        context_tokens: what one request may use, prompt and answer together.
        prefill_tokens: prompt tokens of one step while other streams decode; bounds how long a new prompt
            holds them up.
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
        self._prefill_tokens = prefill_tokens
        self._queue_limit = queue_limit
        self._on_failure = on_failure
        self._clock = clock
        self._cache = KvCache(runner.kv_cells, runner.sequences)
        self._inbox: queue.SimpleQueue[Stream | None] = queue.SimpleQueue()
        """New streams; None wakes the thread."""
        self._waiting: deque[Stream] = deque()
        self._running: list[Stream] = []
        self._ledger = Ledger(clock)
        self._closing = False
        self._gate = threading.Condition()
        """Guards the two below: nothing comes in, and nobody uses the model, once it is freed."""
        self._stopped = False
        self._tokenizing = 0
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
            raise EngineBusyError(queued, self._ledger.expected_wait_s(queued, self._runner.sequences))
        stream = Stream(request, sink, now=self._clock(), wake=lambda: self._inbox.put(None))
        with self._gate:
            self._refuse_when_stopped()
            self._inbox.put(stream)
        return stream

    def tokenize(self, text: str, *, add_special: bool = False, parse_special: bool = True) -> list[int]:
        with self._gate:
            self._refuse_when_stopped()
            self._tokenizing += 1
        try:
            return self._runner.tokenize(text, add_special=add_special, parse_special=parse_special)
        finally:
            with self._gate:
                self._tokenizing -= 1
                self._gate.notify_all()

    def stats(self) -> EngineStats:
        return self._ledger.snapshot(
            active=len(self._running),
            queued=self._queued(),
            kv_cells_used=self._cache.used,
            kv_cells_total=self._cache.cells,
        )

    def observe(self, observer: Callable[[RequestRecord], None]) -> None:
        self._ledger.observers.append(observer)

    def close(self) -> None:
        self._closing = True
        self._inbox.put(None)
        self._thread.join()

    def _refuse_when_stopped(self) -> None:
        if self._stopped:
            raise self._failure or EngineStoppedError("the server is shutting down")

    def _queued(self) -> int:
        return len(self._waiting) + self._inbox.qsize()

    # What the scheduler's thread does.

    def _work(self) -> None:
        try:
            while not self._closing:
                self._take_in()
                self._drop_cancelled()
                self._admit()
                self._step()
        except Exception as error:
            log.exception("the engine has stopped")
            self._failure = EngineError(
                f"the engine has stopped: {type(error).__name__}: {error}", hint="restart the server"
            )
        finally:
            self._stop()

    def _stop(self) -> None:
        """End all streams and free the model."""
        with self._gate:
            self._stopped = True
        self._take_in(wait=False)
        reason = self._failure or EngineStoppedError("the server is shutting down")
        for stream in [*self._running, *self._waiting]:
            self._fail(stream, reason)
        with self._gate:
            self._gate.wait_for(lambda: self._tokenizing == 0)
        self._runner.close()
        if self._failure is not None:
            self._on_failure(self._failure)

    def _take_in(self, *, wait: bool = True) -> None:
        """Move new streams from the inbox to the queue. With nothing to do, sleep until one comes."""
        wait = wait and not (self._running or self._waiting)
        while True:
            try:
                stream = self._inbox.get(block=wait)
            except queue.Empty:
                return
            wait = False
            if stream is not None:
                self._waiting.append(stream)

    def _drop_cancelled(self) -> None:
        for stream in [stream for stream in (*self._running, *self._waiting) if stream.cancelled]:
            self._retire(stream, FinishReason.CANCELLED)

    def _admit(self) -> None:
        while self._waiting and self._cache.has_sequence and self._has_room_for(self._waiting[0]):
            stream = self._waiting.popleft()
            lease = self._cache.lease(stream.tokens)
            self._runner.forget(lease.sequence, len(lease.tokens))
            stream.start(lease, now=self._clock())
            self._running.append(stream)
            if stream.sampler is None:
                try:
                    stream.sampler = self._runner.open_sampler(stream.request.sampling, stream.request.prompt)
                except EngineError as error:
                    self._fail(stream, error)

    def _has_room_for(self, stream: Stream) -> bool:
        if not self._running:
            return True
        promised = sum(len(other.pending) + _GROWTH_TOKENS for other in self._running)
        return self._cache.available - promised >= len(stream.tokens) + _GROWTH_TOKENS

    def _step(self) -> None:
        batch = self._compose()
        if not batch:
            return
        decoded = sum(stream.generating for stream, _ in batch)
        started = self._clock()
        try:
            rows = self._runner.run([piece for _, piece in batch])
        except CacheFullError:
            # The books said that there was room: the runtime needs some slack of its own.
            if not self._make_room():
                self._fail(batch[0][0], EngineError("the KV cache is too small for this request"))
            return
        except EngineError as error:
            log.error("a step failed: %s", error)
            for stream, _ in batch:
                self._fail(stream, error)
            return
        for stream, piece in batch:
            self._cache.extend(stream.held, piece.tokens)
        self._sample(batch, rows)
        total = sum(len(piece.tokens) for _, piece in batch)
        self._ledger.note_step(self._clock() - started, decoded=decoded, prefilled=total - decoded)
        time.sleep(_HAND_OVER_S)

    def _compose(self) -> list[tuple[Stream, Slice]]:
        """The next step's slices: a token of each generating stream, then prompts within the budget."""
        generating = [stream for stream in self._running if stream.generating]
        prompts = [stream for stream in self._running if not stream.generating]
        budget = self._runner.batch_tokens - len(generating)
        if generating:
            budget = min(budget, self._prefill_tokens)
        batch = [(stream, stream.slice(1)) for stream in generating]
        for stream in prompts:
            if budget <= 0:
                break
            piece = stream.slice(budget)
            budget -= len(piece.tokens)
            batch.append((stream, piece))
        needed = sum(len(piece.tokens) for _, piece in batch)
        if self._cache.cells - self._cache.used >= needed or not self._make_room():
            return batch
        return self._compose()

    def _make_room(self) -> bool:
        """Free the cells of the sequence parked longest, else of the youngest stream. False: none is left."""
        evicted = self._cache.evict()
        if evicted is not None:
            self._runner.forget(evicted.sequence, 0)
            return True
        if len(self._running) < 2:
            return False
        youngest = self._running.pop()
        self._give_back(youngest)
        self._waiting.appendleft(youngest)
        self._ledger.preemptions += 1
        return True

    def _sample(self, batch: list[tuple[Stream, Slice]], rows: list[int]) -> None:
        sampled = [stream for stream, piece in batch if piece.sample]
        now = self._clock()
        for stream, row in zip(sampled, rows, strict=True):
            if stream.cancelled:
                continue
            assert stream.sampler is not None
            token = stream.sampler.sample(row)
            self._advance(stream, token, now)

    def _advance(self, stream: Stream, token: int, now: float) -> None:
        """Take a stream's next token: emit its text, or end the stream."""
        stream.note_token(now)
        if self._runner.ends_generation(token):
            self._retire(stream, FinishReason.STOP)
            return
        stream.tokens.append(token)
        text = stream.text.push(self._runner.piece(token))
        if text:
            stream.sink(Chunk(text))
        if stream.text.stopped:
            self._retire(stream, FinishReason.STOP)
        elif stream.exhausted(self._context_tokens):
            self._retire(stream, FinishReason.LENGTH)

    def _retire(self, stream: Stream, reason: FinishReason) -> None:
        rest = stream.text.finish()
        if rest and reason is not FinishReason.CANCELLED:
            stream.sink(Chunk(rest))
        self._remove(stream, keep_tokens=reason is not FinishReason.CANCELLED)
        record = stream.record(self._clock())
        self._ledger.note_request(record, reason)
        stream.sink(Finished(reason, record))

    def _fail(self, stream: Stream, error: EdgekitError) -> None:
        self._remove(stream, keep_tokens=False)
        self._ledger.failed += 1
        stream.sink(Failed(error))

    def _remove(self, stream: Stream, *, keep_tokens: bool) -> None:
        if stream in self._running:
            self._running.remove(stream)
        elif stream in self._waiting:
            self._waiting.remove(stream)
        if stream.lease is not None and keep_tokens:
            self._cache.park(stream.lease)
            stream.lease = None
            while (evicted := self._cache.evict_surplus()) is not None:
                self._runner.forget(evicted.sequence, 0)
        self._give_back(stream)
        if stream.sampler is not None:
            stream.sampler.close()
            stream.sampler = None

    def _give_back(self, stream: Stream) -> None:
        if stream.lease is not None:
            self._runner.forget(stream.lease.sequence, 0)
            self._cache.release(stream.lease)
            stream.lease = None
