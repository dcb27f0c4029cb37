"""The scheduler against a runner that checks its books, and against the real model."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Sequence

import pytest

from edgekit.engine.base import Chunk, Event, Failed, Finished, FinishReason, Request, Sampling
from edgekit.engine.runner import CacheFullError, Slice
from edgekit.engine.scheduler import Scheduler
from edgekit.engine.stream import Stream
from edgekit.errors import ContextOverflowError, EngineBusyError, EngineError, EngineStoppedError

END = 7


class CheckingRunner:
    """Stands for a model: the next token follows from all tokens before it, as its KV cache holds them.

    It fails the test when the scheduler's books do not match: a gap, a wrong position, too many cells.
    """

    def __init__(self, *, kv_cells: int = 512, sequences: int = 4, batch_tokens: int = 64) -> None:
        self.kv_cells = kv_cells
        self.sequences = sequences
        self.batch_tokens = batch_tokens
        self.held: dict[int, list[int]] = {sequence: [] for sequence in range(sequences)}
        self.steps: list[list[Slice]] = []
        self.open_samplers = 0
        self.gate = threading.Event()
        self.gate.set()
        self.step_s = 0.0
        self.fail_next = False
        self.closed = False
        self._rows: list[list[int]] = []

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        return [10 + byte for byte in text.encode()]

    def piece(self, token: int) -> bytes:
        return b"%d " % token

    def ends_generation(self, token: int) -> bool:
        return token == END

    def open_sampler(self, sampling: Sampling, prompt: Sequence[int]) -> _Sampler:
        self.open_samplers += 1
        return _Sampler(self)

    def run(self, slices: Sequence[Slice]) -> list[int]:
        assert self.gate.wait(10)
        time.sleep(self.step_s)
        if self.fail_next:
            self.fail_next = False
            raise EngineError("the device has lost its mind")
        assert 0 < sum(len(piece.tokens) for piece in slices) <= self.batch_tokens
        assert len({piece.sequence for piece in slices}) == len(slices)
        if sum(map(len, self.held.values())) + sum(len(piece.tokens) for piece in slices) > self.kv_cells:
            raise CacheFullError
        self.steps.append(list(slices))
        self._rows = []
        for piece in slices:
            assert len(self.held[piece.sequence]) == piece.start
            self.held[piece.sequence] += piece.tokens
            if piece.sample:
                self._rows.append(list(self.held[piece.sequence]))
        return list(range(len(self._rows)))

    def sample(self, row: int) -> int:
        return next_token(self._rows[row])

    def forget(self, sequence: int, start: int) -> None:
        del self.held[sequence][start:]

    def close(self) -> None:
        self.closed = True


class _Sampler:
    def __init__(self, runner: CheckingRunner) -> None:
        self._runner = runner

    def sample(self, row: int) -> int:
        return self._runner.sample(row)

    def close(self) -> None:
        self._runner.open_samplers -= 1


def next_token(tokens: Sequence[int]) -> int:
    return 8 + sum((index + 1) * token for index, token in enumerate(tokens)) % 1009


def expected_text(prompt: Sequence[int], count: int) -> str:
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(next_token(tokens))
    return "".join(f"{token} " for token in tokens[len(prompt) :])


class Client:
    """Collects one stream's events."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.first = threading.Event()
        self.done = threading.Event()

    def sink(self, event: Event) -> None:
        self.events.append(event)
        self.first.set()
        if not isinstance(event, Chunk):
            self.done.set()

    @property
    def text(self) -> str:
        return "".join(event.content for event in self.events if isinstance(event, Chunk))

    def end(self) -> Finished | Failed:
        assert self.done.wait(30)
        last = self.events[-1]
        assert isinstance(last, Finished | Failed)
        return last


def start(scheduler: Scheduler, prompt: Sequence[int], max_tokens: int | None = 5) -> tuple[Client, Stream]:
    client = Client()
    return client, scheduler.submit(Request(tuple(prompt), max_tokens=max_tokens), client.sink)


def test_stream__text_and_record() -> None:
    scheduler = Scheduler(CheckingRunner(), context_tokens=256)
    client, _ = start(scheduler, [20, 30, 40], max_tokens=5)
    end = client.end()
    assert isinstance(end, Finished)
    assert end.reason is FinishReason.LENGTH
    assert client.text == expected_text([20, 30, 40], 5)
    assert (end.record.prompt_tokens, end.record.completion_tokens) == (3, 5)
    scheduler.close()


@pytest.mark.parametrize("seed", range(6))
def test_streams__many_in_a_small_cache_all_end_with_their_own_text(seed: int) -> None:
    """Preemption, eviction and prefix reuse happen here, and no stream may notice."""
    draw = random.Random(seed)
    runner = CheckingRunner(kv_cells=160, sequences=5, batch_tokens=32)
    scheduler = Scheduler(runner, context_tokens=150, prefill_tokens=8)
    common = [draw.randint(10, 99) for _ in range(20)]
    wanted = []
    for _ in range(40):
        prompt = common[: draw.randint(0, 20)] + [draw.randint(10, 99) for _ in range(draw.randint(1, 40))]
        count = draw.randint(20, 100)
        wanted.append((prompt, count, start(scheduler, prompt, count)[0]))
    for prompt, count, client in wanted:
        end = client.end()
        assert isinstance(end, Finished), end
        assert client.text == expected_text(prompt, end.record.completion_tokens)
        assert end.record.completion_tokens == min(count, 150 - len(prompt))
    stats = scheduler.stats()
    assert stats.preemptions > 0
    assert stats.cached_tokens > 0
    scheduler.close()
    assert runner.open_samplers == 0
    assert runner.closed


def test_step__mixes_decode_with_bounded_prefill() -> None:
    runner = CheckingRunner(kv_cells=512, batch_tokens=64)
    scheduler = Scheduler(runner, context_tokens=400, prefill_tokens=16)
    runner.step_s = 0.002
    running, _ = start(scheduler, [20], max_tokens=300)
    assert running.first.wait(10)
    late, _ = start(scheduler, list(range(10, 110)), max_tokens=2)
    late.end(), running.end()
    mixed = [step for step in runner.steps if len(step) == 2 and len(step[1].tokens) > 1]
    assert len(mixed) >= 6
    assert all(len(step[0].tokens) == 1 and len(step[1].tokens) <= 16 for step in mixed)
    scheduler.close()


def test_cancel__frees_cells_within_a_step() -> None:
    runner = CheckingRunner()
    runner.step_s = 0.005
    scheduler = Scheduler(runner, context_tokens=500)
    client, ticket = start(scheduler, [20] * 30, max_tokens=None)
    assert client.first.wait(10)
    ticket.cancel()
    end = client.end()
    assert isinstance(end, Finished)
    assert end.reason is FinishReason.CANCELLED
    assert scheduler.stats().kv_cells_used == 0
    assert scheduler.stats().requests_cancelled == 1
    scheduler.close()


def test_cancel__waiting_request_never_runs() -> None:
    runner = CheckingRunner(sequences=1)
    scheduler = Scheduler(runner, context_tokens=500)
    runner.gate.clear()
    first, first_ticket = start(scheduler, [20], max_tokens=None)
    second, ticket = start(scheduler, [31], max_tokens=3)
    ticket.cancel()
    first_ticket.cancel()
    runner.gate.set()
    second.end(), first.end()
    assert second.text == ""
    assert all(piece.tokens[0] != 31 for step in runner.steps for piece in step)
    scheduler.close()


def test_submit__prompt_as_long_as_the_context_is_refused_with_both_numbers() -> None:
    scheduler = Scheduler(CheckingRunner(), context_tokens=100)
    with pytest.raises(ContextOverflowError, match=r"100 tokens and the context holds 100"):
        start(scheduler, [20] * 100)
    scheduler.close()


def test_submit__full_queue_is_refused_with_a_wait() -> None:
    runner = CheckingRunner(sequences=1)
    scheduler = Scheduler(runner, context_tokens=100, queue_limit=3)
    runner.gate.clear()
    clients = [start(scheduler, [20], max_tokens=2)[0]]
    with pytest.raises(EngineBusyError) as refused:
        for _ in range(6):
            clients.append(start(scheduler, [20], max_tokens=2)[0])
    assert refused.value.retry_after_s >= 1
    runner.gate.set()
    for client in clients:
        assert isinstance(client.end(), Finished)
    scheduler.close()


def test_step__failure_of_the_runtime_ends_its_streams_and_no_others() -> None:
    runner = CheckingRunner()
    scheduler = Scheduler(runner, context_tokens=100)
    runner.fail_next = True
    failed, _ = start(scheduler, [20])
    end = failed.end()
    assert isinstance(end, Failed)
    assert "lost its mind" in str(end.error)
    after, _ = start(scheduler, [21])
    assert isinstance(after.end(), Finished)
    assert scheduler.stats().requests_failed == 1
    scheduler.close()


def test_work__unexpected_error_stops_the_engine_and_says_so() -> None:
    runner = CheckingRunner()
    told: list[EngineError] = []
    scheduler = Scheduler(runner, context_tokens=100, on_failure=told.append)

    def explode(slices: Sequence[Slice]) -> list[int]:
        raise ZeroDivisionError("oops")

    runner.run = explode  # type: ignore[method-assign]
    client, _ = start(scheduler, [20])
    assert isinstance(client.end(), Failed)
    scheduler._thread.join(10)
    assert scheduler.failure is not None
    assert told == [scheduler.failure]
    with pytest.raises(EngineError, match="ZeroDivisionError"):
        start(scheduler, [20])
    with pytest.raises(EngineError, match="ZeroDivisionError"):
        scheduler.tokenize("text")


def test_close__running_and_waiting_streams_are_told() -> None:
    runner = CheckingRunner(sequences=1)
    scheduler = Scheduler(runner, context_tokens=500)
    running, _ = start(scheduler, [20], max_tokens=None)
    waiting, _ = start(scheduler, [20], max_tokens=None)
    assert running.first.wait(10)
    scheduler.close()
    # The first may have reached the context's end in the meantime.
    assert running.done.is_set()
    assert waiting.done.is_set()
    assert runner.closed
    with pytest.raises(EngineStoppedError):
        start(scheduler, [20])
    with pytest.raises(EngineStoppedError):
        scheduler.tokenize("text")


# The real model.


def generate(engine: Scheduler, text: str, max_tokens: int = 24, **sampling: float) -> str:
    client = Client()
    engine.submit(
        Request(tuple(engine.tokenize(text)), max_tokens=max_tokens, sampling=Sampling(**sampling)),  # type: ignore[arg-type]
        client.sink,
    )
    end = client.end()
    assert isinstance(end, Finished), end
    return client.text


def test_real_model__knows_a_capital(engine: Scheduler) -> None:
    assert "Paris" in generate(engine, "The capital of France is", temperature=0)


def test_real_model__same_seed_same_text(engine: Scheduler) -> None:
    texts = {generate(engine, "Once upon a time", temperature=1.0, seed=11) for _ in range(2)}
    other = generate(engine, "Once upon a time", temperature=1.0, seed=12)
    assert len(texts) == 1
    assert other not in texts


def test_real_model__logit_bias_forbids_a_token(engine: Scheduler) -> None:
    paris = engine.tokenize(" Paris")
    assert len(paris) == 1
    client = Client()
    sampling = Sampling(temperature=0, logit_bias={paris[0]: -100.0})
    engine.submit(
        Request(tuple(engine.tokenize("The capital of France is")), max_tokens=3, sampling=sampling),
        client.sink,
    )
    client.end()
    assert "Paris" not in client.text


def test_real_model__bias_on_an_unknown_token_fails_that_request_only(engine: Scheduler) -> None:
    client = Client()
    sampling = Sampling(logit_bias={10**6: 1.0})
    engine.submit(Request(tuple(engine.tokenize("Hello")), max_tokens=3, sampling=sampling), client.sink)
    end = client.end()
    assert isinstance(end, Failed)
    assert "1000000 is not one of the model's 49152" in str(end.error)
    assert generate(engine, "Hello", 3) is not None


def test_real_model__parallel_streams_do_not_mix(engine: Scheduler) -> None:
    # Sure answers only: a batch of several streams rounds differently in the last digits.
    facts = {
        "The capital of France is": "Paris",
        "The capital of Italy is": "Rome",
        "Monday, Tuesday, Wednesday,": "Thursday",
        "one, two, three, four,": "five",
    }
    clients = []
    for prompt, answer in list(facts.items()) * 3:
        client = Client()
        request = Request(tuple(engine.tokenize(prompt)), max_tokens=4, sampling=Sampling(temperature=0))
        engine.submit(request, client.sink)
        clients.append((client, answer))
    for client, answer in clients:
        client.end()
        assert answer in client.text
