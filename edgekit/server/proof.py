"""Proof that the engine works: one token, decoded on the way that all requests take."""

from __future__ import annotations

import threading

from edgekit.engine.base import Engine, Event, Failed, Request, Sampling, Ticket
from edgekit.errors import EngineError

__all__ = ["decode_one_token"]

_CLIENT = "edgekit"
_MAX_TOKENS = 8
"""The first may be half a character, of which nobody is told."""


def decode_one_token(engine: Engine, *, timeout_s: float) -> None:
    """Have the engine answer something; the stream is cancelled after its first token.

    A stream that is cancelled leaves nothing in the prefix cache: it would push out what users come back to.

    Raises:
        EngineBusyError: the queue is full.
        EngineError: the engine failed, or has not answered in time.
    """
    answered = threading.Event()
    failures: list[EngineError] = []
    tickets: list[Ticket] = []

    def sink(event: Event) -> None:
        if isinstance(event, Failed):
            error = event.error
            failures.append(error if isinstance(error, EngineError) else EngineError(error.message))
        # At once, on the engine's thread: a moment later the next token would be under way.
        for ticket in tickets:
            ticket.cancel()
        answered.set()

    prompt = tuple(engine.tokenize("Hello", add_special=True)[:2])
    request = Request(prompt, max_tokens=_MAX_TOKENS, sampling=Sampling(temperature=0.0), client=_CLIENT)
    tickets.append(engine.submit(request, sink))
    in_time = answered.wait(timeout_s)
    tickets[0].cancel()
    if failures:
        raise failures[0]
    if not in_time:
        raise EngineError(f"the engine did not answer a test request within {timeout_s:g} s")
