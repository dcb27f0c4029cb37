"""The scheduler against a runner that checks its books, and against the real model."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Sequence

import pytest

from edgekit.engine.base import (
    Chunk,
    Constraint,
    Event,
    Failed,
    Finished,
    FinishReason,
    LikelyToken,
    ReasoningRules,
    ReasoningTags,
    Request,
    Sampling,
    TokenLogprob,
)
from edgekit.engine.runner import CacheFullError, Matcher, ModelText, Slice
from edgekit.engine.scheduler import Scheduler
from edgekit.engine.stream import Stream
from edgekit.errors import (
    ConstraintError,
    ContextOverflowError,
    DeadlineExceededError,
    EngineBusyError,
    EngineError,
    EngineStoppedError,
)

END = 7


class CheckingRunner:
    """Stands for a model: the next token follows from all tokens before it, as its KV cache holds them.

    It fails the test when the scheduler's books do not match: a gap, a wrong position, too many cells.
    """

    keeps_prefixes = True
    vocabulary = 2000
    text = ModelText(None, "", "", Sampling())

    def __init__(
        self,
        *,
        kv_cells: int = 512,
        sequences: int = 16,
        streams: int = 4,
        batch_tokens: int = 64,
        copies: bool = False,
    ) -> None:
        self.kv_cells = kv_cells
        self.sequences = sequences
        self.streams = streams
        self.batch_tokens = batch_tokens
        self.copies = copies
        self.cells: dict[int, list[int]] = {sequence: [] for sequence in range(sequences)}
        """By sequence, the ids of its cells; a cell may be shared."""
        self.tokens: dict[int, int] = {}
        """By cell."""
        self.steps: list[list[Slice]] = []
        self.open_samplers = 0
        self.gate = threading.Event()
        self.gate.set()
        self.step_s = 0.0
        self.fail_next = False
        self.ends_at: int | None = None
        """After so many steps more than one, whatever was drawn ends the turn."""
        self.closed = False
        self._rows: list[list[int]] = []

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        return [10 + byte for byte in text.encode()]

    def piece(self, token: int) -> bytes:
        return b"%d " % token

    def ends_generation(self, token: int) -> bool:
        if self.ends_at is not None and len(self.steps) == self.ends_at + 1:
            self.ends_at = None
            return True
        return token == END

    def open_sampler(self, sampling: Sampling, prompt: Sequence[int]) -> _Sampler:
        self.open_samplers += 1
        return _Sampler(self)

    def open_matcher(self, constraint: Constraint) -> Matcher:
        if constraint.text == "bad":
            raise ConstraintError("no such grammar")
        return _Only([int(token) for token in constraint.text.split()])

    def held(self, sequence: int) -> list[int]:
        return [self.tokens[cell] for cell in self.cells[sequence]]

    def used(self) -> int:
        return len({cell for cells in self.cells.values() for cell in cells})

    def run(self, slices: Sequence[Slice]) -> list[int]:
        assert self.gate.wait(10)
        time.sleep(self.step_s)
        if self.fail_next:
            self.fail_next = False
            raise EngineError("the device has lost its mind")
        count = sum(len(piece.tokens) for piece in slices)
        assert 0 < count <= self.batch_tokens
        assert 0 < len({piece.sequence for piece in slices}) == len(slices) <= self.streams
        if self.used() + count > self.kv_cells:
            raise CacheFullError
        self.steps.append(list(slices))
        self._rows = []
        for piece in slices:
            assert len(self.cells[piece.sequence]) == piece.start
            for token in piece.tokens:
                cell = len(self.tokens)
                self.tokens[cell] = token
                self.cells[piece.sequence].append(cell)
            if piece.sample or piece.embed:
                self._rows.append(self.held(piece.sequence))
        return list(range(len(self._rows)))

    def next_token(self, row: int) -> int:
        return next_token(self._rows[row])

    def embedding(self, row: int) -> tuple[float, ...]:
        return tuple(float(token) for token in self._rows[row])

    def share(self, source: int, target: int, end: int) -> bool:
        assert not self.cells[target]
        assert 0 < end <= len(self.cells[source])
        self.cells[target] = self.cells[source][:end]
        if self.copies:
            for index, cell in enumerate(self.cells[target]):
                self.cells[target][index] = len(self.tokens)
                self.tokens[len(self.tokens)] = self.tokens[cell]
        return not self.copies

    def forget(self, sequence: int, start: int) -> None:
        del self.cells[sequence][start:]

    def close(self) -> None:
        self.closed = True


class _Sampler:
    def __init__(self, runner: CheckingRunner) -> None:
        self._runner = runner
        self._matcher: Matcher | None = None

    def sample(self, row: int) -> int:
        if self._matcher is None:
            return self._runner.next_token(row)
        allowed = next(token for token in range(2000) if self._matcher.allows(token))
        self._matcher.accept(allowed)
        return allowed

    def logprobs(self, row: int, token: int, top: int) -> TokenLogprob:
        return TokenLogprob(LikelyToken(token, b"%d " % token, -0.5))

    def accept(self, token: int) -> None:
        pass

    def constrain(self, matcher: Matcher | None) -> None:
        self._matcher = matcher

    def close(self) -> None:
        self._runner.open_samplers -= 1


class _Only:
    """Allows one text, token by token, and then the end."""

    def __init__(self, tokens: list[int]) -> None:
        self._tokens = [*tokens, END]

    def allows(self, token: int) -> bool:
        return token == self._tokens[0]

    def allowed(self) -> bytes:
        raise NotImplementedError

    def accept(self, token: int) -> None:
        assert self._tokens.pop(0) == token


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

    @property
    def reasoning(self) -> str:
        return "".join(event.reasoning for event in self.events if isinstance(event, Chunk))

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


@pytest.mark.parametrize("copies", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_streams__many_in_a_small_cache_all_end_with_their_own_text(seed: int, copies: bool) -> None:
    """Preemption, eviction and shared prefixes happen here, and no stream may notice."""
    draw = random.Random(seed)
    runner = CheckingRunner(kv_cells=160, sequences=7, streams=5, batch_tokens=32, copies=copies)
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
    assert stats.kv_cells_used == runner.used()
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
    begun = len(runner.steps)
    ticket.cancel()
    end = client.end()
    # The step that was under way, and perhaps one whose end and this thread's count fell together.
    assert len(runner.steps) - begun <= 2
    assert isinstance(end, Finished)
    assert end.reason is FinishReason.CANCELLED
    assert scheduler.stats().kv_cells_used == 0
    assert scheduler.stats().requests_cancelled == 1
    scheduler.close()


def test_cancel__waiting_request_never_runs() -> None:
    runner = CheckingRunner(streams=1)
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
    runner = CheckingRunner(streams=1)
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
    runner = CheckingRunner(streams=1)
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


def text_of(tokens: Sequence[int]) -> str:
    return "".join(f"{token} " for token in tokens)


def test_prefix__of_a_running_stream_is_computed_once() -> None:
    runner = CheckingRunner()
    scheduler = Scheduler(runner, context_tokens=500)
    system = [50 + index for index in range(60)]
    runner.gate.clear()
    clients = [start(scheduler, [*system, 1000 + index], 8)[0] for index in range(4)]
    runner.gate.set()
    for index, client in enumerate(clients):
        end = client.end()
        assert isinstance(end, Finished)
        assert client.text == expected_text([*system, 1000 + index], 8)
        # The first one may have been alone in the first step: the others wait for what it computes.
        assert end.record.cached_tokens == (0 if index == 0 else 60)
    prefilled = sum(len(piece.tokens) for step in runner.steps for piece in step) - 4 * 7
    assert prefilled == 61 + 3
    stats = scheduler.stats()
    assert (stats.prefix_hits, stats.prefix_misses) == (3, 1)
    scheduler.close()


def test_prefix__of_a_history_serves_two_chats_that_branch() -> None:
    runner = CheckingRunner()
    scheduler = Scheduler(runner, context_tokens=500)
    history = [50 + index for index in range(40)]
    start(scheduler, [*history, 90, 91, 92, 93, 94, 95, 96, 97, 98], 2)[0].end()
    for branch in ([70, 71], [80, 81], [90, 91, 92, 93, 94, 95, 96, 97, 98, 99]):
        end = start(scheduler, [*history, *branch], 2)[0].end()
        assert isinstance(end, Finished)
        assert end.record.cached_tokens >= 40
    assert end.record.cached_tokens == 49, "the first history was given up for a branch"
    scheduler.close()


def test_admission__clients_get_turns_evenly() -> None:
    runner = CheckingRunner(streams=1)
    scheduler = Scheduler(runner, context_tokens=100)
    runner.gate.clear()
    order: list[str] = []

    def ask(client: str, number: int) -> Client:
        collected = Client()

        def sink(event: Event) -> None:
            if isinstance(event, Finished):
                order.append(client)
            collected.sink(event)

        scheduler.submit(Request((20 + number,), max_tokens=2, client=client), sink)
        return collected

    greedy = [ask("greedy", number) for number in range(6)]
    modest = [ask("modest", 40 + number) for number in range(2)]
    runner.gate.set()
    for client in greedy + modest:
        client.end()
    scheduler.close()
    # One at a time: nobody has a stream running when the next is chosen, and who came first goes first.
    assert order == ["greedy"] * 6 + ["modest"] * 2


def test_admission__client_with_a_stream_running_lets_others_go_first() -> None:
    runner = CheckingRunner(streams=2)
    scheduler = Scheduler(runner, context_tokens=500)
    runner.gate.clear()
    long = Client()
    scheduler.submit(Request((20,), max_tokens=60, client="greedy"), long.sink)
    order: list[str] = []
    clients = []
    for name, number in (("greedy", 1), ("greedy", 2), ("greedy", 3), ("modest", 4)):
        client = Client()
        clients.append(client)

        def sink(event: Event, *, name: str = name, client: Client = client) -> None:
            if isinstance(event, Finished):
                order.append(name)
            client.sink(event)

        scheduler.submit(Request((30 + number,), max_tokens=3, client=name), sink)
    runner.gate.set()
    for client in (*clients, long):
        client.end()
    scheduler.close()
    assert order.index("modest") <= 1


def test_deadline__running_and_waiting_streams_fail_with_it() -> None:
    runner = CheckingRunner(streams=1)
    runner.step_s = 0.005
    scheduler = Scheduler(runner, context_tokens=500)
    running, waiting = Client(), Client()
    scheduler.submit(Request((20,), deadline_s=0.05), running.sink)
    scheduler.submit(Request((21,), deadline_s=0.01), waiting.sink)
    for client in (running, waiting):
        end = client.end()
        assert isinstance(end, Failed)
        assert isinstance(end.error, DeadlineExceededError)
    assert scheduler.stats().kv_cells_used == 0
    scheduler.close()


def test_constraint__holds_from_the_first_token() -> None:
    scheduler = Scheduler(CheckingRunner(), context_tokens=100)
    client = Client()
    scheduler.submit(Request((20,), constraint=Constraint("regex", "11 12 13")), client.sink)
    end = client.end()
    assert isinstance(end, Finished)
    assert (client.text, end.reason) == (text_of([11, 12, 13]), FinishReason.STOP)
    scheduler.close()


def test_constraint__that_is_not_valid_is_refused_before_it_waits() -> None:
    scheduler = Scheduler(CheckingRunner(), context_tokens=100)
    with pytest.raises(ConstraintError):
        scheduler.check(Constraint("regex", "bad"))
    with pytest.raises(ConstraintError):
        scheduler.submit(Request((20,), constraint=Constraint("regex", "bad")), Client().sink)
    scheduler.close()


def rules_that_open(prompt: Sequence[int], *, opening_at: int, closing_at: int) -> ReasoningTags:
    """Tags that the stand-in model happens to write as its n-th tokens."""
    tokens = list(prompt)
    for _ in range(closing_at + 1):
        tokens.append(next_token(tokens))
    generated = tokens[len(prompt) :]
    opening = "never" if opening_at < 0 else f"{generated[opening_at]} "
    return ReasoningTags(opening, f"{generated[closing_at]} ")


def test_constraint__waits_for_the_end_of_the_reasoning() -> None:
    scheduler = Scheduler(CheckingRunner(), context_tokens=100)
    tags = rules_that_open([20], opening_at=-1, closing_at=4)
    client = Client()
    request = Request(
        (20,), reasoning=ReasoningRules(tags, opened=True), constraint=Constraint("regex", "11 12")
    )
    scheduler.submit(request, client.sink)
    end = client.end()
    assert isinstance(end, Finished)
    assert client.text == text_of([11, 12])
    assert client.reasoning == expected_text([20], 4).rstrip()
    assert end.record.reasoning_tokens == 5
    scheduler.close()


def test_reasoning__budget_closes_it() -> None:
    runner = CheckingRunner()
    scheduler = Scheduler(runner, context_tokens=200)
    tags = ReasoningTags("<think>", "".join(f"{10 + byte} " for byte in b"!"))
    client = Client()
    # What is put in the model's mouth is its closing tag as text; this model writes bytes as numbers.
    closing = f"\n{tags.closing}\n\n".encode()
    request = Request((20,), max_tokens=60, reasoning=ReasoningRules(tags, opened=True, budget_tokens=6))
    scheduler.submit(request, client.sink)
    end = client.end()
    assert isinstance(end, Finished)
    assert end.record.completion_tokens == 60
    forced = [10 + byte for byte in closing]
    generated = [token for step in runner.steps for piece in step for token in piece.tokens][1:]
    assert generated[6 : 6 + len(forced)] == forced
    scheduler.close()


def test_reasoning__closing_it_keeps_to_max_tokens() -> None:
    scheduler = Scheduler(CheckingRunner(), context_tokens=200)
    tags = ReasoningTags("<think>", "</think>")
    closing = len("\n</think>\n\n")
    for limit in (1, closing, closing + 1):
        client = Client()
        rules = ReasoningRules(tags, opened=True, budget_tokens=0)
        scheduler.submit(Request((20,), max_tokens=limit, reasoning=rules), client.sink)
        end = client.end()
        assert isinstance(end, Finished)
        assert (end.record.completion_tokens, end.reason) == (limit, FinishReason.LENGTH)
    scheduler.close()


def test_constraint__turn_that_would_end_in_the_reasoning_gets_its_answer() -> None:
    runner = CheckingRunner()
    scheduler = Scheduler(runner, context_tokens=200)
    runner.ends_at = 3
    # The closing tag as this model's tokens are written: bytes plus ten, as numbers.
    tags = ReasoningTags("<think>", "never ")
    client = Client()
    request = Request(
        (20,),
        max_tokens=40,
        reasoning=ReasoningRules(tags, opened=True),
        constraint=Constraint("regex", "11 12"),
    )
    scheduler.submit(request, client.sink)
    end = client.end()
    assert isinstance(end, Finished)
    closing = [10 + byte for byte in b"\nnever \n\n"]
    computed = [token for step in runner.steps for piece in step for token in piece.tokens]
    assert computed[4 : 4 + len(closing)] == closing
    scheduler.close()


def test_submit__clients_that_left_do_not_count_as_queued() -> None:
    runner = CheckingRunner(streams=1)
    scheduler = Scheduler(runner, context_tokens=500, queue_limit=4)
    runner.gate.clear()
    running, ticket = start(scheduler, [20], max_tokens=None)
    deadline = time.monotonic() + 10
    while scheduler.step_age_s() is None:
        assert time.monotonic() < deadline
        time.sleep(0.001)
    for _ in range(20):
        ticket.cancel()
    assert scheduler.stats().requests_queued == 0
    late, _ = start(scheduler, [21], max_tokens=2)
    runner.gate.set()
    assert isinstance(late.end(), Finished)
    running.end()
    scheduler.close()


def test_draw__that_fails_ends_its_own_stream_alone() -> None:
    runner = CheckingRunner()
    scheduler = Scheduler(runner, context_tokens=500)
    runner.step_s = 0.002
    other, _ = start(scheduler, [20], max_tokens=60)
    client = Client()
    # Allows nothing: the stand-in's sampler runs out of tokens to try.
    scheduler.submit(Request((30,), constraint=Constraint("regex", "99999")), client.sink)
    assert isinstance(client.end(), Failed)
    assert isinstance(other.end(), Finished)
    assert other.text == expected_text([20], 60)
    assert scheduler.failure is None
    scheduler.close()


def test_logprobs__come_with_every_token() -> None:
    scheduler = Scheduler(CheckingRunner(), context_tokens=100)
    client = Client()
    scheduler.submit(Request((20,), max_tokens=7, top_logprobs=0), client.sink)
    client.end()
    told = [
        entry.drawn.piece for event in client.events if isinstance(event, Chunk) for entry in event.logprobs
    ]
    assert b"".join(told).decode() == expected_text([20], 7)
    scheduler.close()


@pytest.mark.parametrize("length", [1, 2, 100])
def test_embed__gives_what_the_model_makes_of_the_whole_text(length: int) -> None:
    scheduler = Scheduler(CheckingRunner(), context_tokens=200)
    running, _ = start(scheduler, [20], 50)
    prompt = tuple(range(30, 30 + length))
    clients = [Client() for _ in range(3)]
    for client in clients:
        scheduler.submit(Request(prompt, embed=True), client.sink)
    for client in clients:
        end = client.end()
        assert isinstance(end, Finished)
        assert end.embedding == tuple(float(token) for token in prompt)
        assert end.record.completion_tokens == 0
    running.end()
    assert running.text == expected_text([20], 50)
    scheduler.close()


def test_chunks__tokens_that_come_fast_go_together_and_none_is_late() -> None:
    runner = CheckingRunner()
    runner.step_s = 0.002
    scheduler = Scheduler(runner, context_tokens=500)
    client, _ = start(scheduler, [20], 200)
    client.end()
    chunks = [event for event in client.events if isinstance(event, Chunk)]
    assert len(chunks) < 100
    assert chunks[0].content == expected_text([20], 1)
    assert client.text == expected_text([20], 200)
    scheduler.close()


def test_chunks__slow_tokens_come_one_by_one() -> None:
    runner = CheckingRunner()
    runner.step_s = 0.025
    scheduler = Scheduler(runner, context_tokens=500)
    client, _ = start(scheduler, [20], 12)
    client.end()
    assert len([event for event in client.events if isinstance(event, Chunk)]) == 12
    scheduler.close()


def test_step_age__tells_how_long_the_runtime_has_been_at_it() -> None:
    runner = CheckingRunner()
    scheduler = Scheduler(runner, context_tokens=100)
    assert scheduler.step_age_s() is None
    runner.gate.clear()
    client, _ = start(scheduler, [20], 2)
    deadline = time.monotonic() + 10
    while (age := scheduler.step_age_s()) is None or age < 0.05:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    runner.gate.set()
    client.end()
    scheduler.close()
    assert scheduler.step_age_s() is None


def test_stats__gaps_between_tokens_are_counted() -> None:
    scheduler = Scheduler(CheckingRunner(), context_tokens=100)
    start(scheduler, [20], 9)[0].end()
    gaps = scheduler.stats().gaps
    assert sum(gaps.counts) == 8
    assert len(gaps.counts) == len(gaps.bounds_s) + 1
    scheduler.close()


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


def test_real_model__same_seed_same_text_whatever_else_runs(engine: Scheduler) -> None:
    """Alone, beside others, from a cache or not: attention has the same bits in any batch."""
    words = [
        "river",
        "stone",
        "house",
        "light",
        "green",
        "seven",
        "eight",
        "nine",
        "tree",
        "cloud",
        "engine",
        "paper",
    ]
    asked = []
    for seed in range(6):
        draw = random.Random(seed)
        text = " ".join(draw.choice(words) for _ in range(draw.choice([4, 30, 90, 150])))
        asked.append((seed, f"{text}. Once upon a time, there was a"))
    alone = {seed: generate(engine, text, 32, temperature=0.9, seed=seed) for seed, text in asked}
    beside: dict[int, str] = {}

    def ask(seed: int, text: str) -> None:
        beside[seed] = generate(engine, text, 32, temperature=0.9, seed=seed)

    def leave(text: str) -> None:
        client = Client()
        ticket = engine.submit(Request(tuple(engine.tokenize(text)), max_tokens=40), client.sink)
        client.first.wait(30)
        ticket.cancel()

    threads = [threading.Thread(target=ask, args=pair) for pair in asked]
    threads += [threading.Thread(target=leave, args=(f"{text} not",)) for _, text in asked]
    random.Random(5).shuffle(threads)
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert beside == alone


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
