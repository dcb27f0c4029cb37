"""Runs the server: listens, loads the bundle, reports, and stops in order."""

from __future__ import annotations

import logging
import signal
import socket
import sys
import time
from dataclasses import dataclass

import uvicorn

from edgekit.bundle.bundle import Bundle
from edgekit.device.detect import open_sensors
from edgekit.errors import EdgekitError, UsageError
from edgekit.profiles import ServeSettings
from edgekit.server.access import ApiKeys, is_loopback
from edgekit.server.app import create_app
from edgekit.server.loading import load_bundle
from edgekit.server.metrics import Metrics
from edgekit.server.model import LoadedModel, ModelSlot
from edgekit.telemetry.address import parse_broker_url
from edgekit.telemetry.messages import ServedModel
from edgekit.telemetry.publisher import Publisher
from edgekit.telemetry.topics import check_name

__all__ = ["Reporting", "run_server"]

log = logging.getLogger(__name__)

_SHUTDOWN_S = 30
"""How long running answers may take to end after SIGTERM."""
_SWITCH_INTERVAL_S = 0.0005
"""The engine's thread waits for the interpreter after every step, at most this long (default: 5 ms)."""


@dataclass(frozen=True, slots=True)
class Reporting:
    """Where and as whom the server reports."""

    url: str
    fleet: str
    device: str
    interval_s: float

    def check(self) -> None:
        """Raise TelemetryError on what is not valid, before time goes into loading a model."""
        parse_broker_url(self.url)
        check_name(self.fleet, what="fleet")
        check_name(self.device, what="device")


def run_server(
    bundle: Bundle,
    settings: ServeSettings,
    *,
    host: str,
    port: int,
    keys: ApiKeys | None = None,
    reporting: Reporting | None = None,
) -> None:
    """Serve until SIGTERM or SIGINT.

    Args:
        bundle: a verified bundle.
        settings: threads, context and streams.
        host, port: where to listen; port 0 takes a free one, which the log names.
        keys: API keys. Needed to listen on other than loopback addresses.
        reporting: None sends no telemetry.

    Raises:
        UsageError: the address is taken, or open to others without a key.
        EdgekitError: the model cannot be loaded.
    """
    if keys is None and not is_loopback(host):
        raise UsageError(
            f"{host} can be reached from other machines, and no API key is set",
            hint="give --api-key-file FILE, or listen on 127.0.0.1",
        )
    if reporting is not None:
        reporting.check()
    sys.setswitchinterval(_SWITCH_INTERVAL_S)
    listening = _listen(host, port)
    begun = time.monotonic()
    publishers: list[Publisher] = []

    def on_ready(model: LoadedModel) -> None:
        metrics.watch(model.engine)
        if reporting is not None:
            publishers.append(_publisher(bundle, model, reporting))
            publishers[0].start()
        log.info("ready: %s after %.1f s", model.name, time.monotonic() - begun)

    def on_failure(error: EdgekitError) -> None:
        server.should_exit = True

    slot = ModelSlot(lambda: load_bundle(bundle, settings), on_ready=on_ready, on_failure=on_failure)
    manifest = bundle.manifest
    info = {
        "name": manifest.name,
        "release": str(manifest.release),
        "digest": bundle.digest,
        "profile": manifest.profile.name,
    }
    metrics = Metrics(slot, info)
    config = uvicorn.Config(
        create_app(slot, metrics=metrics, keys=keys),
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=_SHUTDOWN_S,
    )
    server = uvicorn.Server(config)

    def stop(_number: int, _frame: object) -> None:
        server.should_exit = True

    # uvicorn raises the signal again once it has shut down: without handlers of ours, the process would
    # die there, before it has said its last word to the broker.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    address = listening.getsockname()
    log.info("listening on http://%s:%d", f"[{address[0]}]" if ":" in address[0] else address[0], address[1])
    try:
        server.run(sockets=[listening])
    finally:
        for publisher in publishers:
            publisher.close()
        listening.close()
    if slot.failure is not None:
        raise slot.failure


def _publisher(bundle: Bundle, model: LoadedModel, reporting: Reporting) -> Publisher:
    manifest = bundle.manifest
    return Publisher(
        reporting.url,
        fleet=reporting.fleet,
        device=reporting.device,
        engine=model.engine,
        sensors=open_sensors(),
        model=ServedModel(
            name=manifest.name, digest=bundle.digest, release=manifest.release, profile=manifest.profile.name
        ),
        interval_s=reporting.interval_s,
    )


def _listen(host: str, port: int) -> socket.socket:
    """A socket that listens, so that a taken port is our error and not a line in a log."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, kind, protocol)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
    except OSError as error:
        raise UsageError(
            f"cannot listen on {host}:{port}: {error.strerror or error}",
            hint="choose another --port or --host",
        ) from error
    return listening
