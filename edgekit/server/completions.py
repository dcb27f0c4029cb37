"""Text completions: OpenAI's older route, for prompts without a chat."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from edgekit.engine.base import Request, RequestRecord, TokenLogprob
from edgekit.errors import ContextOverflowError, EdgekitError
from edgekit.server import wire
from edgekit.server.bridge import EventBridge
from edgekit.server.chat_request import sampling_of, seeded
from edgekit.server.choices import Choices, sum_records
from edgekit.server.errors import ApiError
from edgekit.server.model import LoadedModel
from edgekit.server.prompts import check_model, text_prompt
from edgekit.server.schemas.completions import DEFAULT_MAX_TOKENS, CompletionRequest

__all__ = ["CompletionStream"]


@dataclass(slots=True)
class _Completion:
    """One choice as it grows."""

    echo: str
    text: list[str] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    offset: int = 0
    """Characters of the tokens that have been told of."""
    finish_reason: str | None = None
    record: RequestRecord | None = None


class CompletionStream:
    """One completion under way, of one prompt or several.

    Use `open`, then either `chunks` or `answer`; `cancel` when the client goes away.
    """

    def __init__(
        self, body: CompletionRequest, model: LoadedModel, under_way: Choices, echoes: list[str]
    ) -> None:
        self._head = {
            "id": f"cmpl-{secrets.token_hex(12)}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": model.name,
            "system_fingerprint": model.fingerprint,
        }
        self._per_prompt = body.choices
        self._includes_usage = body.includes_usage
        self._tells_logprobs = body.logprobs is not None
        self._under_way = under_way
        self._choices = [_Completion(echo) for echo in echoes for _ in range(body.choices)]

    @classmethod
    async def open(
        cls, body: CompletionRequest, model: LoadedModel, bridge: EventBridge, *, client: str = ""
    ) -> CompletionStream:
        """Check a request against the model and hand it to the engine.

        Raises:
            ApiError: the request names another model, or asks for what cannot be done.
            EngineBusyError: see there.
        """
        check_model(body, model)
        requests: list[Request] = []
        echoes: list[str] = []
        for prompt in body.prompts:
            # OpenAI begins a new text where there is nothing to go on from; here BOS does.
            tokens = await text_prompt(prompt or model.bos_text, model, field="prompt")
            request = Request(
                prompt=tokens,
                max_tokens=body.max_tokens or DEFAULT_MAX_TOKENS,
                sampling=sampling_of(body, model),
                stop=body.stops,
                client=client,
                deadline_s=body.timeout,
                top_logprobs=body.logprobs,
            )
            requests += seeded(request, body.choices)
            echoes.append(_echo(prompt, model) if body.echo else "")
        try:
            under_way = Choices(requests, model.engine, bridge)
        except ContextOverflowError as error:
            raise ApiError.from_error(error, prompt_field="prompt") from error
        return cls(body, model, under_way, echoes)

    def cancel(self) -> None:
        """Stop generating. Harmless when the stream has ended."""
        self._under_way.cancel()

    async def answer(self) -> dict[str, Any]:
        """The whole answer as one `text_completion` object.

        Raises:
            EdgekitError: the engine failed.
        """
        async for advance in self._under_way.advances():
            choice = self._choices[advance.index]
            choice.text.append(advance.chunk.content)
            choice.logprobs.extend(advance.chunk.logprobs)
            if advance.end is not None:
                choice.finish_reason, choice.record = advance.end.reason.value, advance.end.record
        choices = [
            {
                "index": index,
                "text": choice.echo + "".join(choice.text),
                "finish_reason": choice.finish_reason,
                "logprobs": _logprobs(choice, choice.logprobs) if self._tells_logprobs else None,
            }
            for index, choice in enumerate(self._choices)
        ]
        return {
            **self._head,
            "choices": choices,
            "usage": wire.usage(self._record()),
            "timings": self._timings(),
        }

    async def chunks(self) -> AsyncIterator[bytes]:
        """The answer as server-sent events: `text_completion` objects, then `[DONE]`."""
        head = wire.dump(self._head)[:-1] + ',"choices":['
        tail = '],"usage":null' if self._includes_usage else "]"
        for index, choice in enumerate(self._choices):
            if choice.echo:
                yield wire.event(f"{head}{_piece(index, choice.echo)}{tail}}}")
        try:
            async for advance in self._under_way.advances():
                index, choice, chunk = advance.index, self._choices[advance.index], advance.chunk
                if chunk.content or chunk.logprobs:
                    logprobs = wire.dump(_logprobs(choice, chunk.logprobs)) if chunk.logprobs else "null"
                    yield wire.event(f"{head}{_piece(index, chunk.content, logprobs=logprobs)}{tail}}}")
                if advance.end is not None:
                    choice.record = advance.end.record
                    end = _piece(index, "", finish_reason=f'"{advance.end.reason.value}"') + tail
                    if all(other.record for other in self._choices):
                        end += f',"timings":{wire.dump(self._timings())}'
                    yield wire.event(f"{head}{end}}}")
            if self._includes_usage:
                yield wire.event(f'{head}],"usage":{wire.dump(wire.usage(self._record()))}}}')
        except EdgekitError as error:
            yield wire.event(wire.dump(ApiError.from_error(error, prompt_field="prompt").body()))
        yield wire.DONE

    def _record(self) -> RequestRecord:
        records = [choice.record for choice in self._choices if choice.record is not None]
        return sum_records(records, per_prompt=self._per_prompt)

    def _timings(self) -> dict[str, Any]:
        return wire.timings(self._record(), streams=len(self._choices))


def _echo(prompt: str | list[int], model: LoadedModel) -> str:
    if isinstance(prompt, str):
        return prompt
    return b"".join(model.engine.pieces(prompt)).decode("utf-8", "replace")


def _piece(index: int, text: str, *, logprobs: str = "null", finish_reason: str = "null") -> str:
    said = wire.quoted(text)
    return f'{{"index":{index},"text":{said},"logprobs":{logprobs},"finish_reason":{finish_reason}}}'


def _logprobs(choice: _Completion, entries: list[TokenLogprob] | tuple[TokenLogprob, ...]) -> dict[str, Any]:
    """`logprobs` in the older shape: lists side by side."""
    tokens: list[str] = []
    offsets: list[int] = []
    for entry in entries:
        text = wire.token_text(entry.drawn.piece, prefix="bytes:")
        tokens.append(text)
        offsets.append(choice.offset)
        choice.offset += len(text)
    return {
        "tokens": tokens,
        "token_logprobs": [wire.finite(entry.drawn.logprob) for entry in entries],
        "top_logprobs": [_by_text(entry) for entry in entries],
        "text_offset": offsets,
    }


def _by_text(entry: TokenLogprob) -> dict[str, float]:
    """The likeliest tokens by their text. Of two with the same text the likelier one is told."""
    found: dict[str, float] = {}
    for token in entry.top:
        found.setdefault(wire.token_text(token.piece, prefix="bytes:"), wire.finite(token.logprob))
    return found
