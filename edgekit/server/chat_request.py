"""From the body of a chat completion to the engine's requests."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from edgekit.engine.base import ReasoningRules, ReasoningTags, Request, Sampling
from edgekit.engine.reasoning import template_opens_reasoning
from edgekit.engine.text import adds_special
from edgekit.server.errors import ApiError
from edgekit.server.forms import form_of, tool_choice
from edgekit.server.model import LoadedModel
from edgekit.server.prompts import prepare_text, tokenize
from edgekit.server.schemas.base import GenerationBody
from edgekit.server.schemas.chat import ChatCompletionRequest, ChatPromptBody

__all__ = ["engine_requests", "render_prompt", "sampling_of"]

_EFFORT_SHARES: Final[Mapping[str, float]] = {
    "minimal": 0.1,
    "low": 0.2,
    "medium": 0.5,
    "high": 0.8,
    "xhigh": 0.95,
}
"""Share of the room for the answer that reasoning may take, as OpenRouter's API has it. "none" takes nothing
and "max" all."""


async def engine_requests(body: ChatCompletionRequest, model: LoadedModel, *, client: str) -> list[Request]:
    """What the engine is to do, once for each choice.

    Raises:
        ApiError: the model cannot chat, or the body asks for what cannot be done.
        ChatTemplateError: the model's template refuses the messages.
    """
    form = await form_of(body, model)
    text = render_prompt(body, model)
    tokens = tuple(await tokenize(text, model, add_special=adds_special(text, model.bos_text)))
    if not tokens:
        raise ApiError(
            400,
            "the model's chat template makes an empty prompt of these messages",
            param="messages",
            code="empty_prompt",
        )
    room = max(0, model.engine.context_tokens - len(tokens))
    limit = room if body.answer_limit is None else min(room, body.answer_limit)
    request = Request(
        prompt=tokens,
        max_tokens=body.answer_limit,
        sampling=sampling_of(body, model),
        stop=body.stops,
        client=client,
        deadline_s=body.timeout,
        top_logprobs=body.likely_tokens,
        reasoning=_reasoning_rules(body, model, text, limit, constrained=form is not None),
        constraint=form,
    )
    return seeded(request, body.choices)


def seeded(request: Request, choices: int) -> list[Request]:
    """The request once for each choice. Each has a seed of its own: the one that is given, the next, …"""
    seed = request.sampling.seed
    if seed is None or choices == 1:
        return [request] * choices
    return [
        replace(request, sampling=replace(request.sampling, seed=seed + index)) for index in range(choices)
    ]


def render_prompt(body: ChatPromptBody, model: LoadedModel) -> str:
    """The prompt's text.

    Raises:
        ApiError: the model has no chat template.
        ChatTemplateError: it refuses the messages.
    """
    if model.template is None:
        raise ApiError(
            400, f"the model '{model.name}' has no chat template", param="messages", code="no_chat_template"
        )
    rules, tools = body.tool_rules, model.tools
    messages = tools.template_messages([message.as_template_message() for message in body.messages])
    told: list[dict[str, Any]] | None = list(rules.tools) or None
    if told and not tools.template_takes_tools:
        messages = _with_system_text(messages, tools.system_text(told, tool_choice(body)))
        told = None
    variables: dict[str, Any] = {}
    if body.reasoning_effort is not None and body.reasoning_effort != "none":
        variables["reasoning_effort"] = body.reasoning_effort
    if not body.thinks:
        # The names that templates have for it: Qwen3's and most others', DeepSeek-V3.1's and Granite's.
        variables |= {"enable_thinking": False, "thinking": False}
    variables |= body.chat_template_kwargs or {}
    return prepare_text(model.template.render(messages, tools=told, **variables), model)


def sampling_of(body: GenerationBody, model: LoadedModel) -> Sampling:
    """How tokens are drawn: the model's own settings where the body says nothing.

    Raises:
        ApiError: `logit_bias` names a token that the model lacks.
    """
    given: dict[str, Any] = {
        name: value
        for name in (
            "temperature",
            "top_p",
            "top_k",
            "min_p",
            "seed",
            "presence_penalty",
            "frequency_penalty",
            "repeat_penalty",
        )
        if (value := getattr(body, name)) is not None
    }
    biases = {int(token): bias for token, bias in (body.logit_bias or {}).items()}
    for token in biases:
        if token >= model.facts.vocabulary:
            raise ApiError(
                400,
                f"'logit_bias': the model has {model.facts.vocabulary} tokens, and {token} is none of them",
                param="logit_bias",
            )
    return replace(model.sampling, logit_bias=biases, **given)


def _with_system_text(messages: list[dict[str, Any]], text: str) -> list[dict[str, Any]]:
    """The messages with a text added to the first, if that is the system's, or put before it."""
    if not text:
        return messages
    first = messages[0]
    if first["role"] == "system":
        return [{**first, "content": f"{first['content']}\n\n{text}".strip()}, *messages[1:]]
    return [{"role": "system", "content": text}, *messages]


def _reasoning_rules(
    body: ChatCompletionRequest, model: LoadedModel, prompt: str, room: int, *, constrained: bool
) -> ReasoningRules | None:
    """How reasoning is told from the answer. `room` is what both may have, in tokens.

    Where the template knows of no reasoning the model may still write the usual tags. Not where the answer
    has a form to follow: that holds from the first token on.
    """
    tags = model.reasoning_tags
    if tags is None and constrained:
        return None
    tags = tags or ReasoningTags()
    return ReasoningRules(
        tags, opened=template_opens_reasoning(prompt, tags), budget_tokens=_budget_tokens(body, room)
    )


def _budget_tokens(body: ChatCompletionRequest, room: int) -> int | None:
    if not body.thinks:
        return 0
    if body.budget_tokens is not None:
        return None if body.budget_tokens < 0 else body.budget_tokens
    share = _EFFORT_SHARES.get(body.reasoning_effort or "")
    return None if share is None else int(share * room)
