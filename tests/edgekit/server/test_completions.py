"""Text completions on the wire: the older shapes."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import httpx
import openai
import pytest
from live_server import http
from scripted_engine import VOCABULARY, ScriptedEngine, finished

from edgekit.engine.base import Chunk, FinishReason, LikelyToken, Request, TokenLogprob

Serve = Callable[..., str]


def complete(url: str, **body: Any) -> httpx.Response:
    return http.post(f"{url}/v1/completions", json={"prompt": "Once", **body})


def spell(request: Request) -> list[Any]:
    """Says the prompt's last token and the seed."""
    said = f"{chr(request.prompt[-1])}{request.sampling.seed}"
    return [*map(Chunk, said), finished(FinishReason.LENGTH, tokens=2, prompt=len(request.prompt))]


def test_prompts__times_choices_in_order(serve_script: Serve) -> None:
    engine = ScriptedEngine(spell, together=4)
    url = serve_script(engine)
    answer = complete(url, prompt=["ab", "c"], n=2, best_of=2, seed=7).json()
    assert [choice["text"] for choice in answer["choices"]] == ["b7", "b8", "c7", "c8"]
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2, 3]
    assert {choice["finish_reason"] for choice in answer["choices"]} == {"length"}
    assert answer["usage"]["prompt_tokens"] == 3
    assert answer["usage"]["completion_tokens"] == 8
    streamed = complete(
        url, prompt=["ab", "c"], n=2, seed=7, stream=True, stream_options={"include_usage": True}
    )
    told = [json.loads(line[6:]) for line in streamed.text.splitlines() if line.startswith("data: {")]
    texts = ["", "", "", ""]
    for event in told[:-1]:
        assert event["usage"] is None
        texts[event["choices"][0]["index"]] += event["choices"][0]["text"]
    assert texts == ["b7", "b8", "c7", "c8"]
    assert (told[-1]["choices"], told[-1]["usage"]["total_tokens"]) == ([], 11)


@pytest.mark.parametrize(
    ("prompt", "tokens"),
    [
        ("Ab", [(65, 98)]),
        ([65, 98], [(65, 98)]),
        ([[65], [98]], [(65,), (98,)]),
        (["A", "b"], [(65,), (98,)]),
    ],
)
def test_prompt__in_all_its_shapes(serve_script: Serve, prompt: Any, tokens: list[tuple[int, ...]]) -> None:
    engine = ScriptedEngine()
    complete(serve_script(engine), prompt=prompt).raise_for_status()
    assert [request.prompt for request in engine.requests] == tokens
    assert {request.max_tokens for request in engine.requests} == {16}, "OpenAI's default on this route"
    assert {request.reasoning for request in engine.requests} == {None}


def test_echo__begins_with_the_prompt(serve_script: Serve) -> None:
    url = serve_script(ScriptedEngine())
    assert complete(url, echo=True).json()["choices"][0]["text"] == "Onceok"
    assert complete(url, prompt=[79, 104], echo=True).json()["choices"][0]["text"] == "Ohok"
    streamed = complete(url, echo=True, stream=True).text
    texts = [json.loads(line[6:])["choices"][0]["text"] for line in streamed.splitlines() if "{" in line]
    assert texts == ["Once", "ok", ""]


def test_logprobs__as_lists_side_by_side(serve_script: Serve) -> None:
    one, half = LikelyToken(1, b"ab", -0.25), LikelyToken(2, b"\xe2", -1.5)
    chunks = [
        Chunk("ab", logprobs=(TokenLogprob(one, (one, half)),)),
        Chunk("", logprobs=(TokenLogprob(half),)),
    ]
    engine = ScriptedEngine(lambda _request: [*chunks, finished(tokens=2)])
    url = serve_script(engine)
    logprobs = complete(url, logprobs=2).json()["choices"][0]["logprobs"]
    assert engine.requests[0].top_logprobs == 2
    assert logprobs == {
        "tokens": ["ab", "bytes:\\xe2"],
        "token_logprobs": [-0.25, -1.5],
        "top_logprobs": [{"ab": -0.25, "bytes:\\xe2": -1.5}, {}],
        "text_offset": [0, 2],
    }
    streamed = complete(url, logprobs=2, stream=True).text
    parts = [json.loads(line[6:])["choices"][0]["logprobs"] for line in streamed.splitlines() if "{" in line]
    told = [part for part in parts if part]
    assert {name: [entry for part in told for entry in part[name]] for name in logprobs} == logprobs


@pytest.mark.parametrize(
    ("body", "param", "said"),
    [
        ({"prompt": []}, "prompt", "at least 1"),
        ({"prompt": [VOCABULARY]}, "prompt", "none of them"),
        ({"prompt": None}, "prompt", "no tokens"),
        ({"prompt": "x" * 1000}, "prompt", "context holds 1000"),
        ({"suffix": "x"}, "suffix", "does not support"),
        ({"best_of": 2}, "best_of", "equals 'n'"),
        ({"echo": True, "logprobs": 1}, "echo", "with 'logprobs'"),
        ({"prompt": ["x"] * 17, "n": 2}, "prompt", "more than 32"),
        ({"logprobs": 6}, "logprobs", "less than or equal to 5"),
    ],
)
def test_bad_field__is_named(scripted_url: str, body: dict[str, Any], param: str, said: str) -> None:
    response = complete(scripted_url, **body)
    assert response.status_code == 400
    error = response.json()["error"]
    assert error["param"] == param, error
    assert said in error["message"], error


def test_openai_client__completes_with_the_real_model(server_url: str) -> None:
    client = openai.OpenAI(base_url=f"{server_url}/v1", api_key="unused", max_retries=0)
    whole = client.completions.create(
        model="smollm2", prompt="The capital of France is", temperature=0, max_tokens=6, logprobs=3
    )
    choice = whole.choices[0]
    assert "Paris" in choice.text
    assert choice.logprobs is not None
    assert choice.logprobs.tokens is not None
    assert choice.logprobs.token_logprobs is not None
    assert "".join(choice.logprobs.tokens) == choice.text
    assert all(-20 < logprob <= 0 for logprob in choice.logprobs.token_logprobs)
    assert whole.usage is not None
    stream = client.completions.create(
        model="smollm2", prompt="The capital of France is", temperature=0, max_tokens=6, stream=True
    )
    assert "".join(part.choices[0].text for part in stream) == choice.text
