"""What the server tells a broker: how it serves, and why it does not."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from typing import Final

from edgekit.device.detect import open_sensors
from edgekit.engine.base import Engine
from edgekit.telemetry.address import parse_broker_url
from edgekit.telemetry.messages import ServedModel
from edgekit.telemetry.publisher import Detail, Publisher, Severity
from edgekit.telemetry.topics import check_name

__all__ = ["LAST_WORDS_S", "Reporter", "Reporting"]

log = logging.getLogger(__name__)

LAST_WORDS_S: Final = 5.0
"""How long a broker may take to hear why the process ends."""


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


class Reporter:
    """Reports, if that is wanted. Whatever goes wrong with it is logged, and the server goes on.

    A device that answers and does not report is better than one that does neither.

    Args:
        reporting: None reports nothing.
    """

    def __init__(self, reporting: Reporting | None) -> None:
        self._reporting = reporting
        self._publisher: Publisher | None = None

    def start(self, engine: Engine | None, served: ServedModel | None) -> None:
        """Connect, and report on an engine, if there is one."""
        if self._reporting is None:
            return
        try:
            publisher = Publisher(
                self._reporting.url,
                fleet=self._reporting.fleet,
                device=self._reporting.device,
                engine=engine,
                sensors=open_sensors(),
                model=served,
                interval_s=self._reporting.interval_s,
            )
            publisher.start()
            self._publisher = publisher
        except Exception:
            log.exception("serving without telemetry")

    def event(self, name: str, detail: Detail, *, severity: Severity) -> None:
        """Tell that something happened. Returns at once."""
        if self._publisher is None:
            return
        try:
            self._publisher.event(name, detail, severity=severity)
        except Exception:
            log.exception("'%s' could not be reported", name)

    def last_words(self, name: str, message: str, served: ServedModel | None) -> None:
        """Tell why the process ends. Waits until the broker has it, for seconds at most."""
        if self._publisher is None:
            self.start(None, served)
        if self._publisher is None:
            return
        self.event(name, {"message": message}, severity="error")
        until_s = time.monotonic() + LAST_WORDS_S
        while self._publisher.pending and time.monotonic() < until_s:
            time.sleep(0.02)

    def close(self) -> None:
        """Say farewell."""
        if self._publisher is None:
            return
        try:
            self._publisher.close()
        except Exception:
            log.exception("telemetry did not end well")
