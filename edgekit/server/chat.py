"""Chat completions: from messages to an engine request, and from its events to OpenAI's answers."""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from typing import Any

from edgekit.engine.base import Chunk, Failed, Finished, RequestRecord, Sampling, Ticket
from edgekit.engine.base import Request as EngineRequest
from edgekit.engine.reasoning import Part, ReasoningSplitter, template_opens_reasoning
from edgekit.engine.text import adds_special
from edgekit.errors import EdgekitError
from edgekit.server.bridge import Channel, EventBridge
from edgekit.server.errors import ApiError
from edgekit.server.model import LoadedModel
from edgekit.server.openai import ChatCompletionRequest

__all__ = ["ChatStream"]

_TOKENIZE_INLINE_CHARACTERS = 16_384
"""A longer prompt is tokenized on another thread, so that it does not hold up the event loop."""


@dataclass(slots=True)
class ChatStream:
    """One chat completion under way.

    Use `open`, then either `chunks` or `answer`; `cancel` when the client goes away.
    """

    id: str
    created: int
    model_name: str
    include_usage: bool
    ticket: Ticket
    channel: Channel
    splitter: ReasoningSplitter

    @classmethod
    async def open(cls, body: ChatCompletionRequest, model: LoadedModel, bridge: EventBridge) -> ChatStream:
        """Check a request against the model and hand it to the engine.

        Raises:
            ApiError: the request names another model, or the model cannot chat.
            ContextOverflowError, EngineBusyError, ChatTemplateError: see there.
        """
        if body.model is not None and body.model != model.name:
            raise ApiError(
                404,
                f"the model '{body.model}' does not exist here; this server has '{model.name}'",
                param="model",
                code="model_not_found",
            )
        if model.template is None:
            raise ApiError(
                400,
                f"the model '{model.name}' has no chat template",
                param="messages",
                code="no_chat_template",
            )
        prompt = model.template.render([message.as_template_message() for message in body.messages])
        prompt = _whole_characters(prompt)
        tokens = tuple(await _tokenize(model, prompt))
        if not tokens:
            raise ApiError(
                400,
                "the model's chat template makes an empty prompt of these messages",
                param="messages",
                code="empty_prompt",
            )
        request = EngineRequest(
            prompt=tokens,
            max_tokens=body.answer_limit,
            sampling=_sampling(body, model),
            stop=body.stops,
        )
        channel = bridge.open_channel()
        return cls(
            id=f"chatcmpl-{secrets.token_hex(12)}",
            created=int(time.time()),
            model_name=model.name,
            include_usage=body.stream_options is not None and body.stream_options.include_usage,
            ticket=model.engine.submit(request, channel.sink),
            channel=channel,
            splitter=ReasoningSplitter(opened=template_opens_reasoning(prompt)),
        )

    def cancel(self) -> None:
        """Stop generating. Harmless when the stream has ended."""
        self.ticket.cancel()

    async def answer(self) -> dict[str, Any]:
        """The whole answer as one `chat.completion` object.

        Raises:
            EdgekitError: the engine failed.
        """
        reasoning: list[str] = []
        content: list[str] = []
        async for event in self._events():
            if isinstance(event, Finished):
                message: dict[str, Any] = {"role": "assistant", "content": "".join(content)}
                if thought := "".join(reasoning):
                    message |= {"reasoning_content": thought, "reasoning": thought}
                choice = {
                    "index": 0,
                    "message": message,
                    "finish_reason": event.reason.value,
                    "logprobs": None,
                }
                return {
                    **self._head("chat.completion"),
                    "choices": [choice],
                    "usage": _usage(event.record),
                    "timings": _timings(event.record),
                }
            if isinstance(event, Part):
                reasoning.append(event.reasoning)
                content.append(event.content)
        raise AssertionError("a stream ends with Finished or raises")

    async def chunks(self) -> AsyncIterator[bytes]:
        """The answer as server-sent events: `chat.completion.chunk` objects, then `[DONE]`."""
        head = json.dumps(self._head("chat.completion.chunk"), ensure_ascii=False)[:-1]
        yield _sse(head, delta={"role": "assistant", "content": ""})
        try:
            async for event in self._events():
                if isinstance(event, Part):
                    yield b"".join(_sse(head, delta=delta) for delta in _deltas(event))
                else:
                    yield self._end(head, event)
        except EdgekitError as error:
            yield _event(json.dumps(ApiError.from_error(error).body(), ensure_ascii=False))
        yield b"data: [DONE]\n\n"

    def _end(self, head: str, event: Finished) -> bytes:
        extra: dict[str, Any] = {"timings": _timings(event.record)}
        end = _sse(head, delta={}, finish_reason=event.reason.value, extra=extra)
        if not self.include_usage:
            return end
        usage = {"choices": [], "usage": _usage(event.record)}
        return end + _event(head + "," + json.dumps(usage)[1:])

    async def _events(self) -> AsyncIterator[Part | Finished]:
        """Parts of text, one for all that has come since the last, then the end."""
        while True:
            events = await self.channel.read()
            last = events[-1]
            part = self.splitter.push("".join(event.content for event in events if isinstance(event, Chunk)))
            if not isinstance(last, Chunk):
                rest = self.splitter.finish()
                part = Part(part.reasoning + rest.reasoning, part.content + rest.content)
            if part.reasoning or part.content:
                yield part
            if isinstance(last, Failed):
                raise last.error
            if isinstance(last, Finished):
                yield last
                return

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model_name}


def _whole_characters(text: str) -> str:
    """The text with U+FFFD for halves of surrogate pairs: JSON can write them alone, tokenizers take UTF-8.

    They come from clients that cut a text in the middle of an emoji.
    """
    if text.isascii():
        return text
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


async def _tokenize(model: LoadedModel, prompt: str) -> list[int]:
    add_special = adds_special(prompt, model.bos_text)

    def tokenize() -> list[int]:
        return model.engine.tokenize(prompt, add_special=add_special)

    if len(prompt) <= _TOKENIZE_INLINE_CHARACTERS:
        return tokenize()
    return await asyncio.to_thread(tokenize)


def _sampling(body: ChatCompletionRequest, model: LoadedModel) -> Sampling:
    given: dict[str, Any] = {
        name: value
        for name in ("temperature", "top_p", "top_k", "min_p", "seed")
        if (value := getattr(body, name)) is not None
    }
    biases = {int(token): bias for token, bias in (body.logit_bias or {}).items()}
    for token in biases:
        if token >= model.facts.vocabulary:
            raise ApiError(
                400,
                f"'logit_bias': the model has {model.facts.vocabulary} tokens, and {token} is none of them",
                param="logit_bias",
            )
    return replace(
        model.sampling,
        presence_penalty=body.presence_penalty,
        frequency_penalty=body.frequency_penalty,
        repeat_penalty=body.repeat_penalty,
        logit_bias=biases,
        **given,
    )


def _deltas(part: Part) -> list[dict[str, str]]:
    deltas: list[dict[str, str]] = []
    if part.reasoning:
        deltas.append({"reasoning_content": part.reasoning, "reasoning": part.reasoning})
    if part.content:
        deltas.append({"content": part.content})
    return deltas


def _sse(
    head: str, *, delta: dict[str, str], finish_reason: str | None = None, extra: dict[str, Any] | None = None
) -> bytes:
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
    return _event(head + "," + json.dumps({"choices": [choice], **(extra or {})}, ensure_ascii=False)[1:])


def _event(data: str) -> bytes:
    return f"data: {data}\n\n".encode("utf-8", "replace")


def _usage(record: RequestRecord) -> dict[str, Any]:
    return {
        "prompt_tokens": record.prompt_tokens,
        "completion_tokens": record.completion_tokens,
        "total_tokens": record.prompt_tokens + record.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": record.cached_tokens},
    }


def _timings(record: RequestRecord) -> dict[str, Any]:
    """llama-server's `timings`: prompt_n are the tokens that were computed, not those in the cache."""
    computed = record.prompt_tokens - record.cached_tokens
    # The first token comes out of the prefill, so the decode phase made one token less.
    decoded = max(0, record.completion_tokens - 1)
    return {
        "cache_n": record.cached_tokens,
        "prompt_n": computed,
        "prompt_ms": record.prefill_s * 1e3,
        "prompt_per_token_ms": record.prefill_s * 1e3 / computed if computed else None,
        "prompt_per_second": computed / record.prefill_s if record.prefill_s else None,
        "predicted_n": record.completion_tokens,
        "predicted_ms": record.decode_s * 1e3,
        "predicted_per_token_ms": record.decode_s * 1e3 / decoded if decoded else None,
        "predicted_per_second": decoded / record.decode_s if record.decode_s else None,
        "queue_ms": record.queue_s * 1e3,
        "ttft_ms": record.ttft_s * 1e3,
    }
