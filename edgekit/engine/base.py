"""What an engine is: the requests it takes, the events it gives back, and the figures it keeps.

Everything above this file (server, telemetry) knows these types only, so that another runtime can stand
behind the same interface.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from types import MappingProxyType
from typing import Literal, Protocol

from edgekit.errors import EdgekitError

__all__ = [
    "Chunk",
    "Constraint",
    "Engine",
    "EngineStats",
    "Event",
    "Failed",
    "FinishReason",
    "Finished",
    "GapCounts",
    "LikelyToken",
    "ReasoningRules",
    "ReasoningTags",
    "Request",
    "RequestRecord",
    "Sampling",
    "Sink",
    "Ticket",
    "TokenLogprob",
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
class ReasoningTags:
    """What a model family writes around its reasoning."""

    opening: str = "<think>"
    closing: str = "</think>"


@dataclass(frozen=True, slots=True)
class ReasoningRules:
    """How a stream's reasoning is told from its answer, and how long it may be."""

    tags: ReasoningTags = ReasoningTags()
    opened: bool = False
    """The prompt ends in the opening tag: the stream begins inside the reasoning."""
    budget_tokens: int | None = None
    """After so many tokens of reasoning the closing tag is put in the model's mouth. None: no limit."""


@dataclass(frozen=True, slots=True)
class Constraint:
    """What form an answer must have. It holds from the answer's first token on, after any reasoning.

    `text` is a JSON Schema as JSON, a grammar in llguidance's variant of Lark, or a regular expression that
    the whole answer matches.
    """

    kind: Literal["json_schema", "lark", "regex"]
    text: str


@dataclass(frozen=True, slots=True)
class Request:
    """One stream to generate, or one text to embed."""

    prompt: tuple[int, ...]
    """Token ids."""
    max_tokens: int | None = None
    """None generates up to the end of the context."""
    sampling: Sampling = Sampling()
    stop: tuple[str, ...] = ()
    """Strings that end the stream and are not part of its text."""
    client: str = ""
    """Who asks. Clients that wait get their turns evenly, however much each of them asks."""
    deadline_s: float | None = None
    """Seconds from submission after which the stream fails with DeadlineExceededError."""
    top_logprobs: int | None = None
    """Likeliest tokens to tell for each token beside its own log probability; None tells neither."""
    reasoning: ReasoningRules | None = None
    """None: all text is answer."""
    constraint: Constraint | None = None
    embed: bool = False
    """Nothing is generated; `Finished.embedding` is what the model makes of the prompt."""


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
    reasoning_tokens: int = 0
    """Of `completion_tokens`."""

    @property
    def ttft_s(self) -> float:
        """Time to first token, from submission."""
        return self.queue_s + self.prefill_s


@dataclass(frozen=True, slots=True)
class LikelyToken:
    """A token and the natural logarithm of the probability that the model gave it, before any sampling."""

    token: int
    piece: bytes
    """The bytes that it stands for; they need not be whole characters."""
    logprob: float


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token that was drawn, and the likeliest ones in its place, likeliest first."""

    drawn: LikelyToken
    top: tuple[LikelyToken, ...] = ()


@dataclass(frozen=True, slots=True)
class Chunk:
    """What was added to a stream since its last chunk: whole characters of reasoning, then of answer.

    Tags belong to neither. Both texts may be empty when there are `logprobs`.
    """

    content: str = ""
    reasoning: str = ""
    logprobs: tuple[TokenLogprob, ...] = ()
    """One for each token since the last chunk, when the request asks for them."""


@dataclass(frozen=True, slots=True)
class Finished:
    """The last event of a stream that ended well or was cancelled."""

    reason: FinishReason
    record: RequestRecord
    embedding: tuple[float, ...] | None = None
    """Of length 1 (Euclidean). Only for requests that ask to embed."""


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
class GapCounts:
    """How long streams waited for their next token: a histogram of seconds.

    `counts[i]` gaps were at most `bounds_s[i]` and longer than the bound before; the last count has no bound.
    """

    bounds_s: tuple[float, ...] = ()
    counts: tuple[int, ...] = ()
    sum_s: float = 0.0


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
    requests_refused: int = 0
    """Because the queue was full. They are in none of the counters above."""
    prefix_hits: int = 0
    """Requests that found a part of their prompt in the KV cache."""
    prefix_misses: int = 0
    gaps: GapCounts = GapCounts()
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
            EngineStoppedError: the engine is closed.
        """

    def check(self, constraint: Constraint) -> None:
        """Raise ConstraintError on a constraint that cannot be met. May take long: not for an event loop."""

    def tokenize(self, text: str, *, add_special: bool = False, parse_special: bool = True) -> list[int]:
        """Token ids of a text. `add_special` adds what the model wants around a prompt (BOS)."""

    def pieces(self, tokens: Sequence[int]) -> list[bytes]:
        """The bytes that tokens stand for; empty for control tokens.

        Raises:
            EngineError: a token is not one of the model's.
        """

    def stats(self) -> EngineStats:
        """The figures as they stand. Cheap; callable from any thread."""

    def step_age_s(self) -> float | None:
        """Seconds since the step under way began, None between steps. Callable from any thread.

        A native call that hangs cannot be interrupted; whoever watches this can end the process.
        """

    def observe(self, observer: Callable[[RequestRecord], None]) -> None:
        """Call `observer` for every request that ends, on the engine's thread: it must not block."""

    def close(self) -> None:
        """Stop all streams and free the model."""
