"""What a device draws while it works, where it has meters."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Final

from edgekit.device import PowerMeter, Sensors

__all__ = ["Energy", "metering"]

_EVERY_S: Final = 0.25
"""A Pi is asked through a process of its own: more often would be part of what is measured."""


class Energy:
    """Power readings over a time. Unknown is None."""

    def __init__(self) -> None:
        self._readings: list[tuple[float, float]] = []

    def note(self, at_s: float, power_w: float) -> None:
        """Add a reading; times rise."""
        self._readings.append((at_s, power_w))

    @property
    def joules(self) -> float | None:
        """The energy between the first reading and the last, power taken as straight between two."""
        if len(self._readings) < 2:
            return None
        return sum((b[0] - a[0]) * (a[1] + b[1]) / 2 for a, b in pairwise(self._readings))

    @property
    def power_w(self) -> float | None:
        """The mean power."""
        joules = self.joules
        if joules is None:
            return None
        seconds = self._readings[-1][0] - self._readings[0][0]
        return joules / seconds if seconds > 0 else None

    def per_joule(self, tokens_per_s: float) -> float | None:
        """Tokens a joule, at a throughput that was reached meanwhile."""
        return tokens_per_s / self.power_w if self.power_w else None


@contextmanager
def metering(
    sensors: Sensors | None,
    *,
    every_s: float = _EVERY_S,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[Energy]:
    """Read the power from the block's begin to its end. Without a meter, nothing is read.

    Args:
        sensors: of the machine that works. None: it is not this one.
    """
    energy = Energy()
    if sensors is None or _read_w(sensors) is None:
        yield energy
        return
    stop = threading.Event()

    def read() -> None:
        power_w = _read_w(sensors)
        if power_w is not None:
            energy.note(clock(), power_w)

    def watch() -> None:
        while not stop.wait(every_s):
            read()

    read()
    watcher = threading.Thread(target=watch, name="power", daemon=True)
    watcher.start()
    try:
        yield energy
    finally:
        stop.set()
        watcher.join()
        read()


def _read_w(sensors: Sensors) -> float | None:
    if isinstance(sensors, PowerMeter):
        return sensors.read_power_w()
    return sensors.read().power_total_w
