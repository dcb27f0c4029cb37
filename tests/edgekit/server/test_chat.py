"""Chat completions as clients see them: the real openai client, and raw HTTP where details matter."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from live_server import http, load_student, running_server, wait_until_ready

QUESTION = [{"role": "user", "content": "What is the capital of France? Answer in one sentence."}]

JSON = {"content-type": "application/json"}


@pytest.fixture
def client(server_url: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server_url}/v1", api_key="unused", max_retries=0)


def chat(url: str, **body: Any) -> httpx.Response:
    return http.post(f"{url}/v1/chat/completions", json={"messages": QUESTION, **body}, timeout=60)


def stat(url: str, name: str) -> float:
    lines = http.get(f"{url}/metrics").text.splitlines()
    return float(next(line.rsplit(" ", 1)[1] for line in lines if line.startswith(name + " ")))


def test_create__answers_the_question(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="smollm2", messages=QUESTION, temperature=0, max_tokens=32)  # type: ignore[arg-type]
    choice = answer.choices[0]
    assert "Paris" in (choice.message.content or "")
    assert choice.finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert answer.object == "chat.completion"


def test_stream__same_text_as_whole_and_usage_at_the_end(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(model="smollm2", messages=QUESTION, temperature=0, max_tokens=32)  # type: ignore[arg-type]
    chunks = list(
        client.chat.completions.create(
            model="smollm2",
            messages=QUESTION,  # type: ignore[arg-type]
            temperature=0,
            max_tokens=32,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens > 0
    assert len({chunk.id for chunk in chunks}) == 1


def test_stream__ends_in_done(server_url: str) -> None:
    response = chat(server_url, stream=True, max_tokens=3)
    assert response.headers["content-type"].startswith("text/event-stream")
    events = response.text.split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    assert all(event.startswith("data: ") for event in events[:-1])
    assert "timings" in json.loads(events[-3].removeprefix("data: "))


def test_max_tokens__ends_with_length(server_url: str) -> None:
    answer = chat(server_url, max_tokens=2).json()
    assert answer["choices"][0]["finish_reason"] == "length"
    assert answer["usage"]["completion_tokens"] == 2
    assert answer["timings"]["predicted_n"] == 2


def test_max_completion_tokens__wins_over_max_tokens(server_url: str) -> None:
    assert chat(server_url, max_tokens=9, max_completion_tokens=1).json()["usage"]["completion_tokens"] == 1


def test_stop__cuts_before_the_string(server_url: str) -> None:
    content = chat(server_url, temperature=0, stop=["Paris"], max_tokens=32).json()["choices"][0]
    assert "Paris" not in content["message"]["content"]
    assert content["finish_reason"] == "stop"


def test_seed__same_seed_same_text(server_url: str) -> None:
    texts = [
        chat(server_url, seed=seed, temperature=1.5, max_tokens=16).json()["choices"][0]["message"]["content"]
        for seed in (5, 5, 6)
    ]
    assert texts[0] == texts[1] != texts[2]


def test_half_a_character__is_replaced(server_url: str) -> None:
    """A client that cuts a text in the middle of an emoji sends half of a surrogate pair."""
    content = '{"messages": [{"role": "user", "content": "cut \\ud83d"}], "max_tokens": 1}'
    response = http.post(f"{server_url}/v1/chat/completions", content=content, headers=JSON)
    assert response.status_code == 200
    whole = chat(server_url, messages=[{"role": "user", "content": "cut \ufffd"}], max_tokens=1).json()
    assert response.json()["usage"]["prompt_tokens"] == whole["usage"]["prompt_tokens"]


def test_history__second_turn_finds_the_first_in_the_cache(server_url: str) -> None:
    first = chat(server_url, temperature=0, max_tokens=24).json()
    messages = [*QUESTION, first["choices"][0]["message"], {"role": "user", "content": "And of Italy?"}]
    usage = chat(server_url, messages=messages, max_tokens=2).json()["usage"]
    assert usage["prompt_tokens_details"]["cached_tokens"] >= first["usage"]["prompt_tokens"] - 1


@pytest.mark.parametrize(
    ("body", "status", "param", "said"),
    [
        ({"messages": []}, 400, "messages", "at least 1"),
        ({"messages": "hello"}, 400, "messages", "list"),
        ({"messages": [{"role": "robot", "content": "x"}]}, 400, "messages.0.role", "robot|system"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            400,
            "messages.0.content.0.type",
            "'text'",
        ),
        ({"temperature": 3}, 400, "temperature", "less than or equal to 2"),
        ({"top_p": 0}, 400, "top_p", "greater than 0"),
        ({"max_tokens": 0}, 400, "max_tokens", "greater than or equal to 1"),
        ({"max_token": 5}, 400, "max_token", "unknown field 'max_token'"),
        ({"stop": ["x"] * 17}, 400, "stop", "at most 16"),
        ({"logit_bias": {"Paris": 5}}, 400, "logit_bias", "not a token id"),
        ({"logit_bias": {"49152": 5}}, 400, "logit_bias", "has 49152 tokens"),
        ({"logit_bias": {str(token): 1 for token in range(301)}}, 400, "logit_bias", "at most 300"),
        ({"n": 17}, 400, "n", "less than or equal to 16"),
        ({"tools": [{"type": "function"}]}, 400, "tools.0.function", "required"),
        ({"model": "gpt-4o"}, 404, "model", "this server has 'smollm2'"),
        ({"model": "\ud800"}, 404, "model", "this server has 'smollm2'"),
        ({"\ud800": 1}, 400, None, "unicode"),
        ({"messages": [{"role": "user", "content": "word " * 2000}]}, 400, "messages", "context holds 512"),
    ],
)
def test_bad_request__names_the_field(
    server_url: str, body: dict[str, Any], status: int, param: str | None, said: str
) -> None:
    # httpx would refuse to write lone surrogates; a client's JSON can spell them all the same.
    content = json.dumps({"messages": QUESTION, **body})
    response = http.post(f"{server_url}/v1/chat/completions", content=content, headers=JSON)
    assert response.status_code == status
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    if param is not None:
        assert error["param"] == param
    assert any(part in error["message"] for part in said.split("|")), error["message"]


@pytest.mark.parametrize("content", [b"{", b"", b"[]", b'"x"', b"\xff\xfe", b"nul"])
def test_bad_json__is_a_400(server_url: str, content: bytes) -> None:
    response = http.post(
        f"{server_url}/v1/chat/completions", content=content, headers={"content-type": "application/json"}
    )
    assert response.status_code == 400
    assert response.json()["error"]["type"] == "invalid_request_error"


def test_body_over_the_limit__is_a_413(server_url: str) -> None:
    big = b'{"messages": "' + b"x" * (5 * 2**20) + b'"}'
    url = f"{server_url}/v1/chat/completions"
    assert http.post(url, content=big).status_code == 413
    # In chunks, with no length announced.
    assert http.post(url, content=iter([big[:1000], big[1000:]])).status_code == 413


@pytest.mark.parametrize("stream", [True, False])
def test_disconnect__stops_the_generation(server_url: str, stream: bool) -> None:
    before = stat(server_url, 'edgekit_requests_total{outcome="cancelled"}')
    body = {"messages": QUESTION, "stream": stream, "logit_bias": {"2": -100}, "temperature": 0}
    with httpx.Client() as http:
        try:
            with http.stream("POST", f"{server_url}/v1/chat/completions", json=body, timeout=0.5) as response:
                for _ in response.iter_raw():
                    break
        except httpx.ReadTimeout:
            pass
    deadline = time.monotonic() + 5
    while stat(server_url, 'edgekit_requests_total{outcome="cancelled"}') != before + 1:
        assert time.monotonic() < deadline, "the stream went on"
        time.sleep(0.05)
    assert stat(server_url, "llamacpp:requests_processing") == 0


def test_many_requests__none_is_lost_and_the_queue_is_bounded(server_url: str) -> None:
    """Eight may wait: of 30 requests at once, some are refused and all others answered."""
    import concurrent.futures

    with concurrent.futures.ThreadPoolExecutor(30) as pool:
        responses = list(pool.map(lambda _: chat(server_url, max_tokens=12, temperature=0), range(30)))
    codes = [response.status_code for response in responses]
    assert set(codes) <= {200, 429}
    assert codes.count(200) >= 8
    for response in responses:
        if response.status_code == 200:
            assert response.json()["choices"][0]["message"]["content"].startswith("The capital")
        else:
            assert int(response.headers["retry-after"]) >= 1


def test_empty_prompt__is_refused(student: Path) -> None:
    with running_server(lambda: load_student(student, template="{{ '' }}")) as url:
        wait_until_ready(url)
        response = chat(url)
        assert response.status_code == 400
        assert response.json()["error"]["code"] == "empty_prompt"


def test_reasoning__is_split_off_in_both_shapes(student: Path) -> None:
    """The template opens <think>, and the question makes the student write the closing tag itself."""
    template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "<|im_start|>assistant\n<think>\n"
    )
    prefill = "Repeat exactly: I add them.</think>4"
    with running_server(lambda: load_student(student, template=template)) as url:
        wait_until_ready(url)
        messages = [{"role": "user", "content": prefill}]
        whole = chat(url, messages=messages, temperature=0, max_tokens=40).json()["choices"][0]["message"]
        assert whole["reasoning_content"] == whole["reasoning"] != ""
        assert "<think>" not in whole["content"]
        assert "</think>" not in whole["content"] + whole["reasoning_content"]
        streamed = chat(url, messages=messages, temperature=0, max_tokens=40, stream=True).text
    deltas = [
        json.loads(line.removeprefix("data: "))["choices"][0]["delta"]
        for line in streamed.splitlines()
        if line.startswith("data: {")
    ]
    assert "".join(delta.get("reasoning_content", "") for delta in deltas) == whole["reasoning_content"]
    assert "".join(delta.get("content", "") for delta in deltas) == whole["content"]
