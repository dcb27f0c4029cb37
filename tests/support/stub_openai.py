"""A server that answers by a script, over OpenAI's protocol with llama-server's additions.

For what a small student does not do when asked: reason, write Markdown, attack the page. Its page is the real
one; its chunks are worded by hand, from OpenAI's reference and llama-server's README, not by edgekit's code.
"""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import AsyncIterator
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from typing_extensions import Self

from edgekit.server.page import add_page

__all__ = ["StubServer"]

_LOADING = {"error": {"message": "Loading model", "type": "unavailable_error", "code": "model_loading"}}


class StubServer:
    """Serves while its block runs. All fields may be set at any time.

    `script` is what an answer consists of: (field, text) pairs; field is "reasoning" or "content".
    """

    def __init__(self) -> None:
        self.script: list[tuple[str, str]] = []
        self.pause_s = 0.0
        """Before each piece."""
        self.metrics = ""
        self.health: tuple[int, dict[str, Any]] = (200, {"status": "ok"})
        self.refusal: tuple[int, dict[str, Any], dict[str, str]] | None = None
        """Answers chats with this instead."""
        self.breaks_with: str | None = None
        """An error in the middle of the stream, after all of the script."""
        self.bodies: list[dict[str, Any]] = []
        """The chats that were asked for."""
        self.origins: list[str | None] = []
        """The Origin headers that they came with."""
        self.ended_early = threading.Event()
        """A client left in the middle of its answer."""
        self._socket = socket.socket()
        self._socket.bind(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        self._server = uvicorn.Server(uvicorn.Config(self._app(), log_config=None))
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [self._socket]})

    def __enter__(self) -> Self:
        self._thread.start()
        while not self._server.started:
            time.sleep(0.005)
        return self

    def __exit__(self, *_exception: object) -> None:
        self._server.force_exit = self._server.should_exit = True
        self._thread.join(10)
        self._socket.close()

    def load(self) -> None:
        """Say that the model is loading."""
        self.health = (503, _LOADING)

    def _app(self) -> FastAPI:
        app = FastAPI(openapi_url=None)
        add_page(app)

        @app.get("/health")
        async def health() -> Response:
            return JSONResponse(self.health[1], self.health[0])

        @app.get("/metrics")
        async def metrics() -> Response:
            return PlainTextResponse(self.metrics)

        @app.get("/v1/models")
        async def models() -> dict[str, Any]:
            meta = {"architecture": "qwen2", "quantization": "Q4_K_M", "n_ctx": 32768}
            model = {"id": "deepseek-r1-distill-qwen-1.5b", "object": "model", "created": 1, "meta": meta}
            return {"object": "list", "data": [{**model, "owned_by": "stub"}]}

        @app.post("/v1/chat/completions")
        async def chat(request: Request) -> Response:
            self.bodies.append(await request.json())
            self.origins.append(request.headers.get("origin"))
            if self.refusal is not None:
                status, body, headers = self.refusal
                return JSONResponse(body, status, headers)
            return StreamingResponse(self._stream(), media_type="text/event-stream")

        return app

    async def _stream(self) -> AsyncIterator[bytes]:
        began = time.monotonic()
        done = False
        try:
            yield _chunk({"role": "assistant", "content": ""})
            for field, text in self.script:
                await asyncio.sleep(self.pause_s)
                yield _chunk({"content": text} if field == "content" else {"reasoning_content": text})
            if self.breaks_with is not None:
                yield _event({"error": {"message": self.breaks_with, "type": "server_error", "code": None}})
            else:
                took_s = time.monotonic() - began
                for chunk in self._end(took_s):
                    yield chunk
            yield b"data: [DONE]\n\n"
            done = True
        finally:
            if not done:
                self.ended_early.set()

    def _end(self, took_s: float) -> list[bytes]:
        count = len(self.script)
        reasoned = sum(field == "reasoning" for field, _ in self.script)
        timings = {
            "cache_n": 20,
            "prompt_n": 14,
            "prompt_ms": 120.0,
            "predicted_n": count,
            "predicted_ms": took_s * 1e3,
            "predicted_per_second": count / took_s if took_s else None,
            "ttft_ms": 120.0,
        }
        usage = {
            "prompt_tokens": 34,
            "completion_tokens": count,
            "total_tokens": 34 + count,
            "prompt_tokens_details": {"cached_tokens": 20},
            "completion_tokens_details": {"reasoning_tokens": reasoned},
        }
        return [
            _chunk({}, finish_reason="stop", timings=timings),
            _event({"id": "c", "object": "chat.completion.chunk", "choices": [], "usage": usage}),
        ]


def _chunk(delta: dict[str, str], *, finish_reason: str | None = None, **more: Any) -> bytes:
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
    head = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "stub"}
    return _event({**head, "choices": [choice], "usage": None, **more})


def _event(data: dict[str, Any]) -> bytes:
    return f"data: {json.dumps(data)}\n\n".encode()
