from __future__ import annotations

import math

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from edgekit.engine.chat_template import ChatTemplateError
from edgekit.errors import (
    ContextOverflowError,
    EdgekitError,
    EngineBusyError,
    EngineError,
    EngineStoppedError,
)
from edgekit.server.errors import ApiError, JsonAnswer, install_error_handlers


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (ContextOverflowError(600, 512), 400, "context_length_exceeded"),
        (ChatTemplateError("no system role"), 400, "invalid_messages"),
        (EngineBusyError(64, 2.5), 429, "queue_full"),
        (EngineStoppedError("the server is shutting down"), 503, "shutting_down"),
        (EngineError("a step failed"), 500, "engine_error"),
    ],
)
def test_from_error__says_whose_fault_it_is(error: EdgekitError, status: int, code: str) -> None:
    answer = ApiError.from_error(error)
    assert (answer.status, answer.code) == (status, code)
    assert answer.message == error.message
    assert ("Retry-After" in (answer.headers or {})) is (status in (429, 503))


def test_json_answer__lone_surrogates_do_not_break_it() -> None:
    assert JsonAnswer({"a": "x\ud800ä"}).body == '{"a":"x?ä"}'.encode()


def test_json_answer__refuses_what_is_not_json() -> None:
    with pytest.raises(ValueError, match="JSON"):
        JsonAnswer({"a": math.nan})


def test_unexpected_error__is_an_openai_error() -> None:
    app = FastAPI()
    install_error_handlers(app)

    @app.get("/")
    async def fail() -> None:
        raise RuntimeError("secret detail")

    response = TestClient(app, raise_server_exceptions=False).get("/")
    assert response.status_code == 500
    assert response.json()["error"]["code"] == "internal_error"
    assert "secret detail" not in response.text
