"""Raspberry Pi: throttling and undervoltage from the firmware, and the rails that a Pi 5 measures.

Sources: https://www.raspberrypi.com/documentation/computers/os.html (vcgencmd, get_throttled) and the
kernel's drivers/hwmon/raspberrypi-hwmon.c. The firmware is asked through `vcgencmd`, for which the user
must be in the group `video`.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Final

from edgekit.device.sensors import HostSensors, Readings, Sensors, Throttle
from edgekit.device.sysfs import numbered, read_int, read_text

__all__ = ["RaspberryPiSensors", "parse_pmic", "parse_throttled"]

# Bit of get_throttled to cause; the same cause 16 bits higher means "since boot".
_CAUSES: Final = MappingProxyType(
    {0: "undervoltage", 1: "frequency_capped", 2: "throttled", 3: "soft_temperature_limit"}
)
_SINCE_BOOT_SHIFT: Final = 16
_TIMEOUT_S: Final = 2.0

Vcgencmd = Callable[[str], "str | None"]
"""Runs a vcgencmd command and gives its output, or None when that is not possible."""


def parse_throttled(text: str) -> Throttle | None:
    """Decode `throttled=0x50005`. None when the text is something else."""
    match = re.fullmatch(r"throttled=0x([0-9a-fA-F]+)", text.strip())
    if match is None:
        return None
    bits = int(match[1], 16)
    now = tuple(cause for bit, cause in _CAUSES.items() if bits >> bit & 1)
    since_boot = tuple(
        cause for bit, cause in _CAUSES.items() if bits >> (bit + _SINCE_BOOT_SHIFT) & 1 or cause in now
    )
    return Throttle(now=now, since_boot=since_boot)


def parse_pmic(text: str) -> dict[str, float]:
    """Watts by rail from `vcgencmd pmic_read_adc` of a Pi 5: lines `VDD_CORE_A current(7)=1.2A` and
    `VDD_CORE_V volt(15)=0.9V`. Rails without both are left out (EXT5V has no current)."""
    values: dict[tuple[str, str], float] = {}
    for match in re.finditer(r"^\s*(\w+)_([AV]) (?:current|volt)\(\d+\)=(\d+(?:\.\d+)?)[AV]\s*$", text, re.M):
        values[match[1], match[2]] = float(match[3])
    return {
        rail: round(amperes * values[rail, "V"], 4)
        for (rail, unit), amperes in values.items()
        if unit == "A" and (rail, "V") in values
    }


class RaspberryPiSensors:
    """A host's readings, plus throttle state and, on a Pi 5, the power of its rails.

    The rails do not include what USB devices and HATs draw from 5 V, nor the losses before the rails:
    `power_total_w` is less than a meter at the supply shows.
    """

    def __init__(
        self, root: Path = Path("/"), *, host: Sensors | None = None, vcgencmd: Vcgencmd | None = None
    ) -> None:
        self._root = root
        self._host = host or HostSensors(root)
        self._vcgencmd = vcgencmd or _command(root / "usr/bin/vcgencmd")
        # Only the Pi 5 family has this; asking others costs a process for nothing.
        self._has_pmic = bool(parse_pmic(self._vcgencmd("pmic_read_adc") or ""))

    def read(self) -> Readings:
        rails = parse_pmic(self._vcgencmd("pmic_read_adc") or "") if self._has_pmic else {}
        return replace(
            self._host.read(),
            power_w=rails,
            power_total_w=round(sum(rails.values()), 3) if rails else None,
            throttle=self._throttle(),
        )

    def _throttle(self) -> Throttle | None:
        output = self._vcgencmd("get_throttled")
        throttle = None if output is None else parse_throttled(output)
        if throttle is not None:
            return throttle
        # Without the firmware's word, the kernel still watches the supply voltage.
        for chip in numbered(self._root / "sys/class/hwmon", "hwmon"):
            if read_text(chip / "name") == "rpi_volt":
                alarm = read_int(chip / "in0_lcrit_alarm")
                if alarm is not None:
                    return Throttle(now=("undervoltage",) if alarm else ())
        return None


def _command(path: Path) -> Vcgencmd:
    def run(command: str) -> str | None:
        try:
            done = subprocess.run(
                [path, command],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=_TIMEOUT_S,
                check=True,
            )
        except (OSError, subprocess.SubprocessError):
            return None
        return done.stdout

    return run
