"""What the real openai client makes of the real server with the real student."""

from __future__ import annotations

import asyncio
import json
import math
import re
from collections.abc import Iterator
from typing import Literal

import httpx
import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam, ChatCompletionToolParam
from pydantic import BaseModel

QUESTION: list[ChatCompletionMessageParam] = [
    {"role": "user", "content": "What is the capital of France? Answer in one sentence."}
]
WEATHER: ChatCompletionToolParam = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 20}, "unit": {"enum": ["C", "F"]}},
            "required": ["city", "unit"],
            "additionalProperties": False,
        },
        "strict": True,
    },
}


class Animal(BaseModel):
    """What the student is to fill in."""

    kind: Literal["cat", "dog"]
    legs: int
    wild: bool


@pytest.fixture
def client(server_url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server_url}/v1", api_key="unused", max_retries=0) as client:
        yield client


def test_async__streams_side_by_side_do_not_mix(server_url: str) -> None:
    async def ask(client: openai.AsyncOpenAI, country: str) -> str:
        stream = await client.chat.completions.create(
            model="smollm2",
            messages=[{"role": "user", "content": f"What is the capital of {country}? One word."}],
            temperature=0,
            max_tokens=16,
            stream=True,
        )
        return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

    async def ask_all() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{server_url}/v1", api_key="unused", max_retries=0) as client:
            return await asyncio.gather(*(ask(client, name) for name in ("France", "Italy", "Germany")))

    for answer, city in zip(asyncio.run(ask_all()), ("Paris", "Rome", "Berlin"), strict=True):
        assert city in answer


def test_choices__of_one_seed_are_not_all_the_same(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="smollm2", messages=QUESTION, n=3, seed=5, temperature=1.5, max_tokens=8
    )
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert len({choice.message.content for choice in answer.choices}) > 1


def test_choices__share_one_prefill(client: openai.OpenAI, server_url: str) -> None:
    def prefilled() -> float:
        lines = httpx.get(f"{server_url}/metrics").text.splitlines()
        return float(
            next(line for line in lines if line.startswith("llamacpp:prompt_tokens_total")).split()[1]
        )

    before = prefilled()
    messages: list[ChatCompletionMessageParam] = [{"role": "user", "content": "An unheard-of question: " * 8}]
    answer = client.chat.completions.create(model="smollm2", messages=messages, n=3, max_tokens=2)
    assert answer.usage is not None
    assert answer.usage.prompt_tokens > 40
    # The prompt once, and its last token twice more: each choice draws from its own logits.
    assert prefilled() - before <= answer.usage.prompt_tokens + 2


def test_logprobs__are_probabilities_of_the_text(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="smollm2", messages=QUESTION, temperature=0, max_tokens=8, logprobs=True, top_logprobs=5
    )
    choice = answer.choices[0]
    assert choice.logprobs is not None
    assert choice.logprobs.content is not None
    assert "".join(entry.token for entry in choice.logprobs.content) == choice.message.content
    for entry in choice.logprobs.content:
        assert bytes(entry.bytes or []).decode() == entry.token
        assert len(entry.top_logprobs) == 5
        assert sum(math.exp(other.logprob) for other in entry.top_logprobs) <= 1.001
        assert entry.top_logprobs[0].token == entry.token, "the likeliest is drawn at temperature 0"


def test_logit_bias__can_force_a_token(client: openai.OpenAI, server_url: str) -> None:
    token = httpx.post(f"{server_url}/tokenize", json={"content": "yes"}).json()["tokens"][0]
    answer = client.chat.completions.create(
        model="smollm2", messages=QUESTION, temperature=0, max_tokens=2, logit_bias={str(token): 100}
    )
    assert answer.choices[0].message.content == "yesyes"


def test_parse__gives_the_model_that_was_asked_for(client: openai.OpenAI) -> None:
    answer = client.chat.completions.parse(
        model="smollm2",
        messages=[{"role": "user", "content": "Describe a house cat as JSON."}],
        response_format=Animal,
        temperature=0,
        max_tokens=64,
    )
    assert isinstance(answer.choices[0].message.parsed, Animal)


def test_json_object__is_one(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="smollm2",
        messages=[{"role": "user", "content": "List two colors as JSON."}],
        response_format={"type": "json_object"},
        temperature=0,
        max_tokens=96,
    )
    choice = answer.choices[0]
    assert (choice.message.content or "").lstrip().startswith("{")
    if choice.finish_reason == "stop":
        json.loads(choice.message.content or "")


def test_tools__required_call_follows_its_schema(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="smollm2",
        messages=[{"role": "user", "content": "What is the weather in Paris, in Celsius?"}],
        tools=[WEATHER],
        tool_choice="required",
        parallel_tool_calls=False,
        temperature=0,
        max_tokens=96,
    )
    choice = answer.choices[0]
    assert choice.finish_reason == "tool_calls"
    assert choice.message.tool_calls is not None
    (call,) = choice.message.tool_calls
    assert call.type == "function"
    assert call.function.name == "get_weather"
    arguments = json.loads(call.function.arguments)
    assert set(arguments) == {"city", "unit"}
    assert arguments["unit"] in ("C", "F")


def test_tools__streamed_call_and_the_turn_after_it(client: openai.OpenAI) -> None:
    messages: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Is it raining in Rome?"}]
    with client.chat.completions.stream(
        model="smollm2",
        messages=messages,
        tools=[WEATHER],
        tool_choice={"type": "function", "function": {"name": "get_weather"}},
        temperature=0,
        max_tokens=96,
    ) as stream:
        message = stream.get_final_completion().choices[0].message
    assert message.tool_calls is not None
    call = message.tool_calls[0]
    assert isinstance(call.function.parsed_arguments, dict)
    answer = client.chat.completions.create(
        model="smollm2",
        messages=[
            *messages,
            message,  # type: ignore[list-item]
            {"role": "tool", "tool_call_id": call.id, "content": '{"rain": true}'},
        ],
        tools=[WEATHER],
        tool_choice="none",
        max_tokens=8,
    )
    assert answer.choices[0].message.content
    assert answer.choices[0].message.tool_calls is None


def test_errors__are_the_clients_own_exceptions(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as overflow:
        client.chat.completions.create(
            model="smollm2", messages=[{"role": "user", "content": "word " * 2000}]
        )
    assert (overflow.value.code, overflow.value.param) == ("context_length_exceeded", "messages")
    assert re.search(r"has \d{4} tokens and the context holds 512", overflow.value.message)
    with pytest.raises(openai.NotFoundError, match="gpt-4o"):
        client.chat.completions.create(model="gpt-4o", messages=QUESTION)
    with pytest.raises(openai.InternalServerError, match=r"0\.001"):
        client.chat.completions.create(model="smollm2", messages=QUESTION, extra_body={"timeout": 0.001})


def test_models__are_listed_and_retrieved(client: openai.OpenAI) -> None:
    (model,) = client.models.list().data
    assert client.models.retrieve(model.id).id == model.id == "smollm2"
