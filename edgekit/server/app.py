"""The routes. What they do stands in the modules beside this one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

from fastapi import FastAPI, Request, Response

from edgekit import __version__
from edgekit.server.access import ApiKeys, KeyCheck
from edgekit.server.chat import ChatStream
from edgekit.server.errors import ApiError, JsonAnswer, install_error_handlers
from edgekit.server.limits import BodyLimit
from edgekit.server.metrics import CONTENT_TYPE, Metrics
from edgekit.server.model import ModelSlot
from edgekit.server.openai import ChatCompletionRequest
from edgekit.server.sse import EventStreamResponse, until_disconnect

__all__ = ["create_app"]

_MAX_BODY_BYTES = 4 * 2**20
_BODY_TIMEOUT_S = 30.0


def create_app(
    slot: ModelSlot,
    *,
    metrics: Metrics | None = None,
    keys: ApiKeys | None = None,
    body_timeout_s: float = _BODY_TIMEOUT_S,
) -> FastAPI:
    """The ASGI application.

    Args:
        slot: the model; loading begins when the application starts, and it is closed when that ends.
        metrics: what GET /metrics shows.
        keys: who may use all but /health; None lets everybody.
        body_timeout_s: how long a request's body may take to arrive.
    """
    metrics = metrics or Metrics(slot)

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        slot.start()
        yield
        await asyncio.to_thread(slot.close)

    app = FastAPI(
        title="edgekit",
        version=__version__,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        # Beyond this machine, nobody needs to be told what there is to try.
        openapi_url="/openapi.json" if keys is None else None,
    )
    app.add_middleware(BodyLimit, max_bytes=_MAX_BODY_BYTES, timeout_s=body_timeout_s)
    if keys is not None:
        # Added last, so it comes first.
        app.add_middleware(KeyCheck, keys=keys)
    install_error_handlers(app)

    @app.get("/health")
    async def health() -> dict[str, str]:
        slot.ready_model()
        return {"status": "ok"}

    @app.get("/metrics")
    async def prometheus_metrics() -> Response:
        return Response(metrics.render(), media_type=CONTENT_TYPE)

    @app.get("/v1/models")
    async def list_models() -> dict[str, Any]:
        return {"object": "list", "data": [_describe(slot)]}

    @app.get("/v1/models/{name:path}")
    async def show_model(name: str) -> dict[str, Any]:
        described = _describe(slot)
        if name != described["id"]:
            raise ApiError(
                404, f"the model '{name}' does not exist here", param="model", code="model_not_found"
            )
        return described

    @app.post("/v1/chat/completions")
    async def create_chat_completion(body: ChatCompletionRequest, request: Request) -> Response:
        stream = await ChatStream.open(body, slot.ready_model(), slot.bridge)
        if body.stream:
            return EventStreamResponse(stream.chunks(), on_disconnect=stream.cancel)
        return JsonAnswer(await _answer_unless_gone(stream, request))

    return app


def _describe(slot: ModelSlot) -> dict[str, Any]:
    model = slot.ready_model()
    facts = model.facts
    return {
        "id": model.name,
        "object": "model",
        "created": model.created,
        "owned_by": "edgekit",
        "meta": {
            "architecture": facts.architecture,
            "quantization": facts.quantization,
            "n_params": facts.parameters,
            "n_vocab": facts.vocabulary,
            "n_ctx": model.engine.context_tokens,
            "n_ctx_train": facts.context_train_tokens,
            "size": facts.weight_bytes,
        },
    }


async def _answer_unless_gone(stream: ChatStream, request: Request) -> dict[str, Any]:
    """The answer; when the client leaves before, the stream is cancelled and ends early."""
    watcher = asyncio.create_task(_cancel_on_disconnect(stream, request))
    try:
        return await stream.answer()
    finally:
        stream.cancel()
        watcher.cancel()
        with suppress(asyncio.CancelledError):
            await watcher


async def _cancel_on_disconnect(stream: ChatStream, request: Request) -> None:
    await until_disconnect(request.receive)
    stream.cancel()
