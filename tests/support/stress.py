"""Proves of a server that answers are neither lost nor mixed up, whatever is cancelled beside them.

First every question is asked alone, greedily, with the two likeliest tokens of each place. Its answer is kept
up to where the two come near each other: there, the order in which a batch is added up may decide, and that
is no mix-up. Then the same questions are asked many at once, at random: streamed or not, one answer or
several, some cancelled at random moments. What comes must be what came alone; of a cancelled stream, its
beginning.
"""

from __future__ import annotations

import json
import random
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx

__all__ = ["Question", "Stress", "figures_of", "learn", "stress", "wait_until_idle"]

CLEAR_NATS = 0.5
"""How far the likeliest token must be ahead of the next. Batches shift logits by hundredths."""
LEAST_TOKENS = 5
CHAT = "/v1/chat/completions"
WORDS = (
    "river violin copper meadow lantern glacier tunnel pepper saddle harbor magnet orchid compass walrus "
    "candle bridge falcon marble anchor ribbon turtle basket rocket pillow mirror hammer garden window"
)


@dataclass(frozen=True)
class Question:
    prompt: str
    max_tokens: int
    answer: str
    """What the server says to it when it has nothing else to do."""


@dataclass
class Stress:
    """What became of the requests."""

    finished: int = 0
    answers: int = 0
    """Of the finished ones; a request may ask for several."""
    cancelled: int = 0
    refused: int = 0
    """Answered 429, and asked again."""
    lost: list[str] = field(default_factory=list)
    mixed: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def clean(self) -> bool:
        return not self.lost and not self.mixed

    def summary(self) -> str:
        return (
            f"{self.finished} finished with {self.answers} answers, {self.cancelled} cancelled, "
            f"{self.refused} refused and asked again; {len(self.lost)} lost, {len(self.mixed)} mixed up; "
            f"{self.seconds:.0f} s"
        )


def learn(
    url: str, count: int, *, longest_tokens: int = 32, seed: int = 0, headers: dict[str, str] | None = None
) -> list[Question]:
    """Questions with clear answers, no two answers alike in their beginnings."""
    draw = random.Random(seed)
    words = WORDS.split()
    questions: dict[str, Question] = {}
    with httpx.Client(base_url=url, timeout=300, headers=headers) as client:
        for _ in range(count * 12):
            if len(questions) == count:
                return list(questions.values())
            chosen = " ".join(draw.sample(words, 4))
            prompt = draw.choice(
                [
                    f"Repeat these words: {chosen}",
                    f"Spell these words: {chosen}",
                    f"Tell a story about {chosen}",
                ]
            )
            body = _body(prompt, longest_tokens)
            told = _post(client, {**body, "logprobs": True, "top_logprobs": 2})
            places = told["choices"][0]["logprobs"]["content"]
            clear = next((at for at, place in enumerate(places) if not _is_clear(place)), len(places))
            answer = b"".join(bytes(place["bytes"]) for place in places[:clear])
            if clear < LEAST_TOKENS or not answer.isascii():
                continue
            # The first tokens must tell whose answer it is.
            questions.setdefault(answer[:24].decode(), Question(prompt, clear, answer.decode()))
    raise AssertionError(f"only {len(questions)} of {count} questions have clear answers")


def stress(
    url: str,
    questions: Sequence[Question],
    *,
    requests: int,
    concurrency: int,
    seed: int = 0,
    headers: dict[str, str] | None = None,
    most_choices: int = 3,
) -> Stress:
    """Ask at random, and hold every answer against the one that was given alone."""
    result = Stress()
    lock = threading.Lock()
    numbers = iter(range(requests))
    begun = time.perf_counter()

    def work() -> None:
        with httpx.Client(base_url=url, timeout=300, headers=headers) as client:
            while True:
                with lock:
                    number = next(numbers, None)
                if number is None:
                    return
                _one(client, questions, random.Random(f"{seed} {number}"), result, lock, most_choices)

    workers = [threading.Thread(target=work) for _ in range(concurrency)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    result.seconds = time.perf_counter() - begun
    return result


def figures_of(url: str, headers: dict[str, str] | None = None) -> Counter[str]:
    """The server's metrics by name; labels stay in the name."""
    text = httpx.get(f"{url}/metrics", headers=headers, timeout=60).text
    lines = [line.rsplit(" ", 1) for line in text.splitlines() if line and not line.startswith("#")]
    return Counter({name: float(value) for name, value in lines})


def wait_until_idle(url: str, *, timeout_s: float = 30, headers: dict[str, str] | None = None) -> None:
    """Wait until the server works on nothing and nothing waits; a leaked request never ends."""
    deadline = time.monotonic() + timeout_s
    gauges = ("llamacpp:requests_processing", "llamacpp:requests_deferred")
    while any((figures := figures_of(url, headers))[name] for name in gauges):
        assert time.monotonic() < deadline, {name: figures[name] for name in gauges}
        time.sleep(0.05)


def _one(
    client: httpx.Client,
    questions: Sequence[Question],
    draw: random.Random,
    result: Stress,
    lock: threading.Lock,
    most_choices: int,
) -> None:
    question = draw.choice(questions)
    choices = draw.choice([1, 1, 1, *range(2, most_choices + 1)])
    streamed = draw.random() < 0.7
    cancels = draw.random() < 0.3
    body = {**_body(question.prompt, question.max_tokens), "n": choices, "stream": streamed}
    while True:
        try:
            if streamed:
                texts, ended = _stream(client, body, draw.randrange(0, 12) if cancels else None)
            else:
                texts, ended = _wait(client, body, draw.uniform(0.0, 0.3) if cancels else None)
        except httpx.HTTPStatusError as error:
            if error.response.status_code != 429:
                with lock:
                    result.lost.append(f"{question.prompt!r}: {error.response.status_code}")
                return
            with lock:
                result.refused += 1
            time.sleep(draw.uniform(0.05, 0.5))
            continue
        except (httpx.HTTPError, ValueError, KeyError) as error:
            with lock:
                result.lost.append(f"{question.prompt!r}: {type(error).__name__}: {error}")
            return
        break
    with lock:
        _judge(question, choices, texts, ended, result)


def _judge(question: Question, choices: int, texts: dict[int, str], ended: bool, result: Stress) -> None:
    if not ended:
        result.cancelled += 1
        wrong = [text for text in texts.values() if not question.answer.startswith(text)]
    else:
        result.finished += 1
        result.answers += choices
        wrong = [text for text in texts.values() if text != question.answer]
        if set(texts) != set(range(choices)):
            result.lost.append(f"{question.prompt!r}: choices {sorted(texts)} of {choices}")
    result.mixed += [f"{question.prompt!r}: {text!r}, alone {question.answer!r}" for text in wrong]


def _stream(
    client: httpx.Client, body: dict[str, Any], leave_after: int | None
) -> tuple[dict[int, str], bool]:
    """What came for each choice, and whether that is all. Leaves after so many events."""
    texts: dict[int, str] = {}
    events = 0
    with client.stream("POST", CHAT, json=body) as response:
        if response.status_code != 200:
            response.read()
            response.raise_for_status()
        if leave_after == 0:
            return texts, False
        for line in response.iter_lines():
            if line == "data: [DONE]":
                return texts, True
            if not line.startswith("data: "):
                continue
            event = json.loads(line.removeprefix("data: "))
            for choice in event["choices"]:
                delta = choice["delta"].get("content") or ""
                texts[choice["index"]] = texts.get(choice["index"], "") + delta
            events += 1
            if events == leave_after:
                return texts, False
    raise httpx.RemoteProtocolError("the stream ended without [DONE]")


def _wait(
    client: httpx.Client, body: dict[str, Any], patience_s: float | None
) -> tuple[dict[int, str], bool]:
    """The answers, and whether they came before patience ended."""
    timeout = httpx.Timeout(300, read=patience_s) if patience_s is not None else httpx.Timeout(300)
    try:
        told = _post(client, body, timeout=timeout)
    except httpx.ReadTimeout:
        if patience_s is None:
            raise
        return {}, False
    return {choice["index"]: choice["message"]["content"] for choice in told["choices"]}, True


def _post(client: httpx.Client, body: dict[str, Any], **more: Any) -> Any:
    response = client.post(CHAT, json=body, **more)
    response.raise_for_status()
    return response.json()


def _body(prompt: str, max_tokens: int) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": prompt}], "max_tokens": max_tokens, "temperature": 0}


def _is_clear(place: dict[str, Any]) -> bool:
    """Whether the likeliest token is far ahead of the next."""
    ranked = sorted((one["logprob"] for one in place["top_logprobs"]), reverse=True)
    return len(ranked) < 2 or ranked[0] - ranked[1] >= CLEAR_NATS
