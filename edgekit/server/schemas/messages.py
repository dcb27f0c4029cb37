"""The messages of a chat."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

from pydantic import Field

from edgekit.server.schemas.base import Body, Ignored, NotSupported

__all__ = ["AssistantMessage", "ChatMessage", "SystemMessage", "TextPart", "ToolMessage", "UserMessage"]

_MAX_PARTS = 1024
_MAX_CALLS = 128


class TextPart(Body):
    """A part of a message's content. Devices serve text models: other kinds are refused."""

    type: Literal["text"]
    text: str
    prompt_cache_breakpoint: Ignored = None

    @property
    def words(self) -> str:
        """The text."""
        return self.text


class RefusalPart(Body):
    """What an assistant would not do, as OpenAI's models say it."""

    type: Literal["refusal"]
    refusal: str

    @property
    def words(self) -> str:
        """The text."""
        return self.refusal


Text: TypeAlias = str | Annotated[list[TextPart], Field(max_length=_MAX_PARTS)]
AssistantPart: TypeAlias = Annotated[TextPart | RefusalPart, Field(discriminator="type")]


class CalledFunction(Body):
    """A function that the model called. `arguments` is JSON, as the model wrote it."""

    name: Annotated[str, Field(max_length=256)]
    arguments: str
    parsed_arguments: Ignored = None
    """Left there by the openai package's `parse()` and `stream()`, like `parsed` of a message."""


class ToolCall(Body):
    """A call that the model made."""

    id: Annotated[str, Field(max_length=256)]
    type: Literal["function"] = "function"
    function: CalledFunction
    index: Ignored = None
    """Its place in a stream: clients that put a message together from deltas leave it there."""


class _Message(Body):
    name: Annotated[str, Field(max_length=256)] | None = None

    def as_template_message(self) -> dict[str, Any]:
        """The message as chat templates expect it: content as one text."""
        raise NotImplementedError

    def _message(self, role: str, content: str) -> dict[str, Any]:
        message: dict[str, Any] = {"role": role, "content": content}
        if self.name is not None:
            message["name"] = self.name
        return message


class SystemMessage(_Message):
    """Instructions."""

    role: Literal["system", "developer"]
    content: Text

    def as_template_message(self) -> dict[str, Any]:
        return self._message("system", _joined(self.content))


class UserMessage(_Message):
    """What the user says."""

    role: Literal["user"]
    content: Text

    def as_template_message(self) -> dict[str, Any]:
        return self._message("user", _joined(self.content))


class AssistantMessage(_Message):
    """What the model said before."""

    role: Literal["assistant"]
    content: str | Annotated[list[AssistantPart], Field(max_length=_MAX_PARTS)] | None = None
    reasoning_content: str | None = Field(
        None, description="What this turn thought, as the server gave it out. Templates may leave it out."
    )
    reasoning: str | None = Field(None, description="The same under the name that other servers use.")
    refusal: str | None = None
    tool_calls: Annotated[list[ToolCall], Field(max_length=_MAX_CALLS)] | None = None
    annotations: Ignored = None
    parsed: Ignored = None
    audio: NotSupported = None
    function_call: NotSupported = None

    def as_template_message(self) -> dict[str, Any]:
        message = self._message("assistant", _joined(self.content) or self.refusal or "")
        thought = self.reasoning_content if self.reasoning_content is not None else self.reasoning
        if thought is not None:
            message["reasoning_content"] = thought
        if self.tool_calls:
            message["tool_calls"] = [
                {
                    "id": call.id,
                    "type": "function",
                    "function": {"name": call.function.name, "arguments": call.function.arguments},
                }
                for call in self.tool_calls
            ]
        return message


class ToolMessage(_Message):
    """What a tool answered."""

    role: Literal["tool"]
    content: Text
    tool_call_id: Annotated[str, Field(max_length=256)]

    def as_template_message(self) -> dict[str, Any]:
        return {**self._message("tool", _joined(self.content)), "tool_call_id": self.tool_call_id}


ChatMessage: TypeAlias = Annotated[
    SystemMessage | UserMessage | AssistantMessage | ToolMessage, Field(discriminator="role")
]


def _joined(content: str | list[TextPart] | list[TextPart | RefusalPart] | None) -> str:
    if isinstance(content, list):
        return "".join(part.words for part in content)
    return content or ""
