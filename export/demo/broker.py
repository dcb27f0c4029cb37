"""A broker for the demo: mosquitto where it is installed, else amqtt, which is written in Python."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from edgekit.errors import MissingExtraError, TelemetryError

__all__ = ["DemoBroker", "free_port", "running_broker"]

_START_S = 15


@dataclass(frozen=True, slots=True)
class DemoBroker:
    """A broker that listens on loopback."""

    name: str
    """What it is, for the reader: "mosquitto (/usr/sbin/mosquitto)"."""
    url: str


@contextmanager
def running_broker(
    directory: Path, *, which: Callable[..., str | None] = shutil.which
) -> Iterator[DemoBroker]:
    """Run a broker as long as the block lasts.

    Args:
        directory: takes its configuration and log.
        which: finds programs, as `shutil.which` does.

    Raises:
        MissingExtraError: there is neither mosquitto nor amqtt.
        TelemetryError: it does not start.
    """
    port = free_port()
    url = f"mqtt://127.0.0.1:{port}"
    # Debian installs daemons where a user's PATH may not look.
    program = which("mosquitto") or which("mosquitto", path="/usr/sbin:/usr/local/sbin")
    if program is not None:
        with _mosquitto(program, port, directory):
            yield DemoBroker(f"mosquitto ({program})", url)
    else:
        with _amqtt(port):
            yield DemoBroker("amqtt, embedded: mosquitto is not installed", url)


def free_port() -> int:
    """A TCP port on loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def _mosquitto(program: str, port: int, directory: Path) -> Iterator[None]:
    configuration = directory / "mosquitto.conf"
    configuration.write_text(f"listener {port} 127.0.0.1\nallow_anonymous true\npersistence false\n", "utf-8")
    with (directory / "mosquitto.log").open("wb") as log:
        process = subprocess.Popen([program, "-c", str(configuration)], stdout=log, stderr=log)
        try:
            _wait_until_listening(port, lambda: process.poll() is None)
            yield
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@contextmanager
def _amqtt(port: int) -> Iterator[None]:
    try:
        from amqtt.broker import Broker
    except ImportError as error:
        raise MissingExtraError("amqtt", extra="fleet", feature="the demo's embedded broker") from error

    logging.getLogger("amqtt").setLevel(logging.ERROR)
    logging.getLogger("transitions").setLevel(logging.ERROR)
    loop = asyncio.new_event_loop()
    configuration = {
        "listeners": {"default": {"type": "tcp", "bind": f"127.0.0.1:{port}"}},
        "plugins": {"amqtt.plugins.authentication.AnonymousAuthPlugin": {"allow_anonymous": True}},
    }

    async def start() -> Broker:
        broker = Broker(configuration)
        await broker.start()
        return broker

    thread = threading.Thread(target=loop.run_forever, name="amqtt", daemon=True)
    thread.start()
    broker = asyncio.run_coroutine_threadsafe(start(), loop).result(_START_S)
    try:
        _wait_until_listening(port, thread.is_alive)
        yield
    finally:
        with contextlib.suppress(TimeoutError):
            asyncio.run_coroutine_threadsafe(broker.shutdown(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)


def _wait_until_listening(port: int, is_alive: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _START_S
    while time.monotonic() < deadline and is_alive():
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.05)
    raise TelemetryError(f"the broker does not listen on port {port}", hint="look at its log, or try again")
