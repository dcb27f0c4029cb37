"""The served OpenAPI document is true: schemathesis asks by it, with what fits and with what does not."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from live_server import http, load_student, running_server, wait_until_ready
from schemathesis import GenerationMode
from schemathesis.checks import load_all_checks, not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
)

_EXAMPLES = 12
"""For each route and each kind of data."""
_WHOLE_S = 40
_CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    unsupported_method,
]


@pytest.fixture(scope="module")
def fuzzed_url(student: Path) -> Iterator[str]:
    with running_server(lambda: load_student(student)) as url:
        wait_until_ready(url)
        yield url


def test_document__is_all_there(server_url: str) -> None:
    document = http.get(f"{server_url}/openapi.json").json()
    assert {f"{method} {path}" for path, methods in document["paths"].items() for method in methods} == {
        "post /v1/chat/completions",
        "post /v1/completions",
        "post /v1/embeddings",
        "get /v1/models",
        "get /v1/models/{name}",
        "post /tokenize",
        "post /detokenize",
        "post /apply-template",
        "get /props",
        "get /health",
        "get /metrics",
    }
    for methods in document["paths"].values():
        for operation in methods.values():
            assert "422" not in operation["responses"]
    assert "HTTPValidationError" not in document["components"]["schemas"]
    chat = document["components"]["schemas"]["ChatCompletionRequest"]
    assert chat["additionalProperties"] is False
    assert {"messages", "tools", "response_format", "reasoning_effort", "timeout"} <= set(chat["properties"])


def shorten(body: Any) -> None:
    """What is asked for must take neither minutes nor longer than it may: 504 would be right."""
    if isinstance(body, dict):
        body.pop("timeout", None)
    if isinstance(body, dict) and ("messages" in body or "prompt" in body):
        for name in ("max_tokens", "max_completion_tokens"):
            if isinstance(body.get(name), int) and body[name] > 4:
                body[name] = 4
        if "max_completion_tokens" not in body and "messages" in body:
            body.setdefault("max_tokens", 4)
            if body["max_tokens"] is None:
                body["max_tokens"] = 4


def ask_by_document(url: str, seconds: float) -> dict[str, int]:
    """Ask all routes for so long; returns how often each has answered as the document says."""
    load_all_checks()
    asked: dict[str, int] = {}
    until = 0.0

    def ask(case: schemathesis.Case) -> None:
        label = case.operation.label
        if time.monotonic() > until and label in asked:
            return
        shorten(case.body)
        response = case.call(timeout=60)
        case.validate_response(response, checks=_CHECKS)
        asked[label] = asked.get(label, 0) + 1

    run = settings(
        max_examples=_EXAMPLES,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    results = list(schemathesis.openapi.from_url(f"{url}/openapi.json").get_all_operations())
    operations = sorted((result.ok() for result in results), key=lambda operation: operation.label)
    ends = time.monotonic() + seconds
    for done, operation in enumerate(operations):
        # What is left of the time is for all that is left to be asked.
        until = time.monotonic() + (ends - time.monotonic()) / (len(operations) - done)
        # A route without a body has nothing that could be wrong.
        modes = list(GenerationMode) if operation.body else [GenerationMode.POSITIVE]
        for mode in modes:
            run(given(case=operation.as_strategy(generation_mode=mode))(ask))()
    return asked


def test_requests_by_the_document__break_nothing(fuzzed_url: str) -> None:
    asked = ask_by_document(fuzzed_url, _WHOLE_S)
    assert len(asked) == 11, asked
    assert sum(asked.values()) > 30, asked
    assert http.get(f"{fuzzed_url}/health").json() == {"status": "ok"}
    question = [{"role": "user", "content": "What is the capital of France? Answer in one sentence."}]
    answer = http.post(
        f"{fuzzed_url}/v1/chat/completions", json={"messages": question, "temperature": 0, "max_tokens": 16}
    )
    assert "Paris" in answer.json()["choices"][0]["message"]["content"]
