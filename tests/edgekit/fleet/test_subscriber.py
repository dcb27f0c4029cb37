from __future__ import annotations

import json
import logging
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import pytest

from edgekit.errors import TelemetryError
from edgekit.fleet.subscriber import FleetSubscriber
from edgekit.telemetry.connection import Backoff
from edgekit.telemetry.messages import Event, encode_message

# The classes of the telemetry tests' conftest.py, which tests cannot import.
Amqtt: TypeAlias = Any
Mosquitto: TypeAlias = Any


def event(number: int, *, fleet: str = "lab", device: str = "pi-01") -> bytes:
    return encode_message(
        Event(
            fleet=fleet, device=device, time_utc_ms=1, monotonic_ms=1, boot_id="b", agent_version="0",
            seq=number, event="test", severity="info", detail={},
        )
    )  # fmt: skip


def send(port: int, topic: str, payload: bytes, *options: str) -> None:
    command = ["mosquitto_pub", "-p", str(port), "-q", "1", "-t", topic, "-s" if payload else "-n", *options]
    subprocess.run(command, input=payload, check=True, timeout=20)


def test_receive__gives_valid_messages_with_their_sender(mosquitto: Mosquitto) -> None:
    with FleetSubscriber(mosquitto.url) as subscriber:
        send(mosquitto.port, "edgekit/v1/lab/pi-01/event", event(7))
        received = subscriber.receive(timeout_s=10)
    assert received is not None
    assert (received.topic, received.kind) == ("edgekit/v1/lab/pi-01/event", "event")
    assert (received.fleet, received.device, received.retained) == ("lab", "pi-01", False)
    assert isinstance(received.message, Event)
    assert received.message.seq == 7


def test_receive__only_the_fleet_and_device_asked_for(mosquitto: Mosquitto) -> None:
    with (
        FleetSubscriber(mosquitto.url, fleet="lab") as lab,
        FleetSubscriber(mosquitto.url, device="pi-02") as one,
    ):
        for number, (fleet, device) in enumerate([("other", "pi-01"), ("lab", "pi-01"), ("other", "pi-02")]):
            send(
                mosquitto.port,
                f"edgekit/v1/{fleet}/{device}/event",
                event(number, fleet=fleet, device=device),
            )
        of_lab = [(received.fleet, received.device) for received in lab.messages(timeout_s=0.5)]
        of_one = [(received.fleet, received.device) for received in one.messages(timeout_s=0.5)]
    assert of_lab == [("lab", "pi-01")]
    assert of_one == [("other", "pi-02")]


def test_bad_messages__are_reported_and_do_not_end_the_watch(mosquitto: Mosquitto) -> None:
    reported: list[tuple[str, str]] = []
    with FleetSubscriber(mosquitto.url, on_rejected=lambda *report: reported.append(report)) as subscriber:
        port = mosquitto.port
        send(port, "edgekit/v1/lab/pi-01/event", b"not json")
        send(port, "edgekit/v1/lab/pi-01/event", json.dumps({"schema": "edgekit.event/9"}).encode())
        send(port, "edgekit/v1/lab/pi-01/unknown", event(1))
        send(port, "edgekit/v1/lab/pi-02/event", event(2, device="pi-01"))
        send(port, "edgekit/v1/lab/pi-01/event", event(3))
        received = subscriber.receive(timeout_s=10)
        assert subscriber.rejected == 4
    assert received is not None
    assert isinstance(received.message, Event)
    assert received.message.seq == 3
    topics = [topic for topic, _ in reported]
    problems = [problem for _, problem in reported]
    assert topics[0] == "edgekit/v1/lab/pi-01/event"
    assert "Invalid JSON" in problems[0]
    assert "'edgekit.event/9'; this edgekit reads 'edgekit.event/1'" in problems[1]
    assert "not a topic of edgekit/v1" in problems[2]
    assert "on another's topic" in problems[3]


def test_retained_message_that_was_cleared__is_no_message(mosquitto: Mosquitto) -> None:
    send(mosquitto.port, "edgekit/v1/lab/pi-01/status", b"{}", "-r")
    with FleetSubscriber(mosquitto.url) as subscriber:
        send(mosquitto.port, "edgekit/v1/lab/pi-01/status", b"", "-r")
        assert subscriber.receive(timeout_s=0.5) is None
        assert subscriber.rejected == 1


def test_slow_reader__loses_the_oldest_and_knows_how_many(mosquitto: Mosquitto) -> None:
    with FleetSubscriber(mosquitto.url, max_queued=3) as subscriber:
        for number in range(5):
            send(mosquitto.port, "edgekit/v1/lab/pi-01/event", event(number))
        end_s = time.monotonic() + 10
        while subscriber.dropped < 2 and time.monotonic() < end_s:
            time.sleep(0.01)
        kept = [received.message for received in subscriber.messages(timeout_s=0.2)]
    assert [message.seq for message in kept if isinstance(message, Event)] == [2, 3, 4]
    assert subscriber.dropped == 2


def test_messages__end_with_the_timeout_and_with_close(mosquitto: Mosquitto) -> None:
    subscriber = FleetSubscriber(mosquitto.url)
    with subscriber:
        began_s = time.monotonic()
        assert list(subscriber.messages(timeout_s=0.3)) == []
        assert 0.25 < time.monotonic() - began_s < 3
    assert list(subscriber) == []


def test_entering__without_a_broker_says_so_in_time(make_mosquitto: Callable[..., Mosquitto]) -> None:
    subscriber = FleetSubscriber(make_mosquitto().url, connect_timeout_s=0.6, backoff=Backoff(0.05, 0.1))
    began_s = time.monotonic()
    with pytest.raises(TelemetryError, match=r"cannot subscribe at mqtt://127.0.0.1:\d+: Connection refused"):
        subscriber.__enter__()
    assert 0.5 < time.monotonic() - began_s < 4


def test_entering__with_a_wrong_password_does_not_try_on(
    make_mosquitto: Callable[..., Mosquitto], tmp_path: Path
) -> None:
    passwords = tmp_path / "passwords"
    subprocess.run(["mosquitto_passwd", "-b", "-c", passwords, "desk", "right"], check=True)
    broker = make_mosquitto("allow_anonymous false", f"password_file {passwords}")
    broker.start()
    url = broker.url.replace("mqtt://", "mqtt://desk:WRONG@")
    began_s = time.monotonic()
    with pytest.raises(TelemetryError, match="Not authorized") as caught, FleetSubscriber(url):
        pass
    assert time.monotonic() - began_s < 5
    assert "WRONG" not in str(caught.value)


def test_amqtt__wrong_topics_aside_the_same(amqtt: Amqtt, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "edgekit")
    with FleetSubscriber(amqtt.url) as subscriber:
        send(amqtt.port, "edgekit/v1/lab/pi-01/event", event(7), "-V", "311")
        received = subscriber.receive(timeout_s=10)
    assert received is not None
    assert received.device == "pi-01"
    assert "going on with MQTT 3.1.1" in caplog.text
