"""Body of POST /v1/chat/completions."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal, TypeAlias

from pydantic import Field, model_validator

from edgekit.server.schemas.base import Body, GenerationBody, Ignored, NotSupported
from edgekit.server.schemas.messages import ChatMessage
from edgekit.server.schemas.tools import Tool, ToolChoice, ToolRules

__all__ = [
    "ChatCompletionRequest",
    "ChatPromptBody",
    "JsonObjectFormat",
    "JsonSchemaFormat",
    "ReasoningEffort",
    "ResponseFormat",
]

_MAX_MESSAGES = 1024
_MAX_VARIABLES = 16
_RESERVED_VARIABLES: Final = frozenset(
    {"messages", "tools", "add_generation_prompt", "bos_token", "eos_token"}
)


class TextFormat(Body):
    """Any text."""

    type: Literal["text"]


class JsonObjectFormat(Body):
    """A JSON object, any or, as llama-server has it, by a schema."""

    type: Literal["json_object"]
    schema_: dict[str, Any] | None = Field(None, alias="schema")


class JsonSchema(Body):
    """A JSON Schema with a name. It is kept to in any case, whatever `strict` says."""

    name: Annotated[str, Field(min_length=1, max_length=64)]
    description: Ignored = None
    schema_: dict[str, Any] | None = Field(None, alias="schema")
    strict: bool | None = None


class JsonSchemaFormat(Body):
    """JSON by a schema."""

    type: Literal["json_schema"]
    json_schema: JsonSchema


ResponseFormat: TypeAlias = Annotated[
    TextFormat | JsonObjectFormat | JsonSchemaFormat, Field(discriminator="type")
]
ReasoningEffort: TypeAlias = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]
BudgetTokens: TypeAlias = Annotated[int, Field(ge=-1, lt=2**31)]
SameBudget: TypeAlias = Annotated[BudgetTokens, Field(description="Same as `reasoning_budget_tokens`.")]
VariableName: TypeAlias = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,63}$")]
Scalar: TypeAlias = Annotated[str, Field(max_length=4096)] | int | float | bool | None
TemplateVariables: TypeAlias = Annotated[dict[VariableName, Scalar], Field(max_length=_MAX_VARIABLES)]

_BUDGET_FIELDS: Final = (
    "reasoning_budget_tokens",  # llama-server
    "reasoning_budget",  # llama-server's option
    "thinking_budget_tokens",  # llama-server, after Anthropic's API
    "thinking_token_budget",  # vLLM
)


class ChatPromptBody(Body):
    """What the prompt of a chat is made of. Body of POST /apply-template."""

    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=_MAX_MESSAGES)]
    tools: Annotated[list[Tool], Field(max_length=128)] | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    chat_template_kwargs: TemplateVariables | None = Field(
        None, description="Variables of the model's chat template, e.g. `enable_thinking`."
    )
    reasoning_effort: ReasoningEffort | None = Field(
        None,
        description="How much of the room for the answer the reasoning may take: none 0, minimal 0.1, "
        "low 0.2, medium 0.5, high 0.8, xhigh 0.95, max all. The template is told as well.",
    )
    reasoning_budget_tokens: BudgetTokens | None = Field(
        None, description="Tokens of reasoning at most; -1 sets no limit. Goes before `reasoning_effort`."
    )
    reasoning_budget: SameBudget | None = None
    thinking_budget_tokens: SameBudget | None = None
    thinking_token_budget: SameBudget | None = None

    @model_validator(mode="after")
    def _consistent(self) -> ChatPromptBody:
        for name in self.chat_template_kwargs or {}:
            if name in _RESERVED_VARIABLES:
                raise ValueError(f"'chat_template_kwargs': {name!r} is not for clients to set")
        if len({value for field in _BUDGET_FIELDS if (value := getattr(self, field)) is not None}) > 1:
            raise ValueError("'reasoning_budget_tokens' is given under several names, with different values")
        self.tool_rules.check()
        return self

    @property
    def tool_rules(self) -> ToolRules:
        """Which tools may be called, and whether one must be."""
        return ToolRules.of(
            self.tools or [], self.tool_choice, parallel=self.parallel_tool_calls is not False
        )

    @property
    def budget_tokens(self) -> int | None:
        """The reasoning budget as given; -1 for none, None when nothing is said."""
        for field in _BUDGET_FIELDS:
            value: int | None = getattr(self, field)
            if value is not None:
                return value
        return None

    @property
    def thinks(self) -> bool:
        """Whether the model may reason at all."""
        if (self.chat_template_kwargs or {}).get("enable_thinking") is False or self.budget_tokens == 0:
            return False
        return self.reasoning_effort != "none" or self.budget_tokens is not None


class ChatCompletionRequest(GenerationBody, ChatPromptBody):
    """Body of POST /v1/chat/completions."""

    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    response_format: ResponseFormat | None = None
    modalities: list[Literal["text"]] | None = None

    metadata: Ignored = None
    prediction: Ignored = None
    prompt_cache_key: Ignored = None
    prompt_cache_options: Ignored = None
    prompt_cache_retention: Ignored = None
    safety_identifier: Ignored = None
    service_tier: Ignored = None
    store: Ignored = None
    verbosity: Ignored = None

    audio: NotSupported = None
    function_call: NotSupported = None
    functions: NotSupported = None
    moderation: NotSupported = None
    web_search_options: NotSupported = None

    @model_validator(mode="after")
    def _logprobs_first(self) -> ChatCompletionRequest:
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("'top_logprobs' needs 'logprobs': true")
        return self

    @property
    def answer_limit(self) -> int | None:
        """Tokens to generate at most, reasoning included; None leaves it to the context."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    @property
    def likely_tokens(self) -> int | None:
        """Likeliest tokens to tell beside each token; None tells nothing of its probability either."""
        return (self.top_logprobs or 0) if self.logprobs else None
