"""Tells systemd how the service does: sd_notify(3) over a datagram socket, without its library."""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Mapping
from typing import Final

__all__ = ["Systemd"]

log = logging.getLogger(__name__)

_SEND_TIMEOUT_S: Final = 1.0


class Systemd:
    """The service manager that started this process, if there is one. Without one, nothing is sent.

    Args:
        environ: NOTIFY_SOCKET names the socket, WATCHDOG_USEC the time between two signs of life at most, and
            WATCHDOG_PID the process that they are asked of (sd_watchdog_enabled(3)).
    """

    def __init__(self, environ: Mapping[str, str] = os.environ) -> None:
        self._address = _address(environ.get("NOTIFY_SOCKET", ""))
        self._watchdog_s = _watchdog_s(environ) if self._address is not None else None
        self._failed = False

    @property
    def present(self) -> bool:
        """Whether anybody listens."""
        return self._address is not None

    @property
    def watchdog_s(self) -> float | None:
        """Seconds between two signs of life at most; None when none are asked for."""
        return self._watchdog_s

    def status(self, text: str) -> None:
        """One line on what the service does, for `systemctl status`."""
        self._notify(STATUS=text)

    def ready(self, text: str) -> None:
        """The service does its work from now on, or does it again after `reloading`."""
        self._notify(READY="1", STATUS=text)

    def alive(self) -> None:
        """A sign of life for the watchdog."""
        self._notify(WATCHDOG="1")

    def reloading(self) -> None:
        """The configuration is being read again; `ready` follows."""
        self._notify(RELOADING="1", MONOTONIC_USEC=str(time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000))

    def stopping(self, text: str, *, within_s: float) -> None:
        """The service ends, and needs so long for it at most."""
        self._notify(STOPPING="1", STATUS=text, EXTEND_TIMEOUT_USEC=str(round(within_s * 1e6)))

    def extend(self, seconds: float) -> None:
        """What is under way needs at least so much time from now."""
        self._notify(EXTEND_TIMEOUT_USEC=str(round(seconds * 1e6)))

    def _notify(self, **fields: str) -> None:
        if self._address is None:
            return
        # A line break would begin a field of its own.
        message = "\n".join(f"{name}={' '.join(value.split())}" for name, value in fields.items())
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
                sender.settimeout(_SEND_TIMEOUT_S)
                sender.sendto(message.encode("utf-8", "replace"), self._address)
        except OSError as error:
            if not self._failed:
                log.warning("cannot tell systemd on %s: %s", os.fsdecode(self._address), error)
            self._failed = True


def _address(given: str) -> bytes | None:
    """A path, or a name in the abstract namespace, which begins with @ in the variable."""
    if given.startswith("@"):
        return b"\0" + os.fsencode(given[1:])
    return os.fsencode(given) if given.startswith("/") else None


def _watchdog_s(environ: Mapping[str, str]) -> float | None:
    usec, pid = environ.get("WATCHDOG_USEC", ""), environ.get("WATCHDOG_PID", "")
    if not usec.isdigit() or int(usec) == 0:
        return None
    if pid and pid != str(os.getpid()):
        return None
    return int(usec) / 1e6
