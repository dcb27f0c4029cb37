"""The messages, version 1. Each has a JSON Schema in schemas/, made from the model here.

A message says its version in `schema`. Adding a field makes a new version: readers refuse fields that they
do not know, and say which version they read.
"""

from __future__ import annotations

import json
from types import MappingProxyType
from typing import Annotated, Any, Final, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    ValidationError,
)

from edgekit.errors import TelemetryError
from edgekit.telemetry.topics import Kind

__all__ = [
    "MESSAGE_TYPES",
    "BoardInfo",
    "Event",
    "KvCells",
    "MemoryUse",
    "Message",
    "Prefill",
    "Quantiles",
    "Requests",
    "ServedModel",
    "Status",
    "Telemetry",
    "ThrottleState",
    "TokenRate",
    "decode_message",
    "encode_message",
    "json_schema",
]

_MAX_MESSAGE_BYTES: Final = 64 * 1024

UtcMs = Annotated[int, Field(ge=0, lt=253_402_300_800_000)]  # before the year 10000
Percent = Annotated[float, Field(ge=0, le=100)]


class _Part(BaseModel):
    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        populate_by_name=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
        json_schema_serialization_defaults_required=True,
        protected_namespaces=(),
    )


class ServedModel(_Part):
    """The bundle that a device serves."""

    name: str
    digest: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    """SHA-256 of the bundle's manifest, in hex."""
    release: NonNegativeInt
    """The bundle's release number: a later release has a larger one."""
    profile: str
    """Name of the device profile that the bundle was made for."""


class BoardInfo(_Part):
    """What the device is. Unknown is null."""

    family: Literal["jetson", "raspberry-pi", "host"]
    model: str | None = None
    system: str | None = None
    """Operating system and its release."""
    page_size_bytes: NonNegativeInt | None = None


class TokenRate(_Part):
    """Tokens, and how fast they were made or read while the engine worked on them."""

    tokens: NonNegativeInt
    """Tokens of the window, all streams together."""
    tokens_per_s: NonNegativeFloat | None
    """Tokens of the window by the time spent on them; null when there were none."""
    tokens_total: NonNegativeInt
    """Tokens since the engine started."""
    tokens_per_s_total: NonNegativeFloat | None
    """The same rate since the engine started."""


class Prefill(TokenRate):
    """Prompt tokens that were computed, and those that need not be."""

    cached_tokens: NonNegativeInt
    """Prompt tokens of the window that were found in the KV cache."""
    cached_tokens_total: NonNegativeInt


class Quantiles(_Part):
    """Seconds over the requests that ended in the window (nearest rank); null when there were none."""

    p50: NonNegativeFloat | None
    p95: NonNegativeFloat | None


class Requests(_Part):
    """Requests: now, in the window, and since the engine started."""

    active: NonNegativeInt
    queued: NonNegativeInt
    finished: NonNegativeInt
    cancelled: NonNegativeInt
    failed: NonNegativeInt
    finished_total: NonNegativeInt
    cancelled_total: NonNegativeInt
    failed_total: NonNegativeInt


class KvCells(_Part):
    """Cells of the KV cache, one a token."""

    used: NonNegativeInt
    total: NonNegativeInt


class MemoryUse(_Part):
    """Bytes. Unknown is null."""

    process_rss_bytes: NonNegativeInt | None = None
    """Memory of the serving process in RAM, the mapped model included."""
    process_private_bytes: NonNegativeInt | None = None
    """The same without mapped files."""
    used_bytes: NonNegativeInt | None = None
    """Of the whole device."""
    available_bytes: NonNegativeInt | None = None


class ThrottleState(_Part):
    """Why the device runs slower than it could."""

    now: tuple[str, ...]
    since_boot: tuple[str, ...] | None
    """null: the device keeps no record."""


class Message(_Part):
    """What all messages say about their sender."""

    fleet: str
    device: str
    time_utc_ms: UtcMs
    """Milliseconds since 1970-01-01T00:00:00Z by the device's clock, which may be wrong."""
    monotonic_ms: NonNegativeInt
    """Milliseconds of the device's monotonic clock, which restarts with each boot."""
    boot_id: str
    """Random name of the device's boot."""
    agent_version: str


class Status(Message):
    """Retained. Written when the device connects, when it shuts down, and by the broker when it is lost."""

    schema_id: Literal["edgekit.status/1"] = Field(default="edgekit.status/1", alias="schema")
    state: Literal["online", "offline"]
    reason: Literal["started", "reconnected", "shutdown", "connection lost"]
    """With "connection lost" the broker speaks, and the times are those of the device's last connecting."""
    started_utc_ms: UtcMs
    """When the agent started, by the device's clock at that time."""
    interval_s: PositiveFloat
    """Telemetry comes this often: a device that is silent for several intervals is not well."""
    model: ServedModel | None
    board: BoardInfo | None


class Telemetry(Message):
    """The figures of one window of time. Unknown, or nothing to measure in the window, is null."""

    schema_id: Literal["edgekit.telemetry/1"] = Field(default="edgekit.telemetry/1", alias="schema")
    seq: NonNegativeInt
    """One more with each telemetry or event message of a run of the agent. A new run starts higher than the
    last one of the same boot: (device, boot_id, seq) names one message."""
    window_s: NonNegativeFloat
    model: ServedModel | None
    decode: TokenRate
    prefill: Prefill
    busy_percent: Percent | None
    """Share of the window that the engine spent on decode and prefill steps."""
    ttft_s: Quantiles
    """Time to first token, from submission."""
    inter_token_s: Quantiles
    """Mean time between the tokens of a request."""
    requests: Requests
    kv_cells: KvCells | None
    memory: MemoryUse
    cpu_percent: Percent | None
    cpu_frequency_mhz: NonNegativeFloat | None
    gpu_percent: Percent | None
    temperatures_c: dict[str, float]
    """Degrees Celsius by sensor."""
    power_w: dict[str, float]
    """Watts by rail; rails may lie behind one another."""
    power_total_w: NonNegativeFloat | None
    """Mean watts over the window of all that the board's own meters cover."""
    tokens_per_joule: NonNegativeFloat | None
    """Tokens decoded in the window by the energy of the window."""
    power_mode: str | None
    throttle: ThrottleState | None
    dropped_messages: NonNegativeInt
    """Messages that the agent had to drop since it started because the broker was away for too long."""


class Event(Message):
    """Something happened."""

    schema_id: Literal["edgekit.event/1"] = Field(default="edgekit.event/1", alias="schema")
    seq: NonNegativeInt
    """As in telemetry messages."""
    event: Annotated[str, Field(pattern="^[a-z][a-z0-9_]{0,63}$")]
    """What happened, e.g. "throttle"."""
    severity: Literal["info", "warning", "error"]
    detail: dict[str, str | int | float | bool | None]


MESSAGE_TYPES: Final[MappingProxyType[Kind, type[Status] | type[Telemetry] | type[Event]]] = MappingProxyType(
    {"status": Status, "telemetry": Telemetry, "event": Event}
)


def encode_message(message: Message) -> bytes:
    """The message as JSON in UTF-8."""
    return message.model_dump_json(by_alias=True).encode()


def decode_message(kind: Kind, payload: bytes) -> Status | Telemetry | Event:
    """Read a message that came on a topic of the given kind.

    Raises:
        TelemetryError: it is too large, is not JSON, has another version, or does not follow the schema.
    """
    if len(payload) > _MAX_MESSAGE_BYTES:
        raise TelemetryError(f"a {kind} message of {len(payload)} bytes: more than {_MAX_MESSAGE_BYTES}")
    expected = f"edgekit.{kind}/1"
    try:
        message = MESSAGE_TYPES[kind].model_validate_json(payload, strict=True)
    except ValidationError as error:
        found = _schema_of(payload)
        if found is not None and found != expected:
            raise TelemetryError(
                f"a {kind} message of schema {found!r}; this edgekit reads {expected!r}",
                hint="use the same edgekit release on the desk and on the device",
            ) from None
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "message"
        more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
        raise TelemetryError(f"a {kind} message that is not valid: {where}: {first['msg']}{more}") from None
    if "schema_id" not in message.model_fields_set:
        raise TelemetryError(f"a {kind} message that is not valid: schema: Field required")
    return message


def _schema_of(payload: bytes) -> str | None:
    try:
        found = json.loads(payload)
    except (ValueError, RecursionError):
        return None
    schema = found.get("schema") if isinstance(found, dict) else None
    return schema[:64] if isinstance(schema, str) else None


def json_schema(kind: Kind) -> dict[str, Any]:
    """JSON Schema (draft 2020-12) of the messages of a kind. schemas/<kind>.schema.json holds the same."""
    schema = MESSAGE_TYPES[kind].model_json_schema(by_alias=True, mode="serialization")
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": f"urn:edgekit:schema:{kind}:1",
        **schema,
    }
