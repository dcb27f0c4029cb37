"""Embeddings: texts as vectors."""

from __future__ import annotations

import asyncio
import base64
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from edgekit.engine.base import Finished, Request
from edgekit.errors import ContextOverflowError, EngineError
from edgekit.server.bridge import EventBridge
from edgekit.server.choices import Choices
from edgekit.server.errors import ApiError
from edgekit.server.model import LoadedModel
from edgekit.server.prompts import check_model, text_prompt
from edgekit.server.schemas.embeddings import EmbeddingRequest

__all__ = ["EmbeddingJob"]

_AT_ONCE = 8
"""Inputs of one request that are with the engine together: the others must not fill its queue."""


@dataclass(slots=True)
class EmbeddingJob:
    """An embedding request under way."""

    body: EmbeddingRequest
    model: LoadedModel
    bridge: EventBridge
    client: str
    inputs: list[tuple[int, ...]]
    stop: Callable[[], None] = lambda: None
    cancelled: bool = False

    @classmethod
    async def open(
        cls, body: EmbeddingRequest, model: LoadedModel, bridge: EventBridge, *, client: str = ""
    ) -> EmbeddingJob:
        """Check a request against the model.

        Raises:
            ApiError: the request names another model, or an input that cannot be embedded.
        """
        check_model(body, model)
        length = model.facts.embedding_length
        if body.dimensions not in (None, length):
            raise ApiError(
                400,
                f"'dimensions': the model's embeddings have {length} and cannot be cut",
                param="dimensions",
            )
        inputs = [await text_prompt(text, model, field="input") for text in body.inputs]
        for tokens in inputs:
            if len(tokens) >= model.engine.context_tokens:
                error = ContextOverflowError(len(tokens), model.engine.context_tokens)
                raise ApiError.from_error(error, prompt_field="input")
        return cls(body, model, bridge, client, inputs)

    def cancel(self) -> None:
        """Stop. Harmless when all is done."""
        self.cancelled = True
        self.stop()

    async def answer(self) -> dict[str, Any]:
        """The embeddings, in the order of the inputs.

        Raises:
            EdgekitError: the engine failed.
        """
        loop = asyncio.get_running_loop()
        began = loop.time()
        vectors: list[tuple[float, ...]] = []
        for start in range(0, len(self.inputs), _AT_ONCE):
            left = (
                None if self.body.timeout is None else max(0.001, self.body.timeout - (loop.time() - began))
            )
            vectors += await self._embed(self.inputs[start : start + _AT_ONCE], left)
            if self.cancelled:
                break
        tokens = sum(map(len, self.inputs))
        return {
            "object": "list",
            "model": self.model.name,
            "data": [
                {"object": "embedding", "index": index, "embedding": self._encode(vector)}
                for index, vector in enumerate(vectors)
            ],
            "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
        }

    async def _embed(
        self, inputs: list[tuple[int, ...]], deadline_s: float | None
    ) -> list[tuple[float, ...]]:
        requests = [
            Request(prompt=tokens, client=self.client, deadline_s=deadline_s, embed=True) for tokens in inputs
        ]
        under_way = Choices(requests, self.model.engine, self.bridge)
        self.stop = under_way.cancel
        ends: dict[int, Finished] = {}
        async for advance in under_way.advances():
            if advance.end is not None:
                ends[advance.index] = advance.end
        return [_vector(ends[index]) for index in range(len(inputs))]

    def _encode(self, vector: tuple[float, ...]) -> list[float] | str:
        if self.body.encoding_format != "base64":
            return list(vector)
        return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()


def _vector(end: Finished) -> tuple[float, ...]:
    if end.embedding is None:
        raise EngineError("the engine gave no embedding")
    return end.embedding
