"""Messages as lines: for people, and as JSON for programs."""

from __future__ import annotations

import json
from datetime import datetime, timezone

from edgekit.fleet.subscriber import Received
from edgekit.telemetry.messages import Event, Status, Telemetry

__all__ = ["printable", "to_json", "to_line"]


def to_line(received: Received) -> str:
    """One line: when the device wrote it, which device, and the figures that are known."""
    message = received.message
    written = datetime.fromtimestamp(message.time_utc_ms / 1000, timezone.utc).strftime("%H:%M:%SZ")
    if isinstance(message, Status):
        parts = _status(message)
    elif isinstance(message, Telemetry):
        parts = _telemetry(message)
    else:
        parts = _event(message)
    text = "  ".join(part for part in parts if part)
    return f"{written}  {received.fleet}/{received.device}  {printable(text)}"


def printable(text: str) -> str:
    """The text without control characters: what comes from the network must not steer a terminal."""
    return "".join(character if character.isprintable() else "?" for character in text)


def to_json(received: Received) -> str:
    """The message as one line of JSON, beside its topic and whether the broker had kept it."""
    message = received.message.model_dump(mode="json", by_alias=True)
    return json.dumps({"topic": received.topic, "retained": received.retained, "message": message})


def _status(status: Status) -> list[str]:
    model = status.model
    return [
        f"{status.state} ({status.reason})",
        f"serves {model.name} release {model.release} ({model.digest[:12]})" if model else "serves nothing",
        f"on {status.board.model or status.board.family}" if status.board else "",
        f"edgekit {status.agent_version}",
    ]


def _telemetry(telemetry: Telemetry) -> list[str]:
    ttft, requests, memory = telemetry.ttft_s, telemetry.requests, telemetry.memory
    throttle = telemetry.throttle
    hottest = max(telemetry.temperatures_c.items(), key=lambda item: item[1], default=None)
    return [
        f"decode {_figure(telemetry.decode.tokens_per_s, '.1f')} tok/s",
        f"prefill {_figure(telemetry.prefill.tokens_per_s, '.1f')} tok/s",
        f"ttft p50 {_figure(ttft.p50, '.3f')} p95 {_figure(ttft.p95, '.3f')} s",
        f"requests {requests.active} active {requests.queued} queued {requests.finished} done",
        f"rss {_figure(_mib(memory.process_rss_bytes), '.0f')} MiB",
        f"free {_figure(_mib(memory.available_bytes), '.0f')} MiB",
        f"cpu {_figure(telemetry.cpu_percent, '.0f')} %",
        f"gpu {telemetry.gpu_percent:.0f} %" if telemetry.gpu_percent is not None else "",
        f"{hottest[0]} {hottest[1]:.1f} °C" if hottest else "",
        f"{telemetry.power_total_w:.1f} W" if telemetry.power_total_w is not None else "",
        f"{telemetry.tokens_per_joule:.2f} tok/J" if telemetry.tokens_per_joule is not None else "",
        f"THROTTLED {','.join(throttle.now)}" if throttle and throttle.now else "",
    ]


def _event(event: Event) -> list[str]:
    detail = " ".join(f"{name}={value}" for name, value in event.detail.items())
    return [f"{event.severity}: {event.event}", detail]


def _mib(size_bytes: int | None) -> float | None:
    return None if size_bytes is None else size_bytes / 1024**2


def _figure(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
