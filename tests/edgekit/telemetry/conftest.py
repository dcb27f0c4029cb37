"""Real brokers, and an engine whose figures a test sets."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from edgekit.device import Readings
from edgekit.engine.base import EngineStats, Request, RequestRecord, Sink, Ticket


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def accepts(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


def wait_until(condition: Callable[[], object], timeout_s: float = 15.0) -> None:
    """Fails when `condition` does not come true in time."""
    end_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end_s, "the condition did not come true in time"
        time.sleep(0.01)


class Mosquitto:
    """A mosquitto of our own on a port of its own, to be stopped, killed, paused and started again."""

    def __init__(self, directory: Path, *lines: str) -> None:
        program = shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin")
        assert program, "these tests need mosquitto: apt-get install mosquitto"
        self._program = program
        self.port = free_port()
        self.url = f"mqtt://127.0.0.1:{self.port}"
        self._config = directory / "mosquitto.conf"
        self._log = directory / "mosquitto.log"
        if os.geteuid() == 0:  # else it becomes the user "mosquitto", who cannot read our files
            lines = ("user root", *lines)
        self._config.write_text("\n".join([f"listener {self.port} 127.0.0.1", *lines]) + "\n")
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [self._program, "-v", "-c", self._config], stdout=log, stderr=subprocess.STDOUT
            )
        wait_until(lambda: self.process.poll() is not None or accepts(self.port))
        assert self.process.poll() is None, self.log()

    @property
    def process(self) -> subprocess.Popen[bytes]:
        assert self._process is not None
        return self._process

    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def stop(self) -> None:
        """A clean end: sessions are saved where persistence is on."""
        self.process.terminate()
        self.process.wait(10)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def pause(self) -> None:
        """Connections stay open and nothing is answered: like a network that swallows packets."""
        self.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def close(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self.resume()
            self._process.terminate()
            try:
                self._process.wait(5)
            except subprocess.TimeoutExpired:
                self.kill()


class Amqtt:
    """amqtt, the broker in Python, in a thread. It speaks MQTT 3.1.1 only."""

    def __init__(self) -> None:
        self.port = free_port()
        self.url = f"mqtt://127.0.0.1:{self.port}"
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self._serve(),))

    async def _serve(self) -> None:
        from amqtt.broker import Broker

        broker = Broker(
            {
                "listeners": {"default": {"type": "tcp", "bind": f"127.0.0.1:{self.port}"}},
                "plugins": {"amqtt.plugins.authentication.AnonymousAuthPlugin": {"allow_anonymous": True}},
            }
        )
        await broker.start()
        self._ready.set()
        await self._stop.wait()
        await broker.shutdown()

    def start(self) -> None:
        self._thread.start()
        assert self._ready.wait(10)

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)
        assert not self._thread.is_alive()
        self._loop.close()


class StubEngine:
    """An engine that does nothing; a test sets its counters and ends its requests."""

    context_tokens = 2048

    def __init__(self) -> None:
        self.now = EngineStats()
        self._observers: list[Callable[[RequestRecord], None]] = []

    def submit(self, request: Request, sink: Sink) -> Ticket:
        raise NotImplementedError

    def tokenize(self, text: str, *, add_special: bool = False, parse_special: bool = True) -> list[int]:
        raise NotImplementedError

    def stats(self) -> EngineStats:
        return self.now

    def observe(self, observer: Callable[[RequestRecord], None]) -> None:
        self._observers.append(observer)

    def close(self) -> None:
        pass

    def finish(self, record: RequestRecord) -> None:
        """A request ends: its figures go to the counters and to the observers, as on an engine's thread."""
        self.now = replace(
            self.now,
            steps=self.now.steps + record.completion_tokens,
            prefill_tokens=self.now.prefill_tokens + record.prompt_tokens - record.cached_tokens,
            prefill_s=self.now.prefill_s + record.prefill_s,
            cached_tokens=self.now.cached_tokens + record.cached_tokens,
            decode_tokens=self.now.decode_tokens + max(0, record.completion_tokens - 1),
            decode_s=self.now.decode_s + record.decode_s,
            requests_finished=self.now.requests_finished + 1,
        )
        for observer in self._observers:
            observer(record)


class StubSensors:
    """Sensors that read what a test sets."""

    def __init__(self, readings: Readings | None = None) -> None:
        self.readings = readings or Readings()

    def read(self) -> Readings:
        return self.readings


@pytest.fixture
def make_mosquitto(tmp_path: Path) -> Iterator[Callable[..., Mosquitto]]:
    """Makes a mosquitto with the given lines of configuration; started by the test."""
    made: list[Mosquitto] = []

    def make(*lines: str) -> Mosquitto:
        directory = tmp_path / f"mosquitto-{len(made)}"
        directory.mkdir()
        made.append(Mosquitto(directory, *lines))
        return made[-1]

    yield make
    for broker in made:
        broker.close()


@pytest.fixture
def mosquitto(make_mosquitto: Callable[..., Mosquitto]) -> Mosquitto:
    broker = make_mosquitto("allow_anonymous true")
    broker.start()
    return broker


@pytest.fixture
def amqtt() -> Iterator[Amqtt]:
    broker = Amqtt()
    broker.start()
    yield broker
    broker.close()


@pytest.fixture
def engine() -> StubEngine:
    return StubEngine()


@pytest.fixture
def sensors() -> StubSensors:
    return StubSensors(
        Readings(cpu_percent=12.5, process_rss_bytes=150 * 1024**2, temperatures_c={"cpu": 61.5})
    )


@pytest.fixture
def record() -> RequestRecord:
    """100 prompt tokens, 60 of them cached, and 51 tokens in half a second."""
    return RequestRecord(
        prompt_tokens=100, cached_tokens=60, completion_tokens=51, queue_s=0.05, prefill_s=0.2, decode_s=0.5
    )
