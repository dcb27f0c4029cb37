"""`tests/stress_streams.py` in small: real streams with random cancels, none lost, none mixed up."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest
from live_server import running_server, wait_until_ready
from scripted_engine import ScriptedEngine, finished, scripted_model
from stress import Question, figures_of, learn, stress, wait_until_idle

from edgekit.engine.base import Chunk, Event, Request
from edgekit.engine.chat_template import ChatTemplate
from edgekit.engine.llama import LlamaRunner
from edgekit.engine.scheduler import Scheduler
from edgekit.gguf_header import model_facts, read_gguf_header
from edgekit.profiles import ServeSettings
from edgekit.server.model import LoadedModel


@pytest.mark.slow
def test_stress__a_hundred_requests_with_random_cancels(student: Path) -> None:
    def load() -> LoadedModel:
        # One thread: two that wait for each other get nowhere while other tests run.
        runner = LlamaRunner(student, ServeSettings(threads=1, context_tokens=512, slots=4))
        text = runner.text
        assert text.chat_template is not None
        return LoadedModel(
            name="student",
            engine=Scheduler(runner, context_tokens=512, queue_limit=8),
            facts=model_facts(read_gguf_header(student)),
            template=ChatTemplate(text.chat_template, bos_token=text.bos, eos_token=text.eos),
            bos_text=text.bos,
            sampling=text.sampling,
        )

    with running_server(load) as url:
        wait_until_ready(url)
        questions = learn(url, 6, longest_tokens=12)
        before = figures_of(url)
        result = stress(url, questions, requests=100, concurrency=8)
        assert result.clean, [*result.lost, *result.mixed][:5]
        assert result.finished + result.cancelled == 100
        assert result.finished > 40
        assert result.cancelled > 10
        wait_until_idle(url)
        after = figures_of(url)
        name = 'edgekit_requests_total{{outcome="{}"}}'
        assert after[name.format("finished")] - before[name.format("finished")] >= result.answers
        assert after[name.format("failed")] == before[name.format("failed")]
        # No cell is lost: a prompt that takes nearly all of them still finds its place.
        context = int(after["edgekit_context_tokens"])
        prompt = [7] * (context - 2)
        answer = httpx.post(f"{url}/v1/completions", json={"prompt": prompt, "max_tokens": 1}, timeout=120)
        assert answer.status_code == 200, answer.text


def test_stress__answers_of_others_and_answers_cut_short_are_found() -> None:
    """The check itself: a server that gives every seventh request another's answer, and cuts every ninth."""
    questions = [Question(f"question {number}", 8, f"answer {number} of {number}") for number in range(10)]
    seen = 0

    def script(request: Request) -> list[Event]:
        nonlocal seen
        seen += 1
        prompt = "".join(map(chr, request.prompt))
        number = int(prompt.split("question ")[1].split()[0])
        if seen % 7 == 0:
            number = (number + 1) % 10
        text = questions[number].answer
        if seen % 9 == 0:
            text = text[:-2]
        return [Chunk(text[:5]), Chunk(text[5:]), finished()]

    with running_server(lambda: scripted_model(ScriptedEngine(script))) as url:
        wait_until_ready(url)
        result = stress(url, questions, requests=60, concurrency=1, most_choices=1)
    assert not result.lost
    # Of a stream that was left before its answer differs, nothing can be said.
    assert 5 <= len(result.mixed) <= 60 // 7 + 60 // 9
