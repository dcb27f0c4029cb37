"""The scheduler, unchanged, over the ONNX runner: what clients get."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from edgekit.engine.base import (
    Chunk,
    Constraint,
    Event,
    Failed,
    Finished,
    FinishReason,
    ReasoningRules,
    Request,
    Sampling,
    TokenLogprob,
)
from edgekit.engine.scheduler import Scheduler
from edgekit.errors import ContextOverflowError
from export.runtimes.onnx_session import OnnxDecoder

ServeGraph = Callable[..., AbstractContextManager[Scheduler]]
QUESTIONS = (
    "What is the capital of France?",
    "Write a haiku about rivers.",
    "Count from one to twelve.",
    "Why is the sky blue?",
    "Translate 'good morning' into German.",
    "Name three fruits.",
    "Tell me a story about a fox and a hen who lived by a lake.",
    "What is 12 times 12?",
)
SAMPLINGS = (
    Sampling(temperature=0.0),
    Sampling(temperature=0.8, top_k=40, top_p=0.95, seed=1),
    Sampling(temperature=1.0, seed=2),
    Sampling(temperature=0.7, top_p=0.9, seed=3),
    Sampling(temperature=0.9, min_p=0.05, seed=4),
    Sampling(temperature=0.0, repeat_penalty=1.3),
    Sampling(temperature=0.6, top_k=20, presence_penalty=0.5, frequency_penalty=0.2, seed=5),
    Sampling(temperature=1.2, top_k=60, logit_bias={2: -100.0}, seed=6),
)


class Listener:
    """One stream's events."""

    def __init__(self) -> None:
        self.text = ""
        self.last: Finished | Failed | None = None
        self.begun = threading.Event()
        self._ended = threading.Event()

    def __call__(self, event: Event) -> None:
        self.begun.set()
        if isinstance(event, Chunk):
            self.text += event.content
        else:
            self.last = event
            self._ended.set()

    def finished(self) -> Finished:
        assert self._ended.wait(120)
        assert isinstance(self.last, Finished), self.last
        return self.last


def ask(
    engine: Scheduler, question: str, sampling: Sampling, max_tokens: int = 24, **more: object
) -> Request:
    prompt = engine.tokenize(f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n")
    return Request(tuple(prompt), max_tokens=max_tokens, sampling=sampling, **more)  # type: ignore[arg-type]


def run_together(engine: Scheduler, requests: Sequence[Request]) -> list[Listener]:
    listeners = [Listener() for _ in requests]
    for request, listener in zip(requests, listeners, strict=True):
        engine.submit(request, listener)
    for listener in listeners:
        listener.finished()
    return listeners


def test_greedy_text__is_that_of_the_exporters_decoder(student_engine: Scheduler, student_onnx: Path) -> None:
    request = ask(student_engine, QUESTIONS[0], Sampling(temperature=0.0))
    (listener,) = run_together(student_engine, [request])
    decoder = OnnxDecoder(student_onnx, all_positions=False, context_tokens=256, threads=2)
    tokens, answer = decoder.append(request.prompt)[-1], b""
    for _ in range(24):
        token = int(tokens.argmax())
        if token == 2:
            break
        answer += student_engine.pieces([token])[0]
        tokens = decoder.append([token])[-1]
    assert listener.text == answer.decode()
    assert "Paris" in listener.text


def test_eight_streams_together__each_says_what_it_says_alone(student_engine: Scheduler) -> None:
    requests = [
        ask(student_engine, question, sampling)
        for question, sampling in zip(QUESTIONS, SAMPLINGS, strict=True)
    ]
    alone = [run_together(student_engine, [request])[0].text for request in requests]
    together = [listener.text for listener in run_together(student_engine, requests)]
    assert together == alone
    assert len(set(together)) == 8


def test_streams_that_come_while_others_run__change_nothing_for_them(student_engine: Scheduler) -> None:
    request = ask(student_engine, QUESTIONS[6], SAMPLINGS[1], max_tokens=40)
    (alone,) = run_together(student_engine, [request])
    busy, others = Listener(), [Listener() for _ in range(6)]
    student_engine.submit(request, busy)
    for index, other in enumerate(others):
        assert busy.begun.wait(60)
        student_engine.submit(ask(student_engine, QUESTIONS[index], SAMPLINGS[index], 5 + 3 * index), other)
        time.sleep(0.03)
    for listener in (busy, *others):
        listener.finished()
    assert busy.text == alone.text


def test_several_of_one_prompt__share_its_prefill(student_engine: Scheduler) -> None:
    question = "Say something about " + "the sea, " * 30
    requests = [ask(student_engine, question, Sampling(temperature=1.0, seed=seed)) for seed in range(3)]
    before = student_engine.stats()
    texts = [listener.text for listener in run_together(student_engine, requests)]
    after = student_engine.stats()
    prefilled = after.prefill_tokens - before.prefill_tokens
    assert prefilled < 1.5 * len(requests[0].prompt)
    assert after.prefix_hits - before.prefix_hits >= 2
    assert texts == [run_together(student_engine, [request])[0].text for request in requests]


def test_chat_history__is_not_computed_again(tiny_onnx: Path, serve_graph: ServeGraph) -> None:
    prompt = tuple(range(1, 120))
    with serve_graph(tiny_onnx) as engine:
        first, second = (
            run_together(engine, [Request(prompt, max_tokens=20, sampling=Sampling(seed=3))])[0]
            for _ in range(2)
        )
        assert first.finished().record.cached_tokens == 0
        assert second.finished().record.cached_tokens >= 110
        assert second.text == first.text


def test_cancel__frees_the_stream_and_leaves_others_alone(tiny_onnx: Path, serve_graph: ServeGraph) -> None:
    endless = Sampling(seed=1, logit_bias={260: -1000.0, 261: -1000.0})
    with serve_graph(tiny_onnx) as engine:
        kept = Request((5, 6, 7), max_tokens=60, sampling=endless)
        (alone,) = run_together(engine, [kept])
        cancelled, listener = Listener(), Listener()
        ticket = engine.submit(Request((1, 2, 3), sampling=endless), cancelled)
        engine.submit(kept, listener)
        assert cancelled.begun.wait(60)
        ticket.cancel()
        assert cancelled.finished().reason is FinishReason.CANCELLED
        listener.finished()
        assert listener.text == alone.text
        assert engine.stats().requests_active == 0


def test_small_cache__streams_step_back_and_all_finish(tiny_onnx: Path, serve_graph: ServeGraph) -> None:
    sampling = Sampling(temperature=0.0, logit_bias={260: -1000.0})
    requests = [Request(tuple(range(seed, seed + 30)), max_tokens=90, sampling=sampling) for seed in range(6)]
    with serve_graph(tiny_onnx, slots=6, kv_cells=300) as engine:
        listeners = run_together(engine, requests)
        assert all(listener.finished().record.completion_tokens == 90 for listener in listeners)
        assert engine.stats().preemptions > 0


def test_reasoning_budget_and_form__hold(student_engine: Scheduler) -> None:
    request = ask(
        student_engine,
        "Give me a person.",
        Sampling(temperature=0.0),
        max_tokens=120,
        reasoning=ReasoningRules(opened=True, budget_tokens=10),
        constraint=Constraint("regex", r'\{"age": [0-9]{1,2}\}'),
    )
    (listener,) = run_together(student_engine, [request])
    assert listener.text.strip().startswith('{"age": ')
    assert listener.finished().reason is FinishReason.STOP
    assert listener.finished().record.reasoning_tokens >= 10


def test_logprobs__are_told_for_each_token(student_engine: Scheduler) -> None:
    request = ask(student_engine, QUESTIONS[0], Sampling(temperature=0.0), 8, top_logprobs=3)
    events: queue.SimpleQueue[Event] = queue.SimpleQueue()
    student_engine.submit(request, events.put)
    told: list[TokenLogprob] = []
    while not isinstance(event := events.get(timeout=60), (Finished, Failed)):
        told += event.logprobs
    assert len(told) == 8
    assert all(entry.drawn == entry.top[0] and len(entry.top) == 3 for entry in told)
    assert all(entry.drawn.logprob <= 0 for entry in told)


def test_embedding__fails_and_the_engine_goes_on(tiny_onnx: Path, serve_graph: ServeGraph) -> None:
    with serve_graph(tiny_onnx) as engine:
        events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        engine.submit(Request((1, 2, 3), embed=True), events.put)
        failed = events.get(timeout=60)
        assert isinstance(failed, Failed)
        assert "cannot embed" in failed.error.message
        run_together(engine, [Request((1, 2, 3), max_tokens=2)])


def test_prompt_longer_than_the_graphs_positions__is_refused_with_both_numbers(
    tiny_onnx: Path, serve_graph: ServeGraph
) -> None:
    with serve_graph(tiny_onnx, context_tokens=4096, kv_cells=8192) as engine:
        with pytest.raises(ContextOverflowError) as caught:
            engine.submit(Request(tuple([1] * 300)), Listener())
        assert (caught.value.prompt_tokens, caught.value.context_tokens) == (300, 256)
