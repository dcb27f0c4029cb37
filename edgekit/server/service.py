"""The parts of a server, put together as the model comes up, and taken apart in order."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import ssl
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Final

import uvicorn
import uvloop

from edgekit.bundle.bundle import Bundle
from edgekit.engine.base import Engine
from edgekit.errors import EdgekitError, EngineError
from edgekit.profiles import ServeSettings
from edgekit.server.access import ApiKeys
from edgekit.server.app import create_app
from edgekit.server.connection import http_protocol
from edgekit.server.errors import ApiError
from edgekit.server.front import Manners, put_in_front
from edgekit.server.heartbeat import Heartbeat
from edgekit.server.loading import load_bundle
from edgekit.server.metrics import Metrics
from edgekit.server.model import LoadedModel, ModelSlot
from edgekit.server.proof import decode_one_token
from edgekit.server.reporting import LAST_WORDS_S, Reporter
from edgekit.server.systemd import Systemd
from edgekit.server.watchdog import StepWatchdog
from edgekit.telemetry.messages import ServedModel

__all__ = ["OpenBundle", "Service"]

log = logging.getLogger(__name__)

_FLUSH_S: Final = 5
"""How long connections may take to close once all requests have ended."""
_LAST_RESORT_S: Final = 30.0
"""How long the model and the broker may take after that; a native call may hang."""
_AT_ONCE_S: Final = 5.0
"""The same, when a second signal asks for an end at once."""

OpenBundle = Callable[[threading.Event], tuple[Bundle, ServeSettings]]


class _Server(uvicorn.Server):
    """uvicorn, but for signals: its own way cuts streams short, and then raises the signal again."""

    on_signal: Callable[[], None] = staticmethod(lambda: None)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.on_signal()


class Service:
    """A server from its first moment to its last.

    Args:
        open_bundle: see `run_server`.
        reporter: whom it tells how it does.
        manners: how clients are treated.
    """

    def __init__(self, open_bundle: OpenBundle, reporter: Reporter, manners: Manners) -> None:
        self._open_bundle = open_bundle
        self._reporter = reporter
        self._manners = manners
        self._begun_s = time.monotonic()
        self._served: ServedModel | None = None
        self._slot = ModelSlot(self._load, on_ready=self._on_ready, on_failure=self._on_failure)
        self._metrics = Metrics(self._slot)
        self._systemd = Systemd()
        self._watchdog: StepWatchdog | None = None
        self._last_resort: threading.Timer | None = None
        self._leave_at = 0.0
        """By the monotonic clock, when the last resort comes."""

    def serve(
        self,
        listening: socket.socket,
        host: str,
        *,
        keys: ApiKeys | None,
        tls: ssl.SSLContext | None,
        reload: Callable[[], None] | None,
    ) -> None:
        """Serve on a socket until a signal or a failure, which is raised.

        Args:
            listening: the socket.
            host: the name that it was bound to.
            keys: API keys; None asks for none.
            tls: None serves plain HTTP.
            reload: what SIGHUP does; None leaves the signal alone.
        """
        front, self._drain = put_in_front(
            create_app(self._slot, metrics=self._metrics, keys=keys),
            self._manners,
            hosts=(host, *self._manners.allow_hosts) if keys is None else None,
            on_drained=self._stop,
        )
        config = uvicorn.Config(
            front,
            http=http_protocol(self._manners.connections),
            ws="none",
            log_config=None,
            access_log=False,
            server_header=False,
            # Anybody on this machine could write the header that would say who he is.
            proxy_headers=False,
            timeout_graceful_shutdown=_FLUSH_S,
        )
        config.load()
        config.ssl = tls
        self._server = _Server(config)
        try:
            uvloop.run(self._run(listening, reload))
        finally:
            # uvicorn closes the slot, but not when it is stopped a second time.
            self._slot.close()
            if self._watchdog is not None:
                self._watchdog.stop()
            self._reporter.close()
            if self._last_resort is not None:
                self._last_resort.cancel()
        if self._slot.failure is not None:
            raise self._slot.failure

    async def _run(self, listening: socket.socket, reload: Callable[[], None] | None) -> None:
        self._loop = asyncio.get_running_loop()
        # A signal's handler may come between any two lines: what it asks for is left to the loop.
        self._server.on_signal = lambda: _on_loop(self._loop, self._on_signal)
        if reload is not None:
            self._loop.add_signal_handler(signal.SIGHUP, self._reload, reload)
        heartbeat = Heartbeat(self._systemd, self._ready_engine, max_step_s=self._manners.step_timeout_s)
        beating = asyncio.create_task(heartbeat.run())
        try:
            await self._server.serve(sockets=[listening])
        finally:
            beating.cancel()
            (end,) = await asyncio.gather(beating, return_exceptions=True)
            if isinstance(end, Exception):
                log.error("signs of life for systemd had ended", exc_info=end)

    # From the bundle to a model that answers. On the loading thread.

    def _load(self, stop: threading.Event) -> LoadedModel:
        self._systemd.status("checking the bundle")
        bundle, settings = self._open_bundle(stop)
        manifest = bundle.manifest
        self._served = ServedModel(
            name=manifest.name, digest=bundle.digest, release=manifest.release, profile=manifest.profile.name
        )
        log.info("loading %s", manifest.name)
        self._systemd.status(f"loading {manifest.name}")
        model = load_bundle(bundle, settings, stop=stop, on_engine_failure=self._on_engine_failure)
        self._watchdog = StepWatchdog(
            model.engine.step_age_s,
            limit_s=self._manners.step_timeout_s,
            on_stuck=self._on_stuck,
            grace_s=LAST_WORDS_S,
        )
        self._watchdog.start()
        try:
            self._systemd.status(f"trying {manifest.name}")
            decode_one_token(model.engine, timeout_s=self._manners.step_timeout_s)
        except BaseException:
            model.engine.close()
            raise
        return model

    def _on_ready(self, model: LoadedModel) -> None:
        assert self._served is not None, "the model comes from _load"
        served = self._served
        info = {"name": served.name, "release": str(served.release), "digest": served.digest}
        self._metrics.watch(model.engine, {**info, "profile": served.profile})
        self._reporter.start(model.engine, served)
        log.info("ready: %s after %.1f s", model.name, time.monotonic() - self._begun_s)
        self._systemd.ready(f"serving {model.name}")
        if model.engine.failure is not None:
            _on_loop(self._loop, self._stop)

    def _ready_engine(self) -> Engine | None:
        model = self._slot.model
        return None if model is None else model.engine

    def _on_failure(self, error: EdgekitError) -> None:
        self._systemd.status(f"failed: {error.message}")
        self._reporter.last_words("load_failed", error.message, self._served)
        _on_loop(self._loop, self._stop)

    # When something fails later. On the engine's thread, and on the watchdog's.

    def _on_engine_failure(self, error: EngineError) -> None:
        """The process ends, so that whoever watches it starts a new one."""
        if self._slot.model is None:
            return  # loading fails with it
        self._systemd.status(f"failed: {error.message}")
        self._reporter.event("engine_failed", {"message": error.message}, severity="error")
        _on_loop(self._loop, self._stop)

    def _on_stuck(self, age_s: float) -> None:
        message = f"a step of the engine has been running for {age_s:.0f} s"
        defect = ApiError(500, message, kind="server_error", code="engine_stuck")
        _on_loop(self._loop, lambda: self._drain.condemn(defect))
        self._systemd.status(message)
        self._reporter.last_words("engine_stuck", message, self._served)

    # The end, and what comes before it. On the loop.

    def _reload(self, reload: Callable[[], None]) -> None:
        log.info("SIGHUP: reading keys and certificate again")
        model = self._slot.model
        if model is None:
            reload()
            return
        self._systemd.reloading()
        reload()
        self._systemd.ready(f"serving {model.name}")

    def _on_signal(self) -> None:
        if self._drain.draining:
            log.warning("a second signal: %d requests are ended at once", self._drain.left)
            self._cut(leave_within_s=_AT_ONCE_S)
            return
        left, limit_s = self._drain.left, self._manners.drain_timeout_s
        if left:
            log.info("draining: %d requests are under way and have %g s", left, limit_s)
        self._systemd.stopping(
            f"draining: {left} requests are under way", within_s=limit_s + _FLUSH_S + _LAST_RESORT_S
        )
        self._reporter.event("draining", {"requests": left, "limit_s": limit_s}, severity="info")
        self._loop.call_later(limit_s, self._on_drain_timeout)
        self._drain.begin()

    def _on_drain_timeout(self) -> None:
        if self._drain.left:
            log.warning("%d requests are not done in time, and are ended", self._drain.left)
            self._cut(leave_within_s=_FLUSH_S + _LAST_RESORT_S)

    def _cut(self, *, leave_within_s: float) -> None:
        self._drain.cut()
        self._stop(leave_within_s)

    def _stop(self, leave_within_s: float = _FLUSH_S + _LAST_RESORT_S) -> None:
        """Let uvicorn end. From now on time runs: closing the model may wait for a call that hangs."""
        leave_at = time.monotonic() + leave_within_s
        self._server.should_exit = True
        if self._last_resort is not None:
            if leave_at >= self._leave_at:
                return  # it has been told to be quicker
            self._last_resort.cancel()
        self._leave_at = leave_at
        self._last_resort = threading.Timer(leave_within_s, _leave_at_once)
        self._last_resort.daemon = True
        self._last_resort.start()


def _on_loop(loop: asyncio.AbstractEventLoop, call: Callable[[], None]) -> None:
    """Have a call made on the loop; not if it has ended, when there is nothing left to be done."""
    with contextlib.suppress(RuntimeError):
        loop.call_soon_threadsafe(call)


def _leave_at_once() -> None:
    log.critical("the model or the broker does not let go: the process ends without them")
    os._exit(1)
