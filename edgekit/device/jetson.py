"""NVIDIA Jetson: rails, GPU load, power mode and throttling, all from files.

Sources: NVIDIA's Jetson Linux Developer Guide, "Platform Power and Performance" (INA3221 rails, soctherm
overcurrent counters, thermal trip points, nvpmodel) and https://docs.kernel.org/hwmon/ina3221.html.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Final

from edgekit.device.sensors import HostSensors, Readings, Sensors, Throttle
from edgekit.device.sysfs import numbered, read_int, read_text

__all__ = ["JetsonSensors", "read_l4t_release", "read_power_mode"]

_GPU_LOAD_GLOBS: Final = (
    "sys/class/devfreq/*gpu*/device/load",  # JetPack 6: 17000000.gpu
    "sys/class/devfreq/*.g[apvm][0-9]*b/device/load",  # JetPack 5: 17000000.ga10b, gv11b, gp10b, gm20b
    "sys/devices/platform/bus@0/*.gpu/load",
    "sys/devices/platform/gpu.0/load",
    "sys/devices/gpu.0/load",
)
# The module's own input where it is measured (Orin NX and Nano, Xavier NX, Nano) …
_INPUT_RAILS: Final = ("VDD_IN", "POM_5V_IN")
# … else the rails that together make up the module (AGX Orin). VDDQ_VDD2_1V8AO, the memory's rail, is
# measured on its 5 V side, behind VIN_SYS_5V0: adding it would count it twice.
_MODULE_RAILS: Final = ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0")

# Counters of the chip "soctherm_oc".
_OVERCURRENT: Final = MappingProxyType(
    {"oc1": "undervoltage", "oc2": "overcurrent_average", "oc3": "overcurrent_peak"}
)


@dataclass(frozen=True, slots=True)
class _Rail:
    name: str
    millivolts: Path
    milliamperes: Path

    def read_w(self) -> float | None:
        millivolts, milliamperes = read_int(self.millivolts), read_int(self.milliamperes)
        if millivolts is None or milliamperes is None:
            return None
        return round(millivolts * milliamperes / 1e6, 3)


def read_l4t_release(root: Path = Path("/")) -> str | None:
    """The Jetson Linux release, e.g. "36.4.3", from /etc/nv_tegra_release."""
    match = re.match(
        r"# R(\d+) \(release\), REVISION: (\d+(?:\.\d+)*)", read_text(root / "etc/nv_tegra_release") or ""
    )
    return None if match is None else f"{match[1]}.{match[2]}"


def read_power_mode(root: Path = Path("/")) -> str | None:
    """The name of nvpmodel's mode, e.g. "MAXN", or its number when nvpmodel.conf does not name it."""
    status = re.search(r"\bpmode:(\d+)", read_text(root / "var/lib/nvpmodel/status") or "")
    if status is None:
        return None
    mode = int(status[1])
    for match in re.finditer(
        r"^\s*<\s*POWER_MODEL\s+ID=(\d+)\s+NAME=(\S+?)\s*>", read_text(root / "etc/nvpmodel.conf") or "", re.M
    ):
        if int(match[1]) == mode:
            return match[2]
    return str(mode)


class JetsonSensors:
    """A host's readings, plus rails, GPU load, power mode and throttle state."""

    def __init__(self, root: Path = Path("/"), *, host: Sensors | None = None) -> None:
        self._root = root
        self._host = host or HostSensors(root)
        self._rails = tuple(_find_rails(root))
        self._gpu_load = next((path for glob in _GPU_LOAD_GLOBS for path in sorted(root.glob(glob))), None)
        self._event_counts = dict(self._read_event_counts())

    def read(self) -> Readings:
        power_w = self._read_rails()
        return replace(
            self._host.read(),
            gpu_percent=self._read_gpu_percent(),
            power_w=power_w,
            power_total_w=_total_w(power_w),
            power_mode=read_power_mode(self._root),
            throttle=self._read_throttle(),
        )

    def read_power_w(self) -> float | None:
        """Total watts of the module now. None: no rail tells."""
        return _total_w(self._read_rails())

    def _read_rails(self) -> dict[str, float]:
        return {rail.name: watts for rail in self._rails if (watts := rail.read_w()) is not None}

    def _read_gpu_percent(self) -> float | None:
        per_mille = None if self._gpu_load is None else read_int(self._gpu_load)
        return None if per_mille is None else per_mille / 10

    def _read_throttle(self) -> Throttle | None:
        counts = dict(self._read_event_counts())
        alerts = dict(self._read_thermal_alerts())
        if not counts and not alerts:
            return None
        before, self._event_counts = self._event_counts, counts
        hot = tuple(f"thermal:{block}" for block, active in alerts.items() if active)
        rising = tuple(cause for cause, count in counts.items() if count > before.get(cause, 0))
        if not counts:
            return Throttle(now=hot)
        ever = tuple(cause for cause, count in counts.items() if count > 0)
        return Throttle(now=rising + hot, since_boot=ever + hot)

    def _read_event_counts(self) -> Iterator[tuple[str, int]]:
        for chip in numbered(self._root / "sys/class/hwmon", "hwmon"):
            if read_text(chip / "name") != "soctherm_oc":
                continue
            for prefix, cause in _OVERCURRENT.items():
                count = read_int(chip / f"{prefix}_event_cnt")
                if count is not None:
                    yield cause, count

    def _read_thermal_alerts(self) -> Iterator[tuple[str, bool]]:
        """Cooling devices like "cpu-throttle-alert": their state is not 0 while the block is slowed."""
        for device in numbered(self._root / "sys/class/thermal", "cooling_device"):
            kind = read_text(device / "type") or ""
            state = read_int(device / "cur_state")
            if state is not None and kind.endswith("-throttle-alert"):
                yield kind.removesuffix("-throttle-alert"), state > 0


def _find_rails(root: Path) -> Iterator[_Rail]:
    for chip in numbered(root / "sys/class/hwmon", "hwmon"):
        if read_text(chip / "name") != "ina3221":
            continue
        for channel in (1, 2, 3):  # 4 to 7 are shunt voltages and sums of these three
            label = read_text(chip / f"in{channel}_label")
            if label in (None, "NC") or read_int(chip / f"in{channel}_enable") == 0:
                continue
            if (chip / f"curr{channel}_input").exists():
                yield _Rail(str(label), chip / f"in{channel}_input", chip / f"curr{channel}_input")


def _total_w(power_w: dict[str, float]) -> float | None:
    for name in _INPUT_RAILS:
        if name in power_w:
            return power_w[name]
    if all(name in power_w for name in _MODULE_RAILS):
        return round(sum(power_w[name] for name in _MODULE_RAILS), 3)
    return None
