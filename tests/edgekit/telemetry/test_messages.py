from __future__ import annotations

import json
from importlib.resources import files
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from pydantic import ValidationError

from edgekit.errors import TelemetryError
from edgekit.telemetry.messages import (
    Event,
    MemoryUse,
    Message,
    Prefill,
    Quantiles,
    Requests,
    ServedModel,
    Status,
    Telemetry,
    ThrottleState,
    TokenRate,
    decode_message,
    encode_message,
    json_schema,
)
from edgekit.telemetry.topics import KINDS, Kind

SENDER: dict[str, Any] = {
    "fleet": "lab",
    "device": "pi-01",
    "time_utc_ms": 1_750_000_000_123,
    "monotonic_ms": 42_000,
    "boot_id": "5f6ac0a6-5d4e-4d6b-a8a5-3a5d1b0f8f0e",
    "agent_version": "0.1.0",
}
MODEL = ServedModel(name="student", digest="ab" * 32, release=20260101120000, profile="host")
STATUS = Status(
    **SENDER, state="online", reason="started", started_utc_ms=1, interval_s=10, model=MODEL, board=None
)
TELEMETRY = Telemetry(
    **SENDER,
    seq=7,
    window_s=10.0,
    model=MODEL,
    decode=TokenRate(tokens=0, tokens_per_s=None, tokens_total=0, tokens_per_s_total=None),
    prefill=Prefill(
        tokens=5,
        tokens_per_s=50.5,
        tokens_total=5,
        tokens_per_s_total=50.5,
        cached_tokens=1,
        cached_tokens_total=1,
    ),
    busy_percent=3.0,
    ttft_s=Quantiles(p50=0.1, p95=0.2),
    inter_token_s=Quantiles(p50=None, p95=None),
    requests=Requests(
        active=1,
        queued=0,
        finished=2,
        cancelled=0,
        failed=0,
        finished_total=2,
        cancelled_total=0,
        failed_total=0,
    ),
    kv_cells=None,
    memory=MemoryUse(process_rss_bytes=1000),
    cpu_percent=None,
    cpu_frequency_mhz=2400.0,
    gpu_percent=None,
    temperatures_c={"cpu": 61.5},
    power_w={"VDD_IN": 12.5},
    power_total_w=12.5,
    tokens_per_joule=None,
    power_mode="MAXN",
    throttle=ThrottleState(now=("undervoltage",), since_boot=None),
    dropped_messages=0,
)
EVENT = Event(
    **SENDER,
    seq=8,
    event="throttle",
    severity="warning",
    detail={"causes": "undervoltage", "n": 1, "x": None},
)
MESSAGES: list[tuple[Kind, Message]] = [("status", STATUS), ("telemetry", TELEMETRY), ("event", EVENT)]


def schema_file(kind: Kind) -> dict[str, Any]:
    text = files("edgekit.telemetry.schemas").joinpath(f"{kind}.schema.json").read_text(encoding="utf-8")
    loaded: dict[str, Any] = json.loads(text)
    return loaded


@pytest.mark.parametrize("kind", KINDS)
def test_schema_file__is_that_of_the_model(kind: Kind) -> None:
    assert schema_file(kind) == json_schema(kind), "run: python -m edgekit.telemetry.schemas"
    Draft202012Validator.check_schema(schema_file(kind))


@pytest.mark.parametrize(("kind", "message"), MESSAGES)
def test_message__follows_its_schema_and_comes_back_the_same(kind: Kind, message: Message) -> None:
    payload = encode_message(message)
    Draft202012Validator(schema_file(kind)).validate(json.loads(payload))
    assert json.loads(payload)["schema"] == f"edgekit.{kind}/1"
    assert decode_message(kind, payload) == message


@pytest.mark.parametrize(("kind", "message"), MESSAGES)
def test_schema__refuses_what_the_model_refuses(kind: Kind, message: Message) -> None:
    validator = Draft202012Validator(schema_file(kind))
    whole = json.loads(encode_message(message))
    changed = [{**whole, "unknown": 1}, {**whole, "schema": "edgekit.other/1"}, {**whole, "time_utc_ms": -1},
               {**whole, "boot_id": 5}]  # fmt: skip
    changed += [{name: value for name, value in whole.items() if name != left_out} for left_out in whole]
    for document in changed:
        assert not validator.is_valid(document)
        with pytest.raises(TelemetryError):
            decode_message(kind, json.dumps(document).encode())


@pytest.mark.parametrize(
    ("payload", "problem"),
    [
        (b"", "Invalid JSON"),
        (b"\xff\xfe", "Invalid JSON"),
        (b"[]", "telemetry message that is not valid"),
        (b"[" * 5000, "Invalid JSON"),
        (b'{"schema": "edgekit.telemetry/2"}', "'edgekit.telemetry/2'; this edgekit reads"),
        (b"x" * 70_000, "70000 bytes"),
        (encode_message(TELEMETRY).replace(b'"cpu":61.5', b'"cpu":NaN'), "finite"),
        (encode_message(TELEMETRY).replace(b'"seq":7', b'"seq":"7"'), "seq"),
    ],
)  # fmt: skip
def test_decode__says_what_is_wrong(payload: bytes, problem: str) -> None:
    with pytest.raises(TelemetryError) as caught:
        decode_message("telemetry", payload)
    assert problem in caught.value.message


def test_models__refuse_what_cannot_be() -> None:
    with pytest.raises(ValidationError):
        ServedModel(name="x", digest="not a digest", release=1, profile="host")
    with pytest.raises(ValidationError):
        Event(**SENDER, seq=1, event="Not a name", severity="info", detail={})
