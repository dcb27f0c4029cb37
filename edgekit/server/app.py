"""The routes. What they do stands in the modules beside this one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any, Protocol

from fastapi import FastAPI, Request, Response

from edgekit import __version__
from edgekit.server.access import ApiKeys, KeyCheck
from edgekit.server.chat import ChatStream
from edgekit.server.clients import client_name
from edgekit.server.completions import CompletionStream
from edgekit.server.documents import answers, describe
from edgekit.server.embeddings import EmbeddingJob
from edgekit.server.errors import ApiError, JsonAnswer, install_error_handlers
from edgekit.server.limits import BodyLimit
from edgekit.server.llama_routes import add_llama_routes
from edgekit.server.metrics import CONTENT_TYPE, Metrics
from edgekit.server.model import ModelSlot
from edgekit.server.page import add_page
from edgekit.server.schemas.answers import (
    ChatCompletion,
    Embeddings,
    Health,
    ModelCard,
    ModelList,
    TextCompletion,
)
from edgekit.server.schemas.chat import ChatCompletionRequest
from edgekit.server.schemas.completions import CompletionRequest
from edgekit.server.schemas.embeddings import EmbeddingRequest
from edgekit.server.sse import EventStreamResponse, until_disconnect

__all__ = ["create_app"]

_MAX_BODY_BYTES = 4 * 2**20
_BODY_TIMEOUT_S = 30.0
_GENERATION_ERRORS = (400, 404, 408, 413, 429, 504)


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
    describe(app)

    @app.get("/health", responses=answers(Health))
    async def health() -> dict[str, str]:
        slot.ready_model()
        return {"status": "ok"}

    @app.get(
        "/metrics", response_class=Response, responses={200: {"content": {CONTENT_TYPE.split(";")[0]: {}}}}
    )
    async def prometheus_metrics() -> Response:
        return Response(metrics.render(), media_type=CONTENT_TYPE)

    _add_models(app, slot)
    _add_generation(app, slot)
    add_llama_routes(app, slot)
    add_page(app)
    return app


def _add_models(app: FastAPI, slot: ModelSlot) -> None:
    @app.get("/models", include_in_schema=False)
    @app.get("/v1/models", response_model=None, responses=answers(ModelList))
    async def list_models() -> dict[str, Any]:
        return {"object": "list", "data": [_describe(slot)]}

    @app.get("/v1/models/{name:path}", response_model=None, responses=answers(ModelCard, 404))
    async def show_model(name: str) -> dict[str, Any]:
        described = _describe(slot)
        if name != described["id"]:
            raise ApiError(
                404, f"the model '{name}' does not exist here", param="model", code="model_not_found"
            )
        return described


def _add_generation(app: FastAPI, slot: ModelSlot) -> None:
    @app.post("/chat/completions", include_in_schema=False)
    @app.post(
        "/v1/chat/completions",
        response_model=None,
        responses=answers(ChatCompletion, *_GENERATION_ERRORS, streams=True),
    )
    async def create_chat_completion(body: ChatCompletionRequest, request: Request) -> Response:
        client = client_name(request, body.user)
        stream = await ChatStream.open(body, slot.ready_model(), slot.bridge, client=client)
        if body.stream:
            return EventStreamResponse(stream.chunks(), on_disconnect=stream.cancel)
        return JsonAnswer(await _answer_unless_gone(stream, request))

    @app.post(
        "/v1/completions",
        response_model=None,
        responses=answers(TextCompletion, *_GENERATION_ERRORS, streams=True),
    )
    async def create_completion(body: CompletionRequest, request: Request) -> Response:
        client = client_name(request, body.user)
        stream = await CompletionStream.open(body, slot.ready_model(), slot.bridge, client=client)
        if body.stream:
            return EventStreamResponse(stream.chunks(), on_disconnect=stream.cancel)
        return JsonAnswer(await _answer_unless_gone(stream, request))

    @app.post("/v1/embeddings", response_model=None, responses=answers(Embeddings, *_GENERATION_ERRORS))
    async def create_embeddings(body: EmbeddingRequest, request: Request) -> Response:
        client = client_name(request, body.user)
        job = await EmbeddingJob.open(body, slot.ready_model(), slot.bridge, client=client)
        return JsonAnswer(await _answer_unless_gone(job, request))


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
            "n_embd": facts.embedding_length,
            "n_ctx": model.engine.context_tokens,
            "n_ctx_train": facts.context_train_tokens,
            "size": facts.weight_bytes,
        },
    }


class _Job(Protocol):
    """Work for one request."""

    def cancel(self) -> None:
        """Stop it."""

    async def answer(self) -> dict[str, Any]:
        """What the client is told."""


async def _answer_unless_gone(job: _Job, request: Request) -> dict[str, Any]:
    """The answer; when the client leaves before, the work is cancelled and ends early."""
    watcher = asyncio.create_task(_cancel_on_disconnect(job, request))
    try:
        return await job.answer()
    finally:
        job.cancel()
        watcher.cancel()
        with suppress(asyncio.CancelledError):
            await watcher


async def _cancel_on_disconnect(job: _Job, request: Request) -> None:
    await until_disconnect(request.receive)
    job.cancel()
