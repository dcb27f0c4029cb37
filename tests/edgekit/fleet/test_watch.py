"""`edgekit fleet watch`, as a user runs it."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any, TypeAlias

import pytest

from edgekit.device import Readings, Throttle
from edgekit.engine.base import RequestRecord
from edgekit.telemetry.messages import ServedModel
from edgekit.telemetry.publisher import Publisher

Mosquitto: TypeAlias = Any
StubEngine: TypeAlias = Any
StubSensors: TypeAlias = Any


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    program = "from edgekit.cli.main import main; main()"
    return subprocess.run(
        [sys.executable, "-c", program, "fleet", "watch", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.fixture
def publisher(mosquitto: Mosquitto, engine: StubEngine, sensors: StubSensors) -> Iterator[Publisher]:
    model = ServedModel(name="student", digest="ab" * 32, release=20260101120000, profile="host")
    with Publisher(
        mosquitto.url,
        fleet="lab",
        device="pi-01",
        engine=engine,
        sensors=sensors,
        model=model,
        interval_s=0.2,
    ) as publisher:
        yield publisher


def test_watch__prints_a_line_per_message(
    mosquitto: Mosquitto,
    publisher: Publisher,
    engine: StubEngine,
    sensors: StubSensors,
    record: RequestRecord,
) -> None:
    sensors.readings = Readings(
        process_rss_bytes=150 * 1024**2,
        temperatures_c={"cpu": 61.5, "gpu": 48.0},
        throttle=Throttle(("undervoltage",)),
    )
    engine.finish(record)
    done = run(mosquitto.url, "--fleet", "lab", "--count", "4", "--timeout", "30")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    out = done.stdout.splitlines()
    assert len(out) == 4
    assert all("  lab/pi-01  " in line for line in out)
    assert "online (started)  serves student release 20260101120000 (abababababab)" in out[0]
    telemetry = next(line for line in out if "decode" in line)
    assert "rss 150 MiB" in telemetry
    assert "cpu 61.5 °C" in telemetry
    assert "THROTTLED undervoltage" in telemetry


def test_watch__json_is_one_document_a_line(mosquitto: Mosquitto, publisher: Publisher) -> None:
    publisher.event("test_event", {"text": "\x1b[31mred"})
    done = run(mosquitto.url, "--json", "--count", "2", "--timeout", "30")
    assert done.returncode == 0, done.stderr
    documents = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(documents) == 2
    assert documents[0]["topic"] == "edgekit/v1/lab/pi-01/status"
    assert documents[0]["retained"] is True
    assert documents[0]["message"]["schema"] == "edgekit.status/1"


def test_watch__control_characters_of_a_message_do_not_reach_the_terminal(mosquitto: Mosquitto) -> None:
    watching = threading.Thread(
        target=lambda: results.append(run(mosquitto.url, "--count", "1", "--timeout", "30")), daemon=True
    )
    results: list[subprocess.CompletedProcess[str]] = []
    watching.start()
    payload = {
        "schema": "edgekit.event/1", "fleet": "lab", "device": "pi-01", "time_utc_ms": 1, "monotonic_ms": 1,
        "boot_id": "b", "agent_version": "0", "seq": 1, "event": "test", "severity": "info",
        "detail": {"text": "\x1b[31mred"},
    }  # fmt: skip
    bad = {"\x1b[2J": 1, **payload}
    while watching.is_alive():
        for document in (bad, payload):
            command = ["mosquitto_pub", "-p", str(mosquitto.port), "-t", "edgekit/v1/lab/pi-01/event", "-s"]
            subprocess.run(command, input=json.dumps(document).encode(), check=True)
        watching.join(0.1)
    assert "info: test  text=?[31mred" in results[0].stdout
    assert "\x1b" not in results[0].stdout + results[0].stderr


def test_watch__too_few_messages_is_a_failure(mosquitto: Mosquitto) -> None:
    done = run(mosquitto.url, "--count", "1", "--timeout", "0.5")
    assert done.returncode == 1
    assert "0 of 1 messages came within 0.5 s" in done.stderr
    assert run(mosquitto.url, "--timeout", "0.5").returncode == 0


@pytest.mark.parametrize(
    ("url", "says"),
    [("http://broker", "is not the address of a broker"), ("mqtt://127.0.0.1:1", "Connection refused")],
)
def test_watch__bad_address_or_no_broker(url: str, says: str) -> None:
    done = run(url)
    assert done.returncode == 1
    assert says in done.stderr
    assert "Traceback" not in done.stderr


def test_watch__is_light_to_import() -> None:
    heavy = {"paho", "pydantic", "psutil", "edgekit.fleet.subscriber"}
    program = f"import sys, edgekit.cli.fleet; assert not {heavy} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)
