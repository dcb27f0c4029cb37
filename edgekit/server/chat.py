"""Chat completions: from the engine's events to OpenAI's answers."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator
from typing import Any

from edgekit.engine.base import RequestRecord
from edgekit.errors import EdgekitError
from edgekit.server import wire
from edgekit.server.bridge import EventBridge
from edgekit.server.chat_choice import ChatChoice, Gain, WholeChoice, chat_logprobs
from edgekit.server.chat_request import engine_requests
from edgekit.server.choices import Choices, sum_records
from edgekit.server.errors import ApiError
from edgekit.server.model import LoadedModel
from edgekit.server.prompts import check_model
from edgekit.server.schemas.chat import ChatCompletionRequest

__all__ = ["ChatStream"]


class ChatStream:
    """One chat completion under way.

    Use `open`, then either `chunks` or `answer`; `cancel` when the client goes away.
    """

    def __init__(self, body: ChatCompletionRequest, model: LoadedModel, under_way: Choices) -> None:
        rules = body.tool_rules
        tools = list(rules.tools)
        self._head = {
            "id": f"chatcmpl-{secrets.token_hex(12)}",
            "created": int(time.time()),
            "model": model.name,
            "system_fingerprint": model.fingerprint,
        }
        self._includes_usage = body.includes_usage
        self._tells_logprobs = body.likely_tokens is not None
        self._under_way = under_way
        self._choices = [
            ChatChoice(model.tools.parser(tools) if tools else None, parallel=rules.parallel)
            for _ in range(body.choices)
        ]
        self._records: list[RequestRecord] = []

    @classmethod
    async def open(
        cls, body: ChatCompletionRequest, model: LoadedModel, bridge: EventBridge, *, client: str = ""
    ) -> ChatStream:
        """Check a request against the model and hand it to the engine.

        Raises:
            ApiError: the request names another model, or asks for what cannot be done.
            ContextOverflowError, EngineBusyError, ChatTemplateError: see there.
        """
        check_model(body, model)
        requests = await engine_requests(body, model, client=client)
        return cls(body, model, Choices(requests, model.engine, bridge))

    def cancel(self) -> None:
        """Stop generating. Harmless when the stream has ended."""
        self._under_way.cancel()

    async def answer(self) -> dict[str, Any]:
        """The whole answer as one `chat.completion` object.

        Raises:
            EdgekitError: the engine failed.
        """
        whole = [WholeChoice(index) for index in range(len(self._choices))]
        async for index, gain in self._gains():
            whole[index].add(gain)
        return {
            "object": "chat.completion",
            **self._head,
            "choices": [choice.body(logprobs=self._tells_logprobs) for choice in whole],
            "usage": wire.usage(self._record()),
            "timings": self._timings(),
        }

    async def chunks(self) -> AsyncIterator[bytes]:
        """The answer as server-sent events: `chat.completion.chunk` objects, then `[DONE]`."""
        head = wire.dump({"object": "chat.completion.chunk", **self._head})[:-1] + ',"choices":['
        # As OpenAI has it: null in all chunks but the one that tells.
        tail = '],"usage":null' if self._includes_usage else "]"
        first = '"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}'
        for index in range(len(self._choices)):
            yield wire.event(f'{head}{{"index":{index},{first}{tail}}}')
        try:
            async for index, gain in self._gains():
                if gain.content or gain.reasoning or gain.calls or gain.logprobs:
                    yield wire.event(f'{head}{{"index":{index},{self._piece(gain)}{tail}}}')
                if gain.finish_reason is not None:
                    end = f'"delta":{{}},"logprobs":null,"finish_reason":"{gain.finish_reason}"}}{tail}'
                    if len(self._records) == len(self._choices):
                        end += f',"timings":{wire.dump(self._timings())}'
                    yield wire.event(f'{head}{{"index":{index},{end}}}')
            if self._includes_usage:
                yield wire.event(f'{head}],"usage":{wire.dump(wire.usage(self._record()))}}}')
        except EdgekitError as error:
            yield wire.event(wire.dump(ApiError.from_error(error).body()))
        yield wire.DONE

    def _piece(self, gain: Gain) -> str:
        """What follows a choice's index. Nearly all chunks carry a little text and nothing else."""
        if gain.content and not (gain.reasoning or gain.calls or gain.logprobs):
            delta = f'{{"content":{wire.quoted(gain.content)}}}'
        else:
            delta = wire.dump(gain.delta)
        logprobs = wire.dump(chat_logprobs(gain.logprobs)) if gain.logprobs else "null"
        return f'"delta":{delta},"logprobs":{logprobs},"finish_reason":null}}'

    async def _gains(self) -> AsyncIterator[tuple[int, Gain]]:
        async for advance in self._under_way.advances():
            choice = self._choices[advance.index]
            gain = choice.take(advance)
            if choice.cut:
                self._under_way.cancel(advance.index)
            if advance.end is not None:
                self._records.append(advance.end.record)
            yield advance.index, gain

    def _record(self) -> RequestRecord:
        return sum_records(self._records, per_prompt=len(self._choices))

    def _timings(self) -> dict[str, Any]:
        return wire.timings(self._record(), streams=len(self._choices))
