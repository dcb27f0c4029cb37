from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import openai
import pytest
from live_server import http
from scripted_engine import ScriptedEngine

from edgekit.engine.base import Finished, FinishReason, Request, RequestRecord

Serve = Callable[..., str]


def embed(request: Request) -> list[Any]:
    record = RequestRecord(len(request.prompt), 0, 0, 0.0, 0.1, 0.0)
    return [Finished(FinishReason.STOP, record, embedding=(float(request.prompt[0]), 0.5, -1.0))]


def test_inputs__come_back_in_order_a_few_at_a_time(serve_script: Serve) -> None:
    engine = ScriptedEngine(embed)
    url = serve_script(engine)
    letters = [chr(65 + number) for number in range(20)]
    answer = http.post(f"{url}/v1/embeddings", json={"input": letters, "user": "ann", "timeout": 5}).json()
    assert [entry["embedding"] for entry in answer["data"]] == [
        [65.0 + number, 0.5, -1] for number in range(20)
    ]
    assert [entry["index"] for entry in answer["data"]] == list(range(20))
    assert answer["usage"] == {"prompt_tokens": 20, "total_tokens": 20}
    assert all(request.embed and request.client == "127.0.0.1/ann" for request in engine.requests)
    assert all(0 < (request.deadline_s or 0) <= 5 for request in engine.requests)


@pytest.mark.parametrize("given", ["A", ["A"], [65], [[65]]])
def test_input__in_all_its_shapes(serve_script: Serve, given: Any) -> None:
    url = serve_script(ScriptedEngine(embed))
    answer = http.post(f"{url}/v1/embeddings", json={"input": given, "dimensions": 3}).json()
    assert answer["data"] == [{"object": "embedding", "index": 0, "embedding": [65.0, 0.5, -1.0]}]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"input": "x", "dimensions": 2}, "dimensions"),
        ({"input": []}, "input"),
        ({"input": ""}, "input"),
        ({"input": ["fine", "x" * 1000]}, "input"),
        ({"input": [-1]}, "input.0"),
        ({"input": "x", "encoding_format": "hex"}, "encoding_format"),
    ],
)
def test_bad_field__is_named(serve_script: Serve, body: dict[str, Any], param: str) -> None:
    engine = ScriptedEngine(embed)
    response = http.post(f"{serve_script(engine)}/v1/embeddings", json=body)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == param
    assert engine.requests == [], "nothing is computed for a request that is refused"


def test_openai_client__like_texts_have_like_vectors(server_url: str) -> None:
    client = openai.OpenAI(base_url=f"{server_url}/v1", api_key="unused", max_retries=0)
    texts = ["The cat sleeps on the sofa.", "The cat sleeps on the couch.", "Interest rates rose in May."]
    # The client asks for base64 by itself.
    vectors = [entry.embedding for entry in client.embeddings.create(model="smollm2", input=texts).data]
    assert {len(vector) for vector in vectors} == {576}
    assert all(math.isclose(math.hypot(*vector), 1, rel_tol=1e-4) for vector in vectors)
    plain = client.embeddings.create(model="smollm2", input=texts[0], encoding_format="float")
    assert plain.data[0].embedding == pytest.approx(vectors[0], abs=1e-5)

    def likeness(a: int, b: int) -> float:
        return sum(x * y for x, y in zip(vectors[a], vectors[b], strict=True))

    assert likeness(0, 1) > likeness(0, 2)
