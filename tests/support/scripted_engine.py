"""An engine that says what a test tells it to, for the shapes of answers. Real ones are tested for real."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from edgekit.engine.base import (
    Chunk,
    Constraint,
    EngineStats,
    Event,
    Finished,
    FinishReason,
    Request,
    RequestRecord,
    Sampling,
    Sink,
)
from edgekit.engine.chat_template import ChatTemplate
from edgekit.errors import ConstraintError, ContextOverflowError, EdgekitError
from edgekit.facts import ModelFacts
from edgekit.server.model import LoadedModel

__all__ = ["ScriptedEngine", "finished", "scripted_model"]

VOCABULARY = 0x110000
"""A token is a character."""
PLAIN_TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"


def finished(
    reason: FinishReason = FinishReason.STOP,
    *,
    tokens: int = 1,
    prompt: int = 10,
    cached: int = 0,
    **more: int,
) -> Finished:
    """The end of a stream."""
    return Finished(reason, RequestRecord(prompt, cached, tokens, 0.1, 0.2, 0.3, **more))


def _echo(request: Request) -> Sequence[Event]:
    return [Chunk("ok"), finished()]


@dataclass
class _Ticket:
    engine: ScriptedEngine
    number: int

    def cancel(self) -> None:
        self.engine.cancelled.add(self.number)
        threading.Thread(target=self.engine.end, args=(self.number,)).start()


@dataclass
class ScriptedEngine:
    """Implements `edgekit.engine.base.Engine`.

    `script` gives a request's events. They come from another thread, those of all requests in turn, once
    `together` requests are there.
    """

    script: Callable[[Request], Sequence[Event]] = _echo
    together: int = 1
    refuses: str = "no-such-form"
    """Constraints with this in their text are not valid."""
    context_tokens: int = 1000
    failure: EdgekitError | None = None
    requests: list[Request] = field(default_factory=list)
    checked: list[Constraint] = field(default_factory=list)
    cancelled: set[int] = field(default_factory=set)
    _sinks: list[Sink] = field(default_factory=list)
    _ended: set[int] = field(default_factory=set)
    _played: int = 0
    _lock: threading.RLock = field(default_factory=threading.RLock)

    def submit(self, request: Request, sink: Sink) -> _Ticket:
        if len(request.prompt) >= self.context_tokens:
            raise ContextOverflowError(len(request.prompt), self.context_tokens)
        self.requests.append(request)
        self._sinks.append(sink)
        if len(self.requests) - self._played >= self.together:
            numbers = range(self._played, len(self.requests))
            self._played = len(self.requests)
            threading.Thread(target=self._play, args=(numbers,)).start()
        return _Ticket(self, len(self.requests) - 1)

    def _play(self, numbers: Sequence[int]) -> None:
        scripts = {number: list(self.script(self.requests[number])) for number in numbers}
        while any(scripts.values()):
            for number, events in scripts.items():
                if events:
                    self._say(number, events.pop(0))

    def _say(self, number: int, event: Event) -> None:
        with self._lock:
            if number not in self._ended:
                if not isinstance(event, Chunk):
                    self._ended.add(number)
                self._sinks[number](event)

    def end(self, number: int) -> None:
        """What a cancelled request comes to, if it has not ended before."""
        self._say(number, finished(FinishReason.CANCELLED))

    def check(self, constraint: Constraint) -> None:
        if self.refuses in constraint.text:
            raise ConstraintError("cannot be met")
        self.checked.append(constraint)

    def tokenize(self, text: str, *, add_special: bool = False, parse_special: bool = True) -> list[int]:
        return [ord(character) for character in text]

    def pieces(self, tokens: Sequence[int]) -> list[bytes]:
        return [chr(token).encode() for token in tokens]

    def stats(self) -> EngineStats:
        return EngineStats()

    def step_age_s(self) -> float | None:
        return None

    def observe(self, observer: Callable[[RequestRecord], None]) -> None:
        """Nobody is told."""

    def close(self) -> None:
        """There is nothing to free."""


def scripted_model(
    engine: ScriptedEngine,
    *,
    name: str = "scripted",
    template: str = PLAIN_TEMPLATE,
    tokenizer: str = "smollm",
) -> LoadedModel:
    """A model on a scripted engine."""
    facts = ModelFacts(
        name=name,
        architecture="llama",
        parameters=1,
        weight_bytes=1,
        bytes_per_token=1,
        quantization="F16",
        layers=1,
        embedding_length=3,
        feed_forward_length=1,
        attention_heads=1,
        attention_kv_heads=1,
        head_length=1,
        vocabulary=VOCABULARY,
        context_train_tokens=1000,
        tied_embeddings=True,
        tokenizer=tokenizer,
    )
    return LoadedModel(name, engine, facts, ChatTemplate(template), "", Sampling(temperature=0.6))
