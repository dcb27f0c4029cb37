"""The request bodies of OpenAI's API that the server takes, and the answers it gives.

Reference: the OpenAI API's "Create chat completion". Fields that mean nothing on a device (`user`, `store`,
…) are taken and ignored; what would change the answer and is not supported is refused by name. Unknown
fields are refused too: a misspelt `max_token` should not be ignored silently.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

__all__ = ["ChatCompletionRequest", "ChatMessage", "StreamOptions"]

_MAX_STOPS = 16
_MAX_MESSAGES = 1024
_MAX_BIASES = 300
"""OpenAI's limit; each costs time at every token."""


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class TextPart(_Body):
    """A part of a message's content. Devices serve text models: other kinds are refused."""

    type: Literal["text"]
    text: str


class ChatMessage(_Body):
    """One message of a chat."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[TextPart] | None = None
    name: str | None = None
    reasoning_content: str | None = None
    """What an assistant turn thought, as this server gave it out. Templates may use it or leave it out."""
    reasoning: str | None = None
    """The same under the name that other servers use."""
    refusal: None = None
    tool_call_id: str | None = None

    def as_template_message(self) -> dict[str, Any]:
        """The message as chat templates expect it: content as one text."""
        content = self.content
        if isinstance(content, list):
            content = "".join(part.text for part in content)
        message: dict[str, Any] = {"role": self.role, "content": content or ""}
        if self.role == "developer":
            message["role"] = "system"
        if self.name is not None:
            message["name"] = self.name
        thought = self.reasoning_content or self.reasoning
        if thought is not None:
            message["reasoning_content"] = thought
        return message


class StreamOptions(_Body):
    """What a stream carries beside its text."""

    include_usage: bool = False
    include_obfuscation: bool = False
    """OpenAI's padding against traffic analysis. Taken and ignored."""


Ignored: TypeAlias = Any
"""A field that has no meaning here and is not looked at."""


class ChatCompletionRequest(_Body):
    """Body of POST /v1/chat/completions."""

    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=_MAX_MESSAGES)]
    model: str | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None

    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**64)] | None = None
    stop: str | Annotated[list[str], Field(max_length=_MAX_STOPS)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] = 0.0
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] = 0.0
    repeat_penalty: Annotated[float, Field(gt=0, le=2)] = 1.0
    logit_bias: (
        Annotated[dict[str, Annotated[float, Field(ge=-100, le=100)]], Field(max_length=_MAX_BIASES)] | None
    ) = None
    n: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    tools: list[Any] | None = None
    tool_choice: Any = None
    response_format: dict[str, Any] | None = None

    user: Ignored = None
    metadata: Ignored = None
    store: Ignored = None
    service_tier: Ignored = None
    safety_identifier: Ignored = None
    prompt_cache_key: Ignored = None
    parallel_tool_calls: Ignored = None
    reasoning_effort: Ignored = None
    verbosity: Ignored = None

    @field_validator("logit_bias")
    @classmethod
    def _token_ids(cls, value: dict[str, float] | None) -> dict[str, float] | None:
        for key in value or {}:
            if not key.isascii() or not key.isdigit() or int(key) >= 2**31:
                raise ValueError(f"{key!r} is not a token id")
        return value

    @model_validator(mode="after")
    def _supported_only(self) -> ChatCompletionRequest:
        refused = {
            "n": self.n not in (None, 1),
            "logprobs": bool(self.logprobs) or bool(self.top_logprobs),
            "tools": bool(self.tools) or self.tool_choice not in (None, "none", "auto"),
            "response_format": (self.response_format or {}).get("type", "text") != "text",
        }
        for field, present in refused.items():
            if present:
                raise ValueError(f"'{field}' is not supported by this server")
        return self

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop strings, however they were given."""
        if self.stop is None:
            return ()
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)

    @property
    def answer_limit(self) -> int | None:
        """Tokens to generate at most; None leaves it to the context."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens
