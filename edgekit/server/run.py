"""Runs the server: listens, loads the bundle, reports, and stops in order."""

from __future__ import annotations

import contextlib
import ctypes
import logging
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import uvicorn

from edgekit.bundle.bundle import Bundle
from edgekit.device.detect import open_sensors
from edgekit.errors import EdgekitError, EngineError, UsageError
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

__all__ = ["OpenBundle", "Reporting", "run_server"]

log = logging.getLogger(__name__)

_SHUTDOWN_S = 10
"""How long running answers may take to end after SIGTERM."""
_MAX_CONNECTIONS = 256
"""More than the engine queues; beyond it uvicorn answers 503."""
_M_TRIM_THRESHOLD = -1
"""malloc.h"""
_SWITCH_INTERVAL_S = 0.0005
"""The engine's thread waits for the interpreter after every step, at most this long (default: 5 ms)."""

OpenBundle = Callable[[threading.Event], tuple[Bundle, ServeSettings]]


@dataclass(frozen=True, slots=True)
class Reporting:
    """Where and as whom the server reports."""

    url: str
    fleet: str
    device: str
    interval_s: float

    def check(self) -> None:
        """Raise TelemetryError on what is not valid, before time goes into loading a model."""
        parse_broker_url(self.url).tls_context()
        check_name(self.fleet, what="fleet")
        check_name(self.device, what="device")


def run_server(
    open_bundle: OpenBundle,
    *,
    host: str,
    port: int,
    keys: ApiKeys | None = None,
    reporting: Reporting | None = None,
) -> None:
    """Serve until SIGTERM or SIGINT.

    Args:
        open_bundle: gives a verified bundle and the settings to serve it with. Called on a thread once the
            server listens, since checking a large bundle takes minutes; it should end early when the event
            is set.
        host, port: where to listen; port 0 takes a free one, which the log names.
        keys: API keys. Needed to listen on other than loopback addresses.
        reporting: None sends no telemetry.

    Raises:
        UsageError: the address is taken, or open to others without a key.
        EdgekitError: the model cannot be loaded, or its engine has stopped for good.
    """
    if keys is None and not is_loopback(host):
        raise UsageError(
            f"{host} can be reached from other machines, and no API key is set",
            hint="give --api-key-file FILE, or listen on 127.0.0.1",
        )
    if reporting is not None:
        reporting.check()
    sys.setswitchinterval(_SWITCH_INTERVAL_S)
    _give_back_freed_memory()
    with _listen(host, port) as listening:
        address = listening.getsockname()
        log.info(
            "listening on http://%s:%d", f"[{address[0]}]" if ":" in address[0] else address[0], address[1]
        )
        _Service(open_bundle, reporting).serve(listening, keys)


class _Service:
    """The parts that are put together as the model comes up, and taken apart at the end."""

    def __init__(self, open_bundle: OpenBundle, reporting: Reporting | None) -> None:
        self._open_bundle = open_bundle
        self._reporting = reporting
        self._begun_s = time.monotonic()
        self._served: ServedModel | None = None
        self._publisher: Publisher | None = None
        self._slot = ModelSlot(self._load, on_ready=self._on_ready, on_failure=self._on_failure)
        self._metrics = Metrics(self._slot)
        self._server: uvicorn.Server | None = None

    def serve(self, listening: socket.socket, keys: ApiKeys | None) -> None:
        """Serve on a socket until a signal or a failure, which is raised."""
        config = uvicorn.Config(
            create_app(self._slot, metrics=self._metrics, keys=keys),
            log_config=None,
            access_log=False,
            server_header=False,
            limit_concurrency=_MAX_CONNECTIONS,
            timeout_graceful_shutdown=_SHUTDOWN_S,
        )
        self._server = uvicorn.Server(config)
        # uvicorn raises the signal again once it has shut down: without handlers of ours, the process
        # would die there, before it has said its last word to the broker.
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda _number, _frame: self._stop())
        try:
            self._server.run(sockets=[listening])
        finally:
            # uvicorn closes the slot, but not when it is stopped a second time.
            self._slot.close()
            self._close_publisher()
        if self._slot.failure is not None:
            raise self._slot.failure

    def _stop(self) -> None:
        if self._server is not None:
            self._server.should_exit = True

    def _load(self, stop: threading.Event) -> LoadedModel:
        bundle, settings = self._open_bundle(stop)
        manifest = bundle.manifest
        self._served = ServedModel(
            name=manifest.name, digest=bundle.digest, release=manifest.release, profile=manifest.profile.name
        )
        log.info("loading %s", manifest.name)
        return load_bundle(bundle, settings, stop=stop, on_engine_failure=self._on_engine_failure)

    def _on_ready(self, model: LoadedModel) -> None:
        assert self._served is not None, "the model comes from _load"
        served = self._served
        info = {"name": served.name, "release": str(served.release), "digest": served.digest}
        self._metrics.watch(model.engine, {**info, "profile": served.profile})
        if self._reporting is not None:
            # A device that answers and does not report is better than one that does neither.
            try:
                self._publisher = _publisher(model, served, self._reporting)
                self._publisher.start()
            except Exception:
                log.exception("serving without telemetry")
        log.info("ready: %s after %.1f s", model.name, time.monotonic() - self._begun_s)

    def _on_failure(self, _error: EdgekitError) -> None:
        self._stop()

    def _on_engine_failure(self, error: EngineError) -> None:
        """Called on the engine's thread. The process ends, so that whoever watches it starts a new one."""
        if self._publisher is not None:
            try:
                self._publisher.event("engine_failed", {"message": error.message}, severity="error")
            except Exception:
                log.exception("the failure could not be reported")
        self._stop()

    def _close_publisher(self) -> None:
        if self._publisher is None:
            return
        try:
            self._publisher.close()
        except Exception:
            log.exception("telemetry did not end well")


def _publisher(model: LoadedModel, served: ServedModel, reporting: Reporting) -> Publisher:
    return Publisher(
        reporting.url,
        fleet=reporting.fleet,
        device=reporting.device,
        engine=model.engine,
        sensors=open_sensors(),
        model=served,
        interval_s=reporting.interval_s,
    )


def _give_back_freed_memory() -> None:
    """Keep glibc from hoarding: each large block that is freed raises the size below which it keeps them.

    Setting a threshold, even to its default, ends that (mallopt(3)). Other C libraries have no such habit.
    """
    with contextlib.suppress(AttributeError):
        ctypes.CDLL(None).mallopt(_M_TRIM_THRESHOLD, 128 * 1024)


def _listen(host: str, port: int) -> socket.socket:
    """A socket that listens, so that a taken port is our error and not a line in a log."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, kind, protocol)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        # Only one can listen, though two can be bound; and clients may connect from now on.
        listening.listen(_MAX_CONNECTIONS)
    except OSError as error:
        raise UsageError(
            f"cannot listen on {host}:{port}: {error.strerror or error}",
            hint="choose another --port or --host",
        ) from error
    return listening
