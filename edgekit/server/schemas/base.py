"""What the bodies of several routes have in common."""

from __future__ import annotations

from typing import Annotated, Any, Final, TypeAlias

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

__all__ = ["MAX_CHOICES", "Body", "GenerationBody", "Ignored", "NotSupported", "StreamOptions"]

MAX_CHOICES: Final = 16
"""Answers to one request at most; each is a stream of its own."""
_MAX_STOPS = 16
_MAX_STOP_CHARACTERS = 1024
_MAX_BIASES = 300
"""OpenAI's limit; each costs time at every token."""
_MIN_TIMEOUT_S, _MAX_TIMEOUT_S = 0.001, 3600.0


def _refuse(value: Any) -> None:
    if value is not None:
        raise PydanticCustomError("not_supported", "this server does not support it")


Ignored: TypeAlias = Annotated[Any, Field(description="Taken and ignored: it has no meaning here.")]
NotSupported: TypeAlias = Annotated[
    None, BeforeValidator(_refuse), Field(description="Not supported: anything but null is refused.")
]


class Body(BaseModel):
    """A part of a request. Strict: a number in quotes is no number, as the schema says."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class StreamOptions(Body):
    """What a stream carries beside its text."""

    include_usage: bool | None = False
    include_obfuscation: Ignored = None
    """OpenAI's padding against traffic analysis."""


Seed: TypeAlias = Annotated[int, Field(ge=-(2**63), lt=2**64)]
Stop: TypeAlias = Annotated[str, Field(max_length=_MAX_STOP_CHARACTERS)]
Bias: TypeAlias = Annotated[float, Field(ge=-100, le=100)]
TokenText: TypeAlias = Annotated[str, Field(pattern=r"^[0-9]{1,10}$")]


class GenerationBody(Body):
    """The fields that every route that generates text takes."""

    model: str | None = None
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None

    max_tokens: Annotated[int, Field(ge=1)] | None = None
    stop: Stop | Annotated[list[Stop], Field(max_length=_MAX_STOPS)] | None = None
    seed: Seed | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0, lt=2**31)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    repeat_penalty: Annotated[float, Field(gt=0, le=2)] | None = None
    logit_bias: Annotated[dict[TokenText, Bias], Field(max_length=_MAX_BIASES)] | None = None

    timeout: Annotated[float, Field(ge=_MIN_TIMEOUT_S, le=_MAX_TIMEOUT_S)] | None = Field(
        None,
        description="Seconds from the request's arrival after which it fails with 504, as LiteLLM's proxy "
        "names it. Not OpenAI's.",
    )
    user: Annotated[str, Field(max_length=256)] | None = Field(
        None, description="Who asks, where one key stands for several. Users get their turns evenly."
    )

    @field_validator("logit_bias", mode="before")
    @classmethod
    def _token_ids(cls, value: Any) -> Any:
        if isinstance(value, dict):
            for key in value:
                if not (key.isascii() and key.isdigit() and len(key) <= 10):
                    raise ValueError(f"{key!r} is not a token id")
        return value

    @model_validator(mode="after")
    def _options_of_streams(self) -> GenerationBody:
        if self.stream_options is not None and not self.stream:
            raise ValueError("'stream_options' has a meaning with 'stream': true only")
        return self

    @property
    def choices(self) -> int:
        """Answers that are wanted for a prompt."""
        return self.n or 1

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop strings, however they were given."""
        if self.stop is None:
            return ()
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)

    @property
    def includes_usage(self) -> bool:
        """Whether a stream tells its usage before it ends."""
        return self.stream_options is not None and bool(self.stream_options.include_usage)
