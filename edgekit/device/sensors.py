"""What sensors give, and the sensors that every Linux machine has."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Protocol, runtime_checkable

import psutil

from edgekit.device.sysfs import read_int, read_temperatures_c

__all__ = ["HostSensors", "PowerMeter", "Readings", "Sensors", "Throttle"]


def _nothing() -> Mapping[str, float]:
    return MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Throttle:
    """Why the device runs slower than it could.

    Causes: "undervoltage", "frequency_capped", "throttled", "soft_temperature_limit" (Raspberry Pi
    firmware); "undervoltage", "overcurrent_average", "overcurrent_peak", "thermal:<block>" (Jetson).
    """

    now: tuple[str, ...] = ()
    since_boot: tuple[str, ...] | None = None
    """Causes seen since the device started, those of now included. None: the device keeps no record."""


@dataclass(frozen=True, slots=True)
class Readings:
    """The state of a device at one moment. Unknown is None; a sensor that gave nothing is absent."""

    cpu_percent: float | None = None
    """Busy share of all cores together since the last reading, 0 to 100."""
    cpu_frequency_mhz: float | None = None
    gpu_percent: float | None = None
    memory_used_bytes: int | None = None
    """All memory less what is available."""
    memory_available_bytes: int | None = None
    """What programs could take without swapping."""
    process_rss_bytes: int | None = None
    """Memory of this process that is in RAM, mapped model files included."""
    process_private_bytes: int | None = None
    """The same without mapped files."""
    temperatures_c: Mapping[str, float] = field(default_factory=_nothing)
    """Degrees Celsius by sensor."""
    power_w: Mapping[str, float] = field(default_factory=_nothing)
    """Watts by rail. Rails may lie behind one another: do not add them up."""
    power_total_w: float | None = None
    """Watts of all that the board's own meters cover, each counted once."""
    power_mode: str | None = None
    """The board's power mode by name, e.g. "MAXN"."""
    throttle: Throttle | None = None


class Sensors(Protocol):
    """Reads a device."""

    def read(self) -> Readings:
        """The state now. Takes milliseconds; raises nothing for sensors that are absent or fail."""


@runtime_checkable
class PowerMeter(Protocol):
    """Sensors that can tell the power often: energy over a time is then more than two readings."""

    def read_power_w(self) -> float | None:
        """Total watts now. Cheap enough for once a second. None: not known."""


class HostSensors:
    """CPU, memory and temperatures of any Linux machine.

    Args:
        root: where sys/ is looked for. CPU and memory are those of the machine this runs on, always.
        process: the process to report on; this one by default.
    """

    def __init__(self, root: Path = Path("/"), *, process: psutil.Process | None = None) -> None:
        self._root = root
        self._process = process or psutil.Process()
        # psutil.cpu_percent() keeps the last times by thread and starts with 0: we keep our own.
        self._last_cpu_times = _busy_and_total_s()

    def read(self) -> Readings:
        memory = psutil.virtual_memory()
        rss_bytes, private_bytes = self._process_memory()
        return Readings(
            cpu_percent=self._cpu_percent(),
            cpu_frequency_mhz=self._cpu_frequency_mhz(),
            memory_used_bytes=memory.total - memory.available,
            memory_available_bytes=memory.available,
            process_rss_bytes=rss_bytes,
            process_private_bytes=private_bytes,
            temperatures_c=read_temperatures_c(self._root),
        )

    def _cpu_percent(self) -> float | None:
        busy_before_s, total_before_s = self._last_cpu_times
        self._last_cpu_times = busy_s, total_s = _busy_and_total_s()
        passed_s = total_s - total_before_s
        if passed_s <= 0:
            return None
        # The kernel's counters of idle time can step back a little.
        return round(min(100.0, max(0.0, 100 * (busy_s - busy_before_s) / passed_s)), 1)

    def _cpu_frequency_mhz(self) -> float | None:
        # One core stands for all: those of a cluster share a clock, and on mixed clusters the highest tells.
        khz = [
            value
            for path in self._root.glob("sys/devices/system/cpu/cpufreq/policy*/scaling_cur_freq")
            if (value := read_int(path)) is not None
        ]
        return max(khz) / 1000 if khz else None

    def _process_memory(self) -> tuple[int | None, int | None]:
        try:
            memory = self._process.memory_info()
        except psutil.Error:
            return None, None
        shared = getattr(memory, "shared", None)
        return memory.rss, None if shared is None else max(0, memory.rss - shared)


def _busy_and_total_s() -> tuple[float, float]:
    times = psutil.cpu_times()
    # Guest time is part of user time already.
    total_s = sum(times) - getattr(times, "guest", 0.0) - getattr(times, "guest_nice", 0.0)
    idle_s = times.idle + getattr(times, "iowait", 0.0)
    return total_s - idle_s, total_s
