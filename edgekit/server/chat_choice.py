"""One choice of a chat completion: what it says, what it calls, how it ends."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from edgekit.engine.base import Chunk, Finished, FinishReason, TokenLogprob
from edgekit.server import wire
from edgekit.server.choices import Advance
from edgekit.server.tools import ToolCallDelta, ToolCallParser

__all__ = ["ChatChoice", "Gain", "WholeChoice", "chat_logprobs"]


@dataclass(frozen=True, slots=True)
class Gain:
    """What a choice has gained, as its client is told. `finish_reason` is there at its end."""

    content: str
    reasoning: str
    calls: tuple[ToolCallDelta, ...]
    logprobs: tuple[TokenLogprob, ...]
    finish_reason: str | None

    @property
    def delta(self) -> dict[str, Any]:
        """As a chunk's `delta`."""
        delta: dict[str, Any] = {}
        if self.reasoning:
            delta |= {"reasoning_content": self.reasoning, "reasoning": self.reasoning}
        if self.content:
            delta["content"] = self.content
        if self.calls:
            delta["tool_calls"] = [_call_delta(call) for call in self.calls]
        return delta


class ChatChoice:
    """One choice as it grows.

    Args:
        parser: finds the tool calls in its text; None where no tools may be called.
        parallel: whether it may call more than once.
    """

    def __init__(self, parser: ToolCallParser | None, *, parallel: bool) -> None:
        self._parser = parser
        self._parallel = parallel
        self._called = False
        self.cut = False
        """It has begun a call too many: nothing it says from there on counts."""

    def take(self, advance: Advance) -> Gain:
        """What is gained by what came from the engine."""
        chunk = advance.chunk
        no_calls: tuple[ToolCallDelta, ...] = ()
        content, calls = chunk.content, no_calls
        if self._parser is not None:
            content, calls = self._parse(self._parser, chunk, last=advance.end is not None)
        return Gain(content, chunk.reasoning, calls, chunk.logprobs, self._finish_reason(advance.end))

    def _parse(
        self, parser: ToolCallParser, chunk: Chunk, *, last: bool
    ) -> tuple[str, tuple[ToolCallDelta, ...]]:
        if self.cut:
            return "", ()
        parts = parser.push(chunk.content)
        content, calls = parts.content, parts.calls
        if last:
            rest = parser.finish()
            content, calls = content + rest.content, (*calls, *rest.calls)
        if not self._parallel and any(call.index > 0 for call in calls):
            self.cut = True
            calls = tuple(call for call in calls if call.index == 0)
        self._called = self._called or bool(calls)
        return content, calls

    def _finish_reason(self, end: Finished | None) -> str | None:
        if end is None:
            return None
        if self._called and (self.cut or end.reason is FinishReason.STOP):
            return "tool_calls"
        return end.reason.value


class WholeChoice:
    """A choice put together again from what it gained."""

    def __init__(self, index: int) -> None:
        self._index = index
        self._content: list[str] = []
        self._reasoning: list[str] = []
        self._calls: list[dict[str, Any]] = []
        self._logprobs: list[TokenLogprob] = []
        self._finish_reason: str | None = None

    def add(self, gain: Gain) -> None:
        """Take what was gained."""
        self._content.append(gain.content)
        self._reasoning.append(gain.reasoning)
        self._logprobs.extend(gain.logprobs)
        self._finish_reason = gain.finish_reason
        for call in gain.calls:
            if call.index == len(self._calls):
                function = {"name": call.name or "", "arguments": ""}
                self._calls.append({"id": call.id or "", "type": "function", "function": function})
            self._calls[call.index]["function"]["arguments"] += call.arguments

    def body(self, *, logprobs: bool) -> dict[str, Any]:
        """The choice of a `chat.completion` object."""
        content: str | None = "".join(self._content)
        message: dict[str, Any] = {"role": "assistant", "content": content, "refusal": None}
        if self._calls:
            message |= {"content": content or None, "tool_calls": self._calls}
        if thought := "".join(self._reasoning):
            message |= {"reasoning_content": thought, "reasoning": thought}
        return {
            "index": self._index,
            "message": message,
            "finish_reason": self._finish_reason,
            "logprobs": chat_logprobs(self._logprobs) if logprobs else None,
        }


def chat_logprobs(entries: list[TokenLogprob] | tuple[TokenLogprob, ...]) -> dict[str, Any]:
    """`logprobs` of a choice: of every token, those of reasoning and of tool calls included."""
    content = [
        {**wire.likely_token(entry.drawn), "top_logprobs": [wire.likely_token(token) for token in entry.top]}
        for entry in entries
    ]
    return {"content": content, "refusal": None}


def _call_delta(call: ToolCallDelta) -> dict[str, Any]:
    delta: dict[str, Any] = {"index": call.index}
    function: dict[str, str] = {"arguments": call.arguments}
    if call.id is not None:
        delta |= {"id": call.id, "type": "function"}
        function = {"name": call.name or "", **function}
    return {**delta, "function": function}
