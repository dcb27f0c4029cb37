"""Reads the small files that Linux shows under /sys and /proc. What cannot be read is None.

Sources: https://docs.kernel.org/driver-api/thermal/sysfs-api.html and
https://docs.kernel.org/hwmon/sysfs-interface.html
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

__all__ = ["numbered", "read_int", "read_temperatures_c", "read_text"]

# Sensors that are off or broken answer with values far outside of these (a Jetson gives -256 degrees).
_COLDEST_C = -100.0
_HOTTEST_C = 200.0


def read_text(path: Path) -> str | None:
    """The file's text without surrounding white space and NULs (device-tree strings end in one)."""
    try:
        data = path.read_bytes()
    except OSError:  # absent, not permitted, or the driver says EAGAIN because the block is off
        return None
    text = data.decode("utf-8", errors="replace").strip("\0 \t\r\n")
    return text or None


def read_int(path: Path) -> int | None:
    """The file's number, or None."""
    text = read_text(path)
    try:
        return None if text is None else int(text)
    except ValueError:
        return None


def numbered(directory: Path, prefix: str, *, suffix: str = "") -> Iterator[Path]:
    """Entries like thermal_zone0, thermal_zone1, … thermal_zone10 of a directory, by number."""
    try:
        names = [entry.name for entry in directory.iterdir()]
    except OSError:
        return
    pattern = re.compile(re.escape(prefix) + r"(\d+)" + re.escape(suffix))
    found = sorted((int(match[1]), match[0]) for match in map(pattern.fullmatch, names) if match)
    for _, name in found:
        yield directory / name


def read_temperatures_c(root: Path) -> dict[str, float]:
    """All temperatures that the kernel shows, in degrees Celsius, by sensor.

    Thermal zones go by their type without "-thermal" ("cpu", "gpu", "tj"), other chips by
    "<chip>/<label>" ("nvme/Composite"). Cores one by one are left out where the package is there too.
    """
    temperatures: dict[str, float] = {}
    zone_types: set[str] = set()
    for zone in numbered(root / "sys/class/thermal", "thermal_zone"):
        kind = read_text(zone / "type")
        if kind is None:
            continue
        zone_types.add(kind.replace("-", "_"))
        _put(temperatures, re.sub(r"[-_]therm(al)?$", "", kind), read_int(zone / "temp"))
    for chip in numbered(root / "sys/class/hwmon", "hwmon"):
        chip_name = read_text(chip / "name")
        if chip_name is None or chip_name in zone_types:  # the kernel shows most zones here once more
            continue
        for sensor in numbered(chip, "temp", suffix="_input"):
            label = read_text(chip / sensor.name.replace("_input", "_label")) or sensor.name.removesuffix(
                "_input"
            )
            if not label.startswith("Core "):
                _put(temperatures, f"{chip_name}/{label}", read_int(sensor))
    return temperatures


def _put(temperatures: dict[str, float], name: str, milli_c: int | None) -> None:
    if milli_c is None or not _COLDEST_C <= milli_c / 1000 <= _HOTTEST_C:
        return
    unique, count = name, 1
    while unique in temperatures:
        count += 1
        unique = f"{name}-{count}"
    temperatures[unique] = milli_c / 1000
