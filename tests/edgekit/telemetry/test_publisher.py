"""On real brokers: mosquitto, and amqtt for MQTT 3.1.1."""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any, TypeAlias

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from edgekit.device import Board, Readings, Throttle
from edgekit.engine.base import RequestRecord
from edgekit.errors import TelemetryError
from edgekit.fleet.subscriber import FleetSubscriber, Received
from edgekit.telemetry import publisher as publisher_module
from edgekit.telemetry.connection import Backoff
from edgekit.telemetry.messages import Event, ServedModel, Status, Telemetry
from edgekit.telemetry.outbox import Outbox
from edgekit.telemetry.publisher import Clock, Publisher

# The classes of conftest.py, which tests cannot import.
Amqtt: TypeAlias = Any
Mosquitto: TypeAlias = Any
StubEngine: TypeAlias = Any
StubSensors: TypeAlias = Any

FAST = Backoff(first_s=0.05, longest_s=0.4)
MODEL = ServedModel(name="student", digest="ab" * 32, release=20260101120000, profile="host")
BOARD = Board("raspberry-pi", "Example Board", (), "Example Linux")


@pytest.fixture
def publish(engine: StubEngine, sensors: StubSensors) -> Iterator[Callable[..., Publisher]]:
    made: list[Publisher] = []

    def make(url: str, **changes: Any) -> Publisher:
        arguments: dict[str, Any] = {
            "fleet": "lab", "device": "pi-01", "engine": engine, "sensors": sensors, "model": MODEL,
            "board": BOARD, "interval_s": 0.1, "backoff": FAST,
        }  # fmt: skip
        made.append(Publisher(url, **{**arguments, **changes}))
        made[-1].start()
        return made[-1]

    yield make
    for publisher in made:
        publisher.close()


def next_of(
    subscriber: FleetSubscriber, kind: str, accept: Callable[[Any], bool] = lambda _: True
) -> Received:
    for received in subscriber.messages(timeout_s=20):
        if received.kind == kind and accept(received.message):
            return received
    raise AssertionError(f"no such {kind} message came")


def next_telemetry(
    subscriber: FleetSubscriber, accept: Callable[[Telemetry], bool] = lambda _: True
) -> Telemetry:
    message = next_of(subscriber, "telemetry", accept).message
    assert isinstance(message, Telemetry)
    return message


def next_status(subscriber: FleetSubscriber, accept: Callable[[Status], bool] = lambda _: True) -> Status:
    message = next_of(subscriber, "status", accept).message
    assert isinstance(message, Status)
    return message


def lines(caplog: pytest.LogCaptureFixture, part: str) -> list[str]:
    return [record.getMessage() for record in caplog.records if part in record.getMessage()]


def wait_until(condition: Callable[[], object], timeout_s: float = 20.0) -> None:
    end_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end_s, "the condition did not come true in time"
        time.sleep(0.01)


# --- what is published -------------------------------------------------------------------------------------


def test_birth__says_what_is_served_and_where(
    mosquitto: Mosquitto, publish: Callable[..., Publisher]
) -> None:
    publish(mosquitto.url, interval_s=60.0)
    with FleetSubscriber(mosquitto.url) as subscriber:
        received = next_of(subscriber, "status", lambda status: status.state == "online")
    status = received.message
    assert isinstance(status, Status)
    assert (received.fleet, received.device) == ("lab", "pi-01")
    assert status.reason == "started"
    assert status.model == MODEL
    assert status.board is not None
    assert (status.board.family, status.board.model) == ("raspberry-pi", "Example Board")
    assert status.board.page_size_bytes == os.sysconf("SC_PAGE_SIZE")
    assert status.interval_s == 60.0
    assert abs(status.time_utc_ms / 1000 - time.time()) < 60


def test_status__is_retained_for_those_who_come_later(
    mosquitto: Mosquitto, publish: Callable[..., Publisher]
) -> None:
    publisher = publish(mosquitto.url, interval_s=60.0)
    wait_until(lambda: publisher.is_online)
    with FleetSubscriber(mosquitto.url) as subscriber:
        assert next_of(subscriber, "status").retained
    publisher.close()
    with FleetSubscriber(mosquitto.url) as subscriber:
        received = next_of(subscriber, "status")
    assert isinstance(received.message, Status)
    assert received.retained
    assert (received.message.state, received.message.reason) == ("offline", "shutdown")


def test_telemetry__carries_the_window_and_the_device(
    mosquitto: Mosquitto, publish: Callable[..., Publisher], engine: StubEngine, record: RequestRecord
) -> None:
    with FleetSubscriber(mosquitto.url) as subscriber:
        publisher = publish(mosquitto.url)
        wait_until(lambda: publisher.is_online)
        engine.finish(record)
        message = next_telemetry(subscriber, lambda telemetry: telemetry.requests.finished == 1)
        idle = next_telemetry(subscriber)
    assert (message.decode.tokens, message.decode.tokens_per_s) == (50, 100.0)
    assert (message.prefill.tokens, message.prefill.tokens_per_s, message.prefill.cached_tokens) == (
        40,
        200.0,
        60,
    )
    assert (message.ttft_s.p50, message.ttft_s.p95) == (0.25, 0.25)
    assert message.inter_token_s.p50 == 0.01
    assert message.cpu_percent == 12.5
    assert message.memory.process_rss_bytes == 150 * 1024**2
    assert message.temperatures_c == {"cpu": 61.5}
    assert message.tokens_per_joule is None
    assert message.throttle is None
    assert message.model == MODEL
    assert 0.05 < message.window_s < 5
    # Nothing happened in the next window: no rate, not a rate of 0.
    assert (idle.decode.tokens, idle.decode.tokens_per_s, idle.ttft_s.p50) == (0, None, None)
    assert idle.decode.tokens_per_s_total == 100.0


def test_sequence__goes_up_by_one_and_restarts_higher(
    mosquitto: Mosquitto, publish: Callable[..., Publisher]
) -> None:
    with FleetSubscriber(mosquitto.url) as subscriber:
        first = publish(mosquitto.url)
        numbers = [next_telemetry(subscriber).seq for _ in range(4)]
        first.close()
        publish(mosquitto.url)
        next_status(subscriber, lambda status: status.state == "online" and status.reason == "started")
        later = next_telemetry(subscriber, lambda telemetry: telemetry.seq > numbers[-1] + 10)
    assert numbers == list(range(numbers[0], numbers[0] + 4))
    assert later.boot_id


def test_power__mean_over_the_window_gives_tokens_per_joule(
    mosquitto: Mosquitto, publish: Callable[..., Publisher], engine: StubEngine, record: RequestRecord
) -> None:
    class Meter:
        def read(self) -> Readings:
            return Readings(power_w={"VDD_IN": 10.0}, power_total_w=10.0)

        def read_power_w(self) -> float | None:
            return 10.0

    with FleetSubscriber(mosquitto.url) as subscriber:
        publish(mosquitto.url, sensors=Meter(), interval_s=0.3)
        engine.finish(record)
        message = next_telemetry(subscriber, lambda telemetry: telemetry.decode.tokens > 0)
    assert message.power_total_w == 10.0
    assert message.tokens_per_joule == pytest.approx(50 / (10.0 * message.window_s), abs=0.01)


def test_event__and_throttling_tells_itself_when_it_changes(
    mosquitto: Mosquitto, publish: Callable[..., Publisher], sensors: StubSensors
) -> None:
    with FleetSubscriber(mosquitto.url) as subscriber:
        publisher = publish(mosquitto.url)
        publisher.event("model_loaded", {"seconds": 1.5, "warm": True, "note": None})
        loaded = next_of(subscriber, "event").message
        sensors.readings = Readings(throttle=Throttle(now=("undervoltage",), since_boot=("undervoltage",)))
        began = next_of(subscriber, "event").message
        sensors.readings = Readings(throttle=Throttle(now=(), since_boot=("undervoltage",)))
        ended = next_of(subscriber, "event").message
    assert isinstance(loaded, Event)
    assert (loaded.event, loaded.severity) == ("model_loaded", "info")
    assert loaded.detail == {"seconds": 1.5, "warm": True, "note": None}
    assert isinstance(began, Event)
    assert (began.event, began.severity, began.detail["causes"]) == ("throttle", "warning", "undervoltage")
    assert isinstance(ended, Event)
    assert (ended.severity, ended.detail) == ("info", {"causes": "", "causes_before": "undervoltage"})


def test_close__publishes_what_the_last_window_had(
    mosquitto: Mosquitto, publish: Callable[..., Publisher], engine: StubEngine, record: RequestRecord
) -> None:
    with FleetSubscriber(mosquitto.url) as subscriber:
        publisher = publish(mosquitto.url, interval_s=60.0)
        wait_until(lambda: publisher.is_online)
        engine.finish(record)
        publisher.close()
        assert publisher.pending == 0
        assert next_telemetry(subscriber).requests.finished == 1
        assert next_status(subscriber).reason == "shutdown"


def test_clock__is_what_messages_are_stamped_with(
    mosquitto: Mosquitto, publish: Callable[..., Publisher]
) -> None:
    with FleetSubscriber(mosquitto.url) as subscriber:
        publish(mosquitto.url, clock=Clock(monotonic=lambda: 42.5, utc=lambda: 1e9), boot_id="a-boot")
        message = next_telemetry(subscriber)
    assert (message.time_utc_ms, message.monotonic_ms, message.boot_id) == (10**12, 42_500, "a-boot")
    assert message.window_s == 0.0


def test_sensor_that_fails__leaves_the_rest_of_the_message(
    mosquitto: Mosquitto,
    publish: Callable[..., Publisher],
    engine: StubEngine,
    record: RequestRecord,
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Broken:
        def read(self) -> Readings:
            raise OSError("the bus hangs")

    with FleetSubscriber(mosquitto.url) as subscriber:
        publish(mosquitto.url, sensors=Broken())
        engine.finish(record)
        message = next_telemetry(subscriber, lambda telemetry: telemetry.decode.tokens > 0)
        next_telemetry(subscriber)
    assert message.cpu_percent is None
    assert message.decode.tokens == 50
    assert len(lines(caplog, "the bus hangs")) == 1


def test_reading_that_cannot_be__leaves_the_rest_of_the_message(
    mosquitto: Mosquitto, publish: Callable[..., Publisher], caplog: pytest.LogCaptureFixture
) -> None:
    class Mad:
        def read(self) -> Readings:
            return Readings(cpu_percent=40.0, power_w={"VDD_IN": -5.0, "VDD_CPU": 2.0}, power_total_w=-5.0)

        def read_power_w(self) -> float | None:
            return -5.0

    with FleetSubscriber(mosquitto.url) as subscriber:
        publish(mosquitto.url, sensors=Mad())
        message = next_telemetry(subscriber)
        next_telemetry(subscriber)
    assert (message.cpu_percent, message.power_w, message.power_total_w) == (40.0, {"VDD_CPU": 2.0}, None)
    assert len(lines(caplog, "power_total_w has a value that cannot be")) == 1


# --- what goes wrong ---------------------------------------------------------------------------------------


def test_killed__the_broker_says_offline_on_the_same_topic(mosquitto: Mosquitto) -> None:
    program = """
import sys
from edgekit.device import HostSensors
from edgekit.engine.base import EngineStats
from edgekit.telemetry.publisher import Publisher

class Engine:
    def stats(self): return EngineStats()
    def observe(self, observer): pass

names = {"fleet": "lab", "device": "pi-01"}
Publisher(sys.argv[1], **names, engine=Engine(), sensors=HostSensors(), model=None).start()
sys.stdin.read()
"""
    with FleetSubscriber(mosquitto.url) as subscriber:
        child = subprocess.Popen([sys.executable, "-c", program, mosquitto.url], stdin=subprocess.PIPE)
        try:
            born = next_status(subscriber)
            child.send_signal(signal.SIGKILL)
            lost = next_of(subscriber, "status")
        finally:
            child.kill()
            child.communicate()
    assert born.state == "online"
    assert isinstance(lost.message, Status)
    assert (lost.message.state, lost.message.reason) == ("offline", "connection lost")
    assert lost.topic == "edgekit/v1/lab/pi-01/status"
    with FleetSubscriber(mosquitto.url) as late:
        assert next_status(late).state == "offline"


def test_broker_restart__messages_of_the_outage_arrive_in_order(
    make_mosquitto: Callable[..., Mosquitto],
    publish: Callable[..., Publisher],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "edgekit.telemetry")
    broker = make_mosquitto("allow_anonymous true", "persistence true", f"persistence_location {tmp_path}/")
    broker.start()
    # A session that the broker keeps: it collects messages while its client is away.
    desk = ["mosquitto_sub", "-p", str(broker.port), "-V", "5", "-c", "-i", "desk", "-x", "3600", "-q", "1"]
    desk += ["-t", "edgekit/v1/lab/+/event"]
    subprocess.run([*desk, "-E"], check=True)
    publisher = publish(broker.url, interval_s=60.0)
    wait_until(lambda: publisher.is_online)
    broker.stop()
    wait_until(lambda: not publisher.is_online)
    for number in range(50):
        publisher.event("during_outage", {"number": number})
    time.sleep(1.5)  # several tries to connect fail
    assert publisher.pending == 50
    broker.start()
    wait_until(lambda: publisher.pending == 0)
    done = subprocess.run([*desk, "-C", "50", "-W", "20"], check=True, capture_output=True)
    numbers = [json.loads(line)["detail"]["number"] for line in done.stdout.splitlines()]
    assert numbers == list(range(50))
    with FleetSubscriber(broker.url) as late:
        assert next_status(late).reason == "reconnected"
    # One line for the loss and one for the outage, however many tries it took.
    assert len(lines(caplog, "lost the broker")) == 1
    assert len(lines(caplog, "cannot reach the broker")) == 1


def test_broker_killed__comes_back_and_telemetry_goes_on(
    mosquitto: Mosquitto, publish: Callable[..., Publisher]
) -> None:
    publisher = publish(mosquitto.url)
    with FleetSubscriber(mosquitto.url, backoff=FAST) as subscriber:
        next_telemetry(subscriber)
        mosquitto.kill()
        wait_until(lambda: not publisher.is_online)
        mosquitto.start()
        # The subscriber comes back by itself as well.
        assert next_status(subscriber, lambda status: status.reason == "reconnected").state == "online"
        next_telemetry(subscriber)


def test_broker_absent_at_start__is_tried_for_until_it_comes(
    make_mosquitto: Callable[..., Mosquitto],
    publish: Callable[..., Publisher],
    engine: StubEngine,
    record: RequestRecord,
    caplog: pytest.LogCaptureFixture,
) -> None:
    broker = make_mosquitto("allow_anonymous true")
    began_s = time.monotonic()
    publisher = publish(broker.url)
    assert time.monotonic() - began_s < 1.0
    engine.finish(record)
    time.sleep(1.0)
    assert not publisher.is_online
    assert lines(caplog, "cannot reach the broker") == [
        f"cannot reach the broker {broker.url}: Connection refused; trying until it is back"
    ]
    broker.start()
    with FleetSubscriber(broker.url) as subscriber:
        assert next_status(subscriber).state == "online"
        next_telemetry(subscriber)


def test_close__without_a_broker_is_quick(
    make_mosquitto: Callable[..., Mosquitto], publish: Callable[..., Publisher]
) -> None:
    publisher = publish(make_mosquitto().url)
    time.sleep(0.2)
    began_s = time.monotonic()
    publisher.close()
    assert time.monotonic() - began_s < 2.0


def test_broker_that_hangs__does_not_slow_the_engine(
    mosquitto: Mosquitto, publish: Callable[..., Publisher], engine: StubEngine, record: RequestRecord
) -> None:
    outbox = Outbox(max_messages=100)
    publisher = publish(mosquitto.url, outbox=outbox, interval_s=0.01)
    wait_until(lambda: publisher.is_online)

    def measure() -> list[float]:
        # What the engine's thread does for telemetry when a request ends, and what an event costs its caller.
        times_s = []
        for _ in range(2000):
            began_s = time.perf_counter()
            engine.finish(record)
            times_s.append(time.perf_counter() - began_s)
            time.sleep(0.0002)
        return times_s

    before_s = measure()
    mosquitto.pause()
    try:
        hanging_s = measure()
        wait_until(lambda: outbox.dropped > 20)
        began_s = time.monotonic()
        publisher.event("still_here")
        assert time.monotonic() - began_s < 0.5
        assert len(outbox) <= 100
    finally:
        mosquitto.resume()
    # The medians are some microseconds; a wait for the network would be a thousand times that.
    assert statistics.median(hanging_s) < 3 * statistics.median(before_s) + 100e-6
    assert sorted(hanging_s)[int(0.99 * len(hanging_s))] < 0.05
    with FleetSubscriber(mosquitto.url) as subscriber:
        assert next_telemetry(subscriber, lambda message: message.dropped_messages > 20)


def test_close__of_a_broker_that_hangs_ends_in_time(
    mosquitto: Mosquitto, publish: Callable[..., Publisher]
) -> None:
    publisher = publish(mosquitto.url)
    wait_until(lambda: publisher.is_online)
    mosquitto.pause()
    began_s = time.monotonic()
    publisher.close(timeout_s=1.0)
    assert time.monotonic() - began_s < 4.0


def test_close__with_a_hanging_sensor_and_a_hanging_broker_ends_in_time(
    mosquitto: Mosquitto, publish: Callable[..., Publisher]
) -> None:
    hangs, goes_on = threading.Event(), threading.Event()

    class Hanging:
        def read(self) -> Readings:
            hangs.set()
            goes_on.wait(30)
            return Readings()

    publisher = publish(mosquitto.url, sensors=Hanging())
    wait_until(lambda: publisher.is_online and hangs.is_set())
    mosquitto.pause()
    began_s = time.monotonic()
    publisher.close(timeout_s=2.0)
    took_s = time.monotonic() - began_s
    goes_on.set()
    assert took_s < 3.5  # 2, and a tick of the connection


def test_close__with_a_hanging_sensor_still_says_offline(
    mosquitto: Mosquitto, publish: Callable[..., Publisher]
) -> None:
    hangs, goes_on = threading.Event(), threading.Event()

    class Hanging:
        def read(self) -> Readings:
            hangs.set()
            goes_on.wait(30)
            return Readings()

    with FleetSubscriber(mosquitto.url) as subscriber:
        publisher = publish(mosquitto.url, sensors=Hanging())
        wait_until(lambda: publisher.is_online and hangs.is_set())
        publisher.close(timeout_s=2.0)
        status = next_status(subscriber, lambda status: status.state == "offline")
    goes_on.set()
    assert status.reason == "shutdown"


def test_power__samples_are_bounded_while_windows_fail(
    mosquitto: Mosquitto,
    publish: Callable[..., Publisher],
    engine: StubEngine,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(publisher_module, "_MAX_POWER_SAMPLES", 8)
    sampled = 0

    class Meter:
        def read(self) -> Readings:
            return Readings()

        def read_power_w(self) -> float | None:
            nonlocal sampled
            sampled += 1
            return 10.0

    def fail() -> None:
        raise RuntimeError("no figures")

    monkeypatch.setattr(engine, "stats", fail)
    publisher = publish(mosquitto.url, sensors=Meter(), interval_s=0.01)
    wait_until(lambda: sampled > 30)
    assert len(publisher._power) == 8


def test_refused_topic__is_said_once_and_the_rest_goes_on(
    make_mosquitto: Callable[..., Mosquitto],
    publish: Callable[..., Publisher],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    (tmp_path / "acl").write_text("topic readwrite edgekit/v1/lab/pi-01/status\ntopic read edgekit/v1/#\n")
    broker = make_mosquitto("allow_anonymous true", f"acl_file {tmp_path / 'acl'}")
    broker.start()
    publisher = publish(broker.url)
    wait_until(lambda: lines(caplog, "does not take"))
    time.sleep(0.5)
    assert lines(caplog, "does not take") == [
        "the broker does not take messages on edgekit/v1/lab/pi-01/telemetry: Not authorized"
    ]
    assert publisher.is_online


def test_wrong_password__is_said_without_the_password(
    make_mosquitto: Callable[..., Mosquitto],
    publish: Callable[..., Publisher],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    passwords = tmp_path / "passwords"
    subprocess.run(["mosquitto_passwd", "-b", "-c", passwords, "pi", "right#/@"], check=True)
    broker = make_mosquitto("allow_anonymous false", f"password_file {passwords}")
    broker.start()
    address = broker.url.removeprefix("mqtt://")
    wrong = publish(f"mqtt://pi:SECRET@{address}")
    wait_until(lambda: lines(caplog, "Not authorized"))
    time.sleep(0.5)
    assert not wrong.is_online
    assert len(lines(caplog, "cannot reach the broker")) == 1
    assert "SECRET" not in caplog.text
    right = publish(f"mqtt://pi:right%23%2F%40@{address}", device="pi-02")
    wait_until(lambda: right.is_online)


def test_same_name_twice__is_said(
    mosquitto: Mosquitto, publish: Callable[..., Publisher], caplog: pytest.LogCaptureFixture
) -> None:
    first = publish(mosquitto.url)
    wait_until(lambda: first.is_online)
    publish(mosquitto.url)
    wait_until(lambda: len(lines(caplog, "calls itself 'edgekit-lab-pi-01', a name used twice?")) == 2)
    time.sleep(1.0)
    # Each of the two says so, once, and then no more.
    assert len(lines(caplog, "a name used twice?")) == 2
    assert len(lines(caplog, "lost the broker")) == 6


def test_arguments__that_cannot_be_are_refused(engine: StubEngine, sensors: StubSensors) -> None:
    good: dict[str, Any] = {
        "fleet": "lab",
        "device": "pi",
        "engine": engine,
        "sensors": sensors,
        "model": None,
    }
    bad: list[dict[str, Any]] = [
        {"fleet": "a/b"},
        {"device": "#"},
        {"interval_s": 0},
        {"interval_s": float("nan")},
    ]
    for changes in bad:
        with pytest.raises(TelemetryError):
            Publisher("mqtt://localhost", **{**good, **changes})
    with pytest.raises(TelemetryError):
        Publisher("localhost:1883", **good)


# --- other brokers -----------------------------------------------------------------------------------------


def test_mqtt_311_broker__is_used_with_one_line_in_the_log(
    amqtt: Amqtt,
    publish: Callable[..., Publisher],
    engine: StubEngine,
    record: RequestRecord,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "edgekit")
    with FleetSubscriber(amqtt.url) as subscriber:
        publisher = publish(amqtt.url)
        assert next_status(subscriber).state == "online"
        engine.finish(record)
        assert next_telemetry(subscriber, lambda telemetry: telemetry.decode.tokens > 0).decode.tokens == 50
        publisher.close()
        assert next_status(subscriber).reason == "shutdown"
    # One line of the publisher and one of the subscriber.
    assert len(lines(caplog, "does not speak MQTT 5: going on with MQTT 3.1.1")) == 2
    assert lines(caplog, "cannot reach") == []


def test_listener_that_says_nothing__is_left_and_tried_again(
    publish: Callable[..., Publisher], caplog: pytest.LogCaptureFixture
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        publisher = publish(f"mqtt://127.0.0.1:{silent.getsockname()[1]}")
        connects = []
        for _ in range(2):
            connection, _ = silent.accept()
            connects.append(connection.recv(4096))
            # It is the client that hangs up, after a few seconds.
            connection.settimeout(20)
            while connection.recv(4096):
                pass
            connection.close()
        assert not publisher.is_online
    # CONNECT of MQTT 5, then of 3.1.1.
    assert [packet[packet.index(b"MQTT") + 4] for packet in connects] == [5, 4]
    wait_until(lambda: lines(caplog, "the broker does not answer"))


def test_mosquitto__is_spoken_to_in_mqtt_5(mosquitto: Mosquitto, publish: Callable[..., Publisher]) -> None:
    publisher = publish(mosquitto.url)
    wait_until(lambda: publisher.is_online)
    # mosquitto logs "(p<version>, c<clean start>, k<keepalive>)": p5 is MQTT 5, p2 is 3.1.1.
    assert "as edgekit-lab-pi-01 (p5, c1, k30)" in mosquitto.log()


def certificate(
    directory: Path, name: str, issuer: tuple[x509.Certificate, ec.EllipticCurvePrivateKey] | None
) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.now(timezone.utc)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer[0].subject if issuer else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=5))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )
    signer = issuer[1] if issuer else key
    if issuer:
        names = x509.SubjectAlternativeName([x509.IPAddress(IPv4Address("127.0.0.1"))])
        authority = x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key())
        builder = builder.add_extension(names, critical=False).add_extension(authority, critical=False)
    else:
        usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
        builder = builder.add_extension(usage, critical=True)
    made = builder.sign(signer, hashes.SHA256())
    (directory / f"{name}.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    (directory / f"{name}.key.pem").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    return made, key


def test_tls__trusts_the_given_ca_and_no_other_and_shows_a_client_certificate(
    make_mosquitto: Callable[..., Mosquitto],
    publish: Callable[..., Publisher],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    authority = certificate(tmp_path, "authority", None)
    certificate(tmp_path, "server", authority)
    certificate(tmp_path, "client", authority)
    broker = make_mosquitto(
        "allow_anonymous true",
        f"cafile {tmp_path}/authority.pem",
        f"certfile {tmp_path}/server.pem",
        f"keyfile {tmp_path}/server.key.pem",
        "require_certificate true",
    )
    broker.start()
    address = broker.url.replace("mqtt://", "mqtts://")
    files = f"ca={tmp_path}/authority.pem&cert={tmp_path}/client.pem&key={tmp_path}/client.key.pem"
    with FleetSubscriber(f"{address}?{files}") as subscriber:
        publish(f"{address}?{files}")
        next_telemetry(subscriber)
        next_telemetry(subscriber)
    # The system's certificate authorities do not know ours.
    stranger = publish(address, device="pi-02")
    wait_until(lambda: lines(caplog, "cannot reach the broker"))
    assert "self-signed certificate in certificate chain" in lines(caplog, "cannot reach the broker")[0]
    assert not stranger.is_online


def test_mosquitto_sub__reads_the_messages(mosquitto: Mosquitto, publish: Callable[..., Publisher]) -> None:
    """A reader that shares no code with the publisher."""
    publish(mosquitto.url)
    done = subprocess.run(
        ["mosquitto_sub", "-p", str(mosquitto.port), "-V", "5", "-t", "edgekit/v1/lab/#", "-C", "3",
         "-W", "20", "-F", "%t %q %p"],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    topics = set()
    for line in done.stdout.splitlines():
        topic, qos, payload = line.split(" ", 2)
        topics.add(topic)
        assert json.loads(payload)["device"] == "pi-01"
        assert qos in "01"
    assert topics == {"edgekit/v1/lab/pi-01/status", "edgekit/v1/lab/pi-01/telemetry"}
