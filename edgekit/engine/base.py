"""What an engine is: the requests it takes, the events it gives back, and the figures it keeps.

Everything above this file (server, telemetry) knows these types only, so that another runtime can stand
behind the same interface.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from types import MappingProxyType
from typing import Protocol

from edgekit.errors import EdgekitError

__all__ = [
    "Chunk",
    "Engine",
    "EngineStats",
    "Event",
    "Failed",
    "FinishReason",
    "Finished",
    "Request",
    "RequestRecord",
    "Sampling",
    "Sink",
    "Ticket",
]


class FinishReason(str, Enum):
    """Why a stream ended."""

    STOP = "stop"
    """The model ended its turn, or a stop string appeared."""
    LENGTH = "length"
    """max_tokens or the context was reached."""
    CANCELLED = "cancelled"
    """The client went away."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is drawn. The defaults sample from the model's own distribution."""

    temperature: float = 1.0
    """0 takes the most likely token."""
    top_p: float = 1.0
    top_k: int = 0
    """0 keeps all."""
    min_p: float = 0.0
    seed: int | None = None
    """None draws a fresh seed."""
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repeat_penalty: float = 1.0
    logit_bias: Mapping[int, float] = field(default_factory=lambda: MappingProxyType({}))
    """Token id to the value added to its logit."""


@dataclass(frozen=True, slots=True)
class Request:
    """One stream to generate.

    `prompt` holds token ids. `max_tokens` None generates up to the end of the context. `stop` strings end
    the stream and are not part of its text.
    """

    prompt: tuple[int, ...]
    max_tokens: int | None = None
    sampling: Sampling = Sampling()
    stop: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class RequestRecord:
    """What one request cost. Times in seconds, measured with a monotonic clock."""

    prompt_tokens: int
    cached_tokens: int
    """Prompt tokens that were in the KV cache already."""
    completion_tokens: int
    queue_s: float
    """From submission to the first step that worked on it."""
    prefill_s: float
    """From that step to the first token."""
    decode_s: float
    """From the first token to the last."""

    @property
    def ttft_s(self) -> float:
        """Time to first token, from submission."""
        return self.queue_s + self.prefill_s


@dataclass(frozen=True, slots=True)
class Chunk:
    """Text that one step added to a stream. Always whole characters; never empty."""

    text: str


@dataclass(frozen=True, slots=True)
class Finished:
    """The last event of a stream that ended well or was cancelled."""

    reason: FinishReason
    record: RequestRecord


@dataclass(frozen=True, slots=True)
class Failed:
    """The last event of a stream that the engine could not go on with."""

    error: EdgekitError


Event = Chunk | Finished | Failed
Sink = Callable[[Event], None]
"""Takes a stream's events. Called on the engine's thread: it must not block."""


class Ticket(Protocol):
    """A submitted request."""

    def cancel(self) -> None:
        """Stop the stream and free what it holds, within one step. Harmless when it has ended."""


@dataclass(frozen=True, slots=True)
class EngineStats:
    """Counters since the engine started, and gauges as they stand. Times in seconds.

    A step that decodes some streams and prefills others has its time split between the two in proportion
    to their tokens.
    """

    uptime_s: float = 0.0
    # Counters.
    prefill_tokens: int = 0
    prefill_s: float = 0.0
    cached_tokens: int = 0
    decode_tokens: int = 0
    decode_s: float = 0.0
    steps: int = 0
    preemptions: int = 0
    """Streams that had to step back for want of KV cells."""
    requests_finished: int = 0
    requests_cancelled: int = 0
    requests_failed: int = 0
    # Gauges.
    requests_active: int = 0
    requests_queued: int = 0
    kv_cells_used: int = 0
    kv_cells_total: int = 0


class Engine(Protocol):
    """Runs a model for many streams at once."""

    @property
    def context_tokens(self) -> int:
        """What one request may use, prompt and answer together, in tokens."""

    @property
    def failure(self) -> EdgekitError | None:
        """Why the engine has stopped for good, None while it works."""

    def submit(self, request: Request, sink: Sink) -> Ticket:
        """Queue a request.

        Raises:
            ContextOverflowError: the prompt leaves no room for an answer.
            EngineBusyError: the queue is full.
        """

    def tokenize(self, text: str, *, add_special: bool = False, parse_special: bool = True) -> list[int]:
        """Token ids of a text. `add_special` adds what the model wants around a prompt (BOS)."""

    def stats(self) -> EngineStats:
        """The figures as they stand. Cheap; callable from any thread."""

    def observe(self, observer: Callable[[RequestRecord], None]) -> None:
        """Call `observer` for every request that ends, on the engine's thread: it must not block."""

    def close(self) -> None:
        """Stop all streams and free the model."""
