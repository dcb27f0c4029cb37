"""The OpenAPI document: what FastAPI cannot know of answers that are written by hand."""

from __future__ import annotations

from typing import Any, Final

from fastapi import FastAPI
from pydantic import BaseModel

from edgekit.server.schemas.answers import ErrorAnswer

__all__ = ["answers", "describe"]

_MEANINGS: Final = {
    400: "The request is not valid, or asks for what this server does not do.",
    401: "An API key is needed.",
    404: "There is no such model.",
    405: "There is no such method here.",
    408: "The body took too long.",
    413: "The body is too large.",
    429: "Too many requests wait; Retry-After says when to come back.",
    500: "The engine has failed.",
    503: "The model is loading, or the server is shutting down.",
    504: "The request's time has run out.",
}


def answers(model: type[BaseModel], *statuses: int, streams: bool = False) -> dict[int | str, dict[str, Any]]:
    """FastAPI's `responses` of a route.

    Args:
        model: what a good answer looks like.
        statuses: errors that it gives beside 500 and 503.
        streams: whether the answer may come as server-sent events.
    """
    good: dict[str, Any] = {"model": model}
    if streams:
        # OpenAPI 3.1 has no way to say what each event is.
        good["content"] = {"text/event-stream": {}}
        good["description"] = 'One JSON document or, with "stream": true, its pieces as server-sent events.'
    errors: dict[int | str, dict[str, Any]] = {
        status: {"model": ErrorAnswer, "description": _MEANINGS[status]} for status in (*statuses, 500, 503)
    }
    return {200: good, **errors}


def describe(app: FastAPI) -> None:
    """Keep FastAPI from telling of its own errors (422) in the document: ours are OpenAI's."""
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = generate()
            for operations in document["paths"].values():
                for operation in operations.values():
                    operation["responses"].pop("422", None)
            schemas = document.get("components", {}).get("schemas", {})
            for name in ("HTTPValidationError", "ValidationError"):
                schemas.pop(name, None)
        return app.openapi_schema or {}

    app.openapi = openapi  # type: ignore[method-assign]
