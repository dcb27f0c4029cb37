"""Errors as OpenAI's API words them: `{"error": {"message", "type", "param", "code"}}`."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from edgekit.engine.chat_template import ChatTemplateError
from edgekit.errors import (
    ConstraintError,
    ContextOverflowError,
    DeadlineExceededError,
    EdgekitError,
    EngineBusyError,
    EngineStoppedError,
)

__all__ = ["ApiError", "JsonAnswer", "error_body", "install_error_handlers"]


class JsonAnswer(JSONResponse):
    """JSON that may repeat what a client sent: half of a surrogate pair, which UTF-8 lacks, becomes '?'."""

    def render(self, content: Any) -> bytes:
        text = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        return text.encode("utf-8", "replace")


class ApiError(EdgekitError):
    """An answer that is an error.

    Args:
        status: HTTP status code.
        message: what is wrong, for the client's developer.
        kind: OpenAI's `type`.
        param: the request's field that is wrong, None when it is no field.
        code: a word for programs, e.g. "model_not_found".
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.kind = kind
        self.param = param
        self.code = code
        self.headers = headers

    def body(self) -> dict[str, Any]:
        """The JSON document."""
        return error_body(self.message, kind=self.kind, param=self.param, code=self.code)

    @classmethod
    def from_error(cls, error: EdgekitError, *, prompt_field: str = "messages") -> ApiError:
        """What an error of edgekit means to an HTTP client. `prompt_field` holds the request's text."""
        if isinstance(error, ApiError):
            return error
        if isinstance(error, ContextOverflowError):
            return cls(400, error.message, param=prompt_field, code="context_length_exceeded")
        if isinstance(error, ConstraintError):
            return cls(400, error.message, param="response_format", code="invalid_schema")
        if isinstance(error, DeadlineExceededError):
            return cls(504, error.message, kind="timeout_error", param="timeout", code="deadline_exceeded")
        if isinstance(error, ChatTemplateError):
            return cls(400, error.message, param="messages", code="invalid_messages")
        if isinstance(error, EngineBusyError):
            wait = str(math.ceil(error.retry_after_s))
            return cls(
                429, error.message, kind="rate_limit_error", code="queue_full", headers={"Retry-After": wait}
            )
        if isinstance(error, EngineStoppedError):
            return cls(
                503,
                error.message,
                kind="unavailable_error",
                code="shutting_down",
                headers={"Retry-After": "1"},
            )
        return cls(500, error.message, kind="server_error", code="engine_error")


def error_body(
    message: str,
    *,
    kind: str,
    param: str | None = None,
    code: str | None = None,
) -> dict[str, Any]:
    """The JSON document of an error."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def install_error_handlers(app: FastAPI) -> None:
    """Let every error that leaves a route reach the client in OpenAI's words."""

    @app.exception_handler(EdgekitError)
    async def on_edgekit_error(_request: Request, error: EdgekitError) -> JsonAnswer:
        answer = ApiError.from_error(error)
        return JsonAnswer(answer.body(), answer.status, headers=answer.headers)

    @app.exception_handler(RequestValidationError)
    async def on_invalid_body(_request: Request, error: RequestValidationError) -> JsonAnswer:
        message, param = _first_problem(error.errors(), error.body)
        return JsonAnswer(error_body(message, kind="invalid_request_error", param=param), 400)

    @app.exception_handler(HTTPException)
    async def on_http_error(request: Request, error: HTTPException) -> JsonAnswer:
        message = str(error.detail)
        if error.status_code in (404, 405):
            message = f"{message}: {request.method} {request.url.path}"
        body = error_body(message, kind="invalid_request_error", code=f"http_{error.status_code}")
        return JsonAnswer(body, error.status_code, headers=error.headers)

    @app.exception_handler(Exception)
    async def on_defect(_request: Request, error: Exception) -> JsonAnswer:
        # Starlette raises the error again once this is sent, and uvicorn logs it with its traceback.
        message = f"the server failed on this request: {type(error).__name__}"
        return JsonAnswer(error_body(message, kind="server_error", code="internal_error"), 500)


def _first_problem(problems: Sequence[Any], body: Any) -> tuple[str, str | None]:
    """Message and field of a validation error."""
    # Of a field that takes several types, the types that it does not have say nothing.
    problem = next((problem for problem in problems if not problem["type"].endswith("_type")), problems[0])
    if problem["type"] == "json_invalid":
        return f"the body is not JSON: {problem.get('ctx', {}).get('error', problem['msg'])}", None
    field = _field(problem, body)
    if problem["type"] == "extra_forbidden":
        return f"unknown field '{field}'", field
    said = problem["msg"].removeprefix("Value error, ")
    if field is None and said.startswith("'"):
        return said, said.split("'")[1]
    return (f"'{field}': {said}" if field else said), field


def _field(problem: Any, body: Any) -> str | None:
    """The path to what is wrong, as the client knows it: without the names of our types."""
    path: list[str] = []
    here = body
    last = len(problem["loc"]) - 1
    for position, part in enumerate(problem["loc"]):
        is_index = isinstance(here, list) and isinstance(part, int) and part < len(here)
        if is_index or (isinstance(here, dict) and part in here):
            here = here[part]
        elif problem["type"] != "missing" or position != last:
            continue
        path.append(str(part))
    if problem["type"].startswith("union_tag"):
        path.append(problem["ctx"]["discriminator"].strip("'"))
    return ".".join(path) or None
