"""What chat completions look like on the wire, from an engine that says what it is told to."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import httpx
import pytest
from live_server import http
from scripted_engine import ScriptedEngine, finished

from edgekit.engine.base import (
    Chunk,
    Event,
    Failed,
    FinishReason,
    LikelyToken,
    ReasoningTags,
    Request,
    TokenLogprob,
)
from edgekit.errors import DeadlineExceededError, EngineError

Serve = Callable[..., str]
MESSAGES = [{"role": "user", "content": "Hi"}]
PROMPT = "user: Hi\n"
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": name,
            "description": "Looks it up.",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
        },
    }
    for name in ("weather", "time")
]


def chat(url: str, headers: dict[str, str] | None = None, **body: Any) -> httpx.Response:
    return http.post(f"{url}/v1/chat/completions", json={"messages": MESSAGES, **body}, headers=headers)


def events(response: httpx.Response) -> list[dict[str, Any]]:
    assert response.headers["content-type"].startswith("text/event-stream")
    parts = response.text.split("\n\n")
    assert parts[-2:] == ["data: [DONE]", ""]
    return [json.loads(part.removeprefix("data: ")) for part in parts[:-2]]


def says(*chunks: Event) -> Callable[[Request], Sequence[Event]]:
    return lambda _request: [*chunks, finished(tokens=len(chunks))]


def by_seed(request: Request) -> Sequence[Event]:
    """As many pieces as the seed says, each with the seed in it."""
    seed = request.sampling.seed or 0
    return [*(Chunk(f"{seed}.{part} ") for part in range(seed)), finished(tokens=seed, cached=seed)]


def test_choices__each_has_its_seed_and_its_text(serve_script: Serve) -> None:
    engine = ScriptedEngine(by_seed, together=3)
    answer = chat(serve_script(engine), n=3, seed=4).json()
    assert [request.sampling.seed for request in engine.requests] == [4, 5, 6]
    assert {request.prompt for request in engine.requests} == {tuple(map(ord, PROMPT))}
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2]
    assert [choice["message"]["content"] for choice in answer["choices"]] == [
        "".join(f"{seed}.{part} " for part in range(seed)) for seed in (4, 5, 6)
    ]
    assert answer["usage"]["completion_tokens"] == 15
    assert answer["usage"]["prompt_tokens"] == 10, "a shared prompt counts once"
    assert answer["usage"]["prompt_tokens_details"] == {"cached_tokens": 4}
    assert answer["timings"]["predicted_per_second"] == pytest.approx((15 - 3) / 0.3)


def test_choices__without_a_seed_none_is_set(serve_script: Serve) -> None:
    engine = ScriptedEngine(together=2)
    chat(serve_script(engine), n=2).raise_for_status()
    assert [request.sampling.seed for request in engine.requests] == [None, None]


def test_choices__stream_in_one_stream_and_never_mix(serve_script: Serve) -> None:
    url = serve_script(ScriptedEngine(by_seed, together=3))
    told = events(chat(url, n=3, seed=4, stream=True, stream_options={"include_usage": True}))
    assert [event["choices"][0]["index"] for event in told[:3]] == [0, 1, 2]
    assert all(event["choices"][0]["delta"] == {"role": "assistant", "content": ""} for event in told[:3])
    texts = ["", "", ""]
    for event in told[3:-1]:
        (choice,) = event["choices"]
        texts[choice["index"]] += choice["delta"].get("content", "")
    assert texts == ["".join(f"{seed}.{part} " for part in range(seed)) for seed in (4, 5, 6)]
    ends = [event for event in told[:-1] if event["choices"][0]["finish_reason"]]
    assert sorted(event["choices"][0]["index"] for event in ends) == [0, 1, 2]
    assert ["timings" in event for event in ends] == [False, False, True]
    assert [event["usage"] for event in told[:-1]] == [None] * (len(told) - 1)
    assert told[-1]["choices"] == []
    assert told[-1]["usage"]["completion_tokens"] == 15
    assert len({event["id"] for event in told}) == 1


def test_stream__without_include_usage_tells_none(serve_script: Serve) -> None:
    told = events(chat(serve_script(ScriptedEngine()), stream=True))
    assert all("usage" not in event for event in told)
    assert {event["object"] for event in told} == {"chat.completion.chunk"}
    assert {event["system_fingerprint"][:3] for event in told} == {"fp_"}


def test_choices__one_that_fails_ends_all(serve_script: Serve) -> None:
    def script(request: Request) -> Sequence[Event]:
        if request.sampling.seed == 2:
            return [Chunk("a"), Failed(EngineError("a step failed"))]
        return [Chunk("b")]

    engine = ScriptedEngine(script, together=2)
    url = serve_script(engine)
    response = chat(url, n=2, seed=1)
    assert response.status_code == 500
    assert response.json()["error"]["message"] == "a step failed"
    assert engine.cancelled == {0, 1}
    told = events(chat(url, n=2, seed=1, stream=True))
    assert told[-1]["error"]["code"] == "engine_error"


def test_deadline__is_the_engines_and_a_504(serve_script: Serve) -> None:
    engine = ScriptedEngine(lambda request: [Failed(DeadlineExceededError(request.deadline_s or 0))])
    response = chat(serve_script(engine), timeout=2.5)
    assert engine.requests[0].deadline_s == 2.5
    assert (response.status_code, response.json()["error"]["code"]) == (504, "deadline_exceeded")


def test_disconnect__cancels_all_choices(serve_script: Serve) -> None:
    engine = ScriptedEngine(lambda _request: [Chunk("and so on")], together=3)
    url = serve_script(engine)
    with httpx.stream(
        "POST", f"{url}/v1/chat/completions", json={"messages": MESSAGES, "n": 3, "stream": True}
    ) as response:
        next(response.iter_raw())
    deadline = time.monotonic() + 5
    while engine.cancelled != {0, 1, 2}:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_logprobs__of_every_token_with_bytes(serve_script: Serve) -> None:
    half = LikelyToken(7, b"\xf0\x9f", -0.5)
    never = LikelyToken(8, b" b", -math.inf)
    engine = ScriptedEngine(says(Chunk("a", logprobs=(TokenLogprob(half, (half, never)),))))
    url = serve_script(engine)
    whole = chat(url, logprobs=True, top_logprobs=2).json()["choices"][0]["logprobs"]
    assert engine.requests[0].top_logprobs == 2
    told = {"token": "\\xf0\\x9f", "bytes": [240, 159], "logprob": -0.5}
    lost = {"token": " b", "bytes": [32, 98], "logprob": -9999.0}
    assert whole == {"content": [{**told, "top_logprobs": [told, lost]}], "refusal": None}
    streamed = events(chat(url, logprobs=True, top_logprobs=2, stream=True))
    assert [event["choices"][0]["logprobs"] for event in streamed if event["choices"][0]["logprobs"]] == [
        whole
    ]


def test_logprobs__alone_ask_for_no_others(serve_script: Serve) -> None:
    engine = ScriptedEngine()
    answer = chat(serve_script(engine), logprobs=True).json()
    assert engine.requests[0].top_logprobs == 0
    assert answer["choices"][0]["logprobs"] == {"content": [], "refusal": None}


def test_reasoning__under_both_names_and_in_the_usage(serve_script: Serve) -> None:
    engine = ScriptedEngine(
        lambda _request: [Chunk(reasoning="hm"), Chunk("4"), finished(tokens=5, reasoning_tokens=3)]
    )
    url = serve_script(engine)
    answer = chat(url).json()
    message = answer["choices"][0]["message"]
    assert message["reasoning_content"] == message["reasoning"] == "hm"
    assert message["content"] == "4"
    assert answer["usage"]["completion_tokens_details"] == {"reasoning_tokens": 3}
    deltas = [event["choices"][0]["delta"] for event in events(chat(url, stream=True))]
    assert [delta.get("reasoning") for delta in deltas if "reasoning_content" in delta] == ["hm"]
    rules = engine.requests[0].reasoning
    assert rules is not None
    assert (rules.tags, rules.opened, rules.budget_tokens) == (ReasoningTags(), False, None)


THINKING = (
    "{% for m in messages %}{{ m.content }}{% endfor %}"
    "{{ reasoning_effort }}{% if enable_thinking is false %}quick{% else %}[THINK]{% endif %}"
)


@pytest.mark.parametrize(
    ("body", "ending", "budget"),
    [
        ({}, "[THINK]", None),
        ({"reasoning_effort": "none"}, "quick", 0),
        ({"reasoning_effort": "minimal", "max_tokens": 200}, "minimal[THINK]", 20),
        ({"reasoning_effort": "low", "max_completion_tokens": 200}, "low[THINK]", 40),
        # 1000 tokens of context, 13 of prompt.
        ({"reasoning_effort": "high"}, "high[THINK]", 789),
        ({"reasoning_effort": "max", "max_tokens": 200}, "max[THINK]", None),
        ({"reasoning_budget_tokens": 7}, "[THINK]", 7),
        ({"reasoning_budget": -1, "reasoning_effort": "low"}, "low[THINK]", None),
        ({"thinking_budget_tokens": 0}, "quick", 0),
        ({"thinking_token_budget": 5, "reasoning_budget": 5}, "[THINK]", 5),
        ({"chat_template_kwargs": {"enable_thinking": False}}, "quick", 0),
    ],
)
def test_reasoning__how_much_of_it(
    serve_script: Serve, body: dict[str, Any], ending: str, budget: int | None
) -> None:
    engine = ScriptedEngine()
    chat(serve_script(engine, template=THINKING), **body).raise_for_status()
    request = engine.requests[0]
    assert "".join(map(chr, request.prompt)).removeprefix("Hi") == ending
    assert request.reasoning is not None
    assert request.reasoning.tags == ReasoningTags("[THINK]", "[/THINK]")
    assert request.reasoning.opened is ending.endswith("[THINK]")
    assert request.reasoning.budget_tokens == budget


SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}}


@pytest.mark.parametrize(
    ("wanted", "schema"),
    [
        ({"type": "text"}, None),
        ({"type": "json_object"}, {"type": "object"}),
        ({"type": "json_object", "schema": SCHEMA}, SCHEMA),
        ({"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA, "strict": True}}, SCHEMA),
        ({"type": "json_schema", "json_schema": {"name": "n"}}, {"type": "object"}),
    ],
)
def test_response_format__is_the_engines_constraint(
    serve_script: Serve, wanted: dict[str, Any], schema: dict[str, Any] | None
) -> None:
    engine = ScriptedEngine()
    chat(serve_script(engine), response_format=wanted).raise_for_status()
    constraint = engine.requests[0].constraint
    if schema is None:
        assert constraint is None
        return
    assert constraint is not None
    assert (constraint.kind, json.loads(constraint.text)) == ("json_schema", schema)
    assert engine.checked == [constraint]
    assert engine.requests[0].reasoning is None, "the form holds from the first token on"


def test_response_format__that_cannot_be_met_is_refused(serve_script: Serve) -> None:
    engine = ScriptedEngine()
    wanted = {"type": "json_schema", "json_schema": {"name": "n", "schema": {"format": "no-such-form"}}}
    response = chat(serve_script(engine), response_format=wanted)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "response_format"
    assert engine.requests == []


def test_client__is_told_apart_by_key_and_user(serve_script: Serve) -> None:
    engine = ScriptedEngine()
    url = serve_script(engine)
    key = {"authorization": "Bearer secret-1"}
    for headers, body in [
        (None, {}),
        (None, {}),
        (None, {"user": "ann"}),
        (key, {}),
        ({"authorization": "Bearer secret-2"}, {}),
        (key, {"user": "ann"}),
    ]:
        chat(url, headers, **body).raise_for_status()
    names = [request.client for request in engine.requests]
    assert names[0] == names[1] == "127.0.0.1"
    assert len(set(names[1:])) == 5
    assert not any("secret" in name for name in names)


def test_text__is_composed_where_the_tokenizer_does(serve_script: Serve) -> None:
    decomposed = [{"role": "user", "content": "Cafe\u0301"}]
    for tokenizer, word in (("qwen2", "Caf\xe9"), ("llama-bpe", "Cafe\u0301")):
        engine = ScriptedEngine()
        chat(serve_script(engine, tokenizer=tokenizer), messages=decomposed).raise_for_status()
        assert engine.requests[0].prompt == tuple(map(ord, f"user: {word}\n"))


def test_history__reaches_the_template(serve_script: Serve) -> None:
    engine = ScriptedEngine()
    fields = "{{ m.role }}|{{ m.name }}|{{ m.content }}|{{ m.reasoning_content }}"
    template = "{% for m in messages %}" + fields + "\n{% endfor %}"
    messages = [
        {
            "role": "developer",
            "content": [{"type": "text", "text": "Be "}, {"type": "text", "text": "brief"}],
        },
        {"role": "user", "content": "2 + 2?", "name": "ann"},
        {
            "role": "assistant",
            "content": "4",
            "reasoning": "add",
            "refusal": None,
            "annotations": [],
            "audio": None,
            "function_call": None,
            "tool_calls": None,
        },
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "No"}]},
    ]
    chat(serve_script(engine, template=template), messages=messages).raise_for_status()
    rendered = "".join(map(chr, engine.requests[0].prompt))
    assert rendered == "system||Be brief|\nuser|ann|2 + 2?|\nassistant||4|add\nassistant||No|\n"


def test_template_variables__are_the_clients(serve_script: Serve) -> None:
    engine = ScriptedEngine()
    url = serve_script(engine, template="{{ tone }}{{ depth + 1 }}")
    chat(url, chat_template_kwargs={"tone": "dry", "depth": 1}).raise_for_status()
    assert "".join(map(chr, engine.requests[0].prompt)) == "dry2"


def test_finish__length_stays_length_with_tools(serve_script: Serve) -> None:
    engine = ScriptedEngine(lambda _request: [Chunk("Well"), finished(FinishReason.LENGTH)])
    answer = chat(serve_script(engine), tools=TOOLS).json()["choices"][0]
    assert answer["finish_reason"] == "length"
    assert answer["message"]["content"] == "Well"


@pytest.mark.parametrize(
    ("body", "param", "said"),
    [
        ({"n": 0}, "n", "greater than or equal to 1"),
        ({"n": 17}, "n", "less than or equal to 16"),
        ({"n": "2"}, "n", "valid integer"),
        ({"max_tokens": 2.5}, "max_tokens", "valid integer"),
        ({"top_logprobs": 3}, "top_logprobs", "needs 'logprobs'"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "less than or equal to 20"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "'stream': true only"),
        ({"timeout": 4000}, "timeout", "less than or equal to 3600"),
        ({"stop": ["x" * 2000]}, "stop.0", "at most 1024"),
        ({"web_search_options": {}}, "web_search_options", "does not support"),
        ({"functions": []}, "functions", "does not support"),
        ({"modalities": ["audio"]}, "modalities.0", "'text'"),
        ({"response_format": {"type": "xml"}}, "response_format.type", "json_object"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema", "required"),
        ({"chat_template_kwargs": {"a": [1]}}, "chat_template_kwargs.a", "valid"),
        ({"chat_template_kwargs": {"messages": 1}}, "chat_template_kwargs", "not for clients"),
        ({"reasoning_budget": 1, "thinking_budget_tokens": 2}, "reasoning_budget_tokens", "several names"),
        ({"reasoning_budget": -2}, "reasoning_budget", "greater than or equal to -1"),
        ({"tools": [*TOOLS, TOOLS[0]]}, "tools", "two functions"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools.0.function.name", "match"),
        ({"tool_choice": "required"}, "tool_choice", "'tools' is empty"),
        (
            {"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "news"}}},
            "tool_choice",
            "'news'",
        ),
        ({"messages": [{"role": "user"}]}, "messages.0.content", "required"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0.tool_call_id", "required"),
        (
            {"messages": [{"role": "user", "content": "x", "tool_calls": []}]},
            "messages.0.tool_calls",
            "unknown",
        ),
    ],
)
def test_bad_field__is_named(scripted_url: str, body: dict[str, Any], param: str, said: str) -> None:
    response = chat(scripted_url, **body)
    assert response.status_code == 400
    error = response.json()["error"]
    assert error["param"] == param, error
    assert said in error["message"], error


NULLABLE = [
    name
    for names in (
        "audio frequency_penalty logit_bias logprobs max_completion_tokens max_tokens modalities moderation",
        "n presence_penalty reasoning_effort seed stop store stream stream_options temperature tool_choice",
        "tools top_logprobs top_p",
    )
    for name in names.split()
]


@pytest.mark.parametrize(
    "body",
    [
        {
            "metadata": {"a": "b"},
            "store": True,
            "service_tier": "auto",
            "safety_identifier": "x",
            "prompt_cache_key": "x",
            "prompt_cache_retention": "24h",
            "prompt_cache_options": {"mode": "implicit"},
            "verbosity": "low",
            "prediction": {"type": "content", "content": "x"},
            "modalities": ["text"],
        },
        dict.fromkeys(NULLABLE),
    ],
)
def test_field_without_meaning__is_taken(scripted_url: str, body: dict[str, Any]) -> None:
    assert chat(scripted_url, **body).json()["choices"][0]["message"]["content"] == "ok"


CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Paris"}}\n</tool_call>'
OTHER_CALL = '<tool_call>\n{"name": "time", "arguments": {"city": "Rome"}}\n</tool_call>'


def calls_of(told: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """Name and arguments of the calls in a stream, as a client puts them together."""
    calls: list[list[str]] = []
    for event in told:
        for delta in event["choices"][0]["delta"].get("tool_calls", []):
            if "id" in delta:
                assert delta["index"] == len(calls)
                assert (delta["type"], delta["id"][:5]) == ("function", "call_")
                calls.append([delta["function"]["name"], ""])
            calls[delta["index"]][1] += delta["function"]["arguments"]
    return [(name, arguments) for name, arguments in calls]


def test_tools__calls_are_found_whole_and_streamed(serve_script: Serve) -> None:
    engine = ScriptedEngine(says(*(Chunk(part) for part in f"Let me see.\n{CALL}\n{OTHER_CALL}")))
    url = serve_script(engine)
    choice = chat(url, tools=TOOLS).json()["choices"][0]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"].strip() == "Let me see."
    functions = [call["function"] for call in choice["message"]["tool_calls"]]
    assert [function["name"] for function in functions] == ["weather", "time"]
    assert [json.loads(function["arguments"]) for function in functions] == [
        {"city": "Paris"},
        {"city": "Rome"},
    ]
    told = events(chat(url, tools=TOOLS, stream=True))
    assert calls_of(told) == [(function["name"], function["arguments"]) for function in functions]
    assert told[-1]["choices"][0]["finish_reason"] == "tool_calls"
    assert engine.requests[0].constraint is None


def test_tools__answer_that_is_a_call_has_no_content(serve_script: Serve) -> None:
    message = chat(serve_script(ScriptedEngine(says(Chunk(CALL)))), tools=TOOLS).json()["choices"][0][
        "message"
    ]
    assert message["content"] is None
    assert len(message["tool_calls"]) == 1


def test_tools__one_call_where_one_is_wanted(serve_script: Serve) -> None:
    engine = ScriptedEngine(lambda _request: [Chunk(CALL + "\n" + OTHER_CALL)])
    url = serve_script(engine)
    choice = chat(url, tools=TOOLS, parallel_tool_calls=False).json()["choices"][0]
    assert [call["function"]["name"] for call in choice["message"]["tool_calls"]] == ["weather"]
    assert choice["finish_reason"] == "tool_calls"
    assert engine.cancelled == {0}, "it does not go on for nothing"


def test_tools__are_told_in_the_system_message_where_the_template_does_not(serve_script: Serve) -> None:
    engine = ScriptedEngine()
    url = serve_script(engine)
    system = {"role": "system", "content": "Be brief."}
    chat(url, messages=[system, *MESSAGES], tools=TOOLS).raise_for_status()
    chat(url, tools=TOOLS).raise_for_status()
    chat(url, tools=TOOLS, tool_choice="none").raise_for_status()
    prompts = ["".join(map(chr, request.prompt)) for request in engine.requests]
    assert prompts[0].startswith("system: Be brief.\n\n")
    assert all(prompt.count("system: ") == 1 and "Looks it up." in prompt for prompt in prompts[:2])
    assert prompts[2] == PROMPT


def test_tools__go_to_a_template_that_takes_them(serve_script: Serve) -> None:
    engine = ScriptedEngine()
    template = "{% for tool in tools %}{{ tool | tojson }}{% endfor %}<tool_call>"
    chat(serve_script(engine, template=template), tools=TOOLS).raise_for_status()
    rendered = "".join(map(chr, engine.requests[0].prompt))
    assert rendered == "".join(json.dumps(tool) for tool in TOOLS) + "<tool_call>"


@pytest.mark.parametrize(
    ("choice", "names"),
    [
        ("required", ["weather", "time"]),
        ({"type": "function", "function": {"name": "time"}}, ["time"]),
        (
            {
                "type": "allowed_tools",
                "allowed_tools": {
                    "mode": "required",
                    "tools": [{"type": "function", "function": {"name": "time"}}],
                },
            },
            ["time"],
        ),
    ],
)
def test_tool_choice__holds_the_answer_to_calls(serve_script: Serve, choice: Any, names: list[str]) -> None:
    engine = ScriptedEngine()
    wanted = {"type": "json_object"}
    chat(serve_script(engine), tools=TOOLS, tool_choice=choice, response_format=wanted).raise_for_status()
    constraint = engine.requests[0].constraint
    assert constraint is not None
    assert constraint.kind == "lark"
    assert [name for name in ("weather", "time") if f'\\"{name}\\"' in constraint.text] == names
    assert engine.checked == [constraint]


def test_tools_and_response_format__a_call_or_the_form(serve_script: Serve) -> None:
    engine = ScriptedEngine()
    wanted = {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA}}
    chat(serve_script(engine), tools=TOOLS, response_format=wanted).raise_for_status()
    constraint = engine.requests[0].constraint
    assert constraint is not None
    assert constraint.text.startswith("start: calls | form\nform: %json {")
    assert '"n": {"type": "integer"}' in constraint.text
    assert constraint.text.count("start:") == 1


def test_tool_results__reach_the_template(serve_script: Serve) -> None:
    engine = ScriptedEngine()
    history = [
        *MESSAGES,
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {
                    "id": "call_1",
                    "type": "function",
                    "function": {"name": "time", "arguments": '{"city": "Rome"}'},
                }
            ],
        },
        {"role": "tool", "tool_call_id": "call_1", "content": "noon"},
    ]
    chat(serve_script(engine), messages=history, tools=TOOLS).raise_for_status()
    rendered = "".join(map(chr, engine.requests[0].prompt))
    assert "Rome" in rendered
    assert "noon" in rendered


def nested(depth: int) -> str:
    return '{"a":' * depth + "1" + "}" * depth


@pytest.mark.parametrize(
    ("field", "status"),
    [
        ('"metadata": ' + nested(100_000), 400),
        ('"seed": ' + "9" * 5000, 400),
        ('"temperature": NaN', 400),
        ('"temperature": Infinity', 400),
        ('"chat_template_kwargs": {"a": NaN}', 200),
        ('"user": "\\ud800"', 400),
        ('"stop": ["\\ud800"]', 400),
        ('"response_format": {"type": "\\ud800"}', 400),
        ('"logit_bias": {"\\u0663": 1}', 400),
        ('"seed": -9223372036854775808, "n": 2', 200),
        ('"tools": [{"type": "function", "function": {"name": "f", "description": "\\ud800"}}]', 200),
    ],
)
def test_odd_json__breaks_nothing(scripted_url: str, field: str, status: int) -> None:
    body = f'{{"messages": [{{"role": "user", "content": "x"}}], {field}}}'
    headers = {"content-type": "application/json"}
    response = http.post(f"{scripted_url}/v1/chat/completions", content=body, headers=headers)
    assert response.status_code == status, response.text
    if status == 400:
        assert response.json()["error"]["type"] == "invalid_request_error"
