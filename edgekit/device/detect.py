"""Finds out which board this is, and opens its sensors."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from edgekit.device.jetson import JetsonSensors, read_l4t_release
from edgekit.device.raspberry_pi import RaspberryPiSensors
from edgekit.device.sensors import HostSensors, Sensors
from edgekit.device.sysfs import read_text

__all__ = ["Board", "detect_board", "open_sensors", "read_boot_id"]

# /proc/device-tree is a link to the second, which is there even where /proc is masked.
_DEVICE_TREES = ("proc/device-tree", "sys/firmware/devicetree/base")


@dataclass(frozen=True, slots=True)
class Board:
    """What the device is. Unknown is None."""

    family: Literal["jetson", "raspberry-pi", "host"]
    model: str | None = None
    """As the device tree or the firmware says, e.g. "Raspberry Pi 5 Model B Rev 1.0"."""
    compatible: tuple[str, ...] = ()
    """The device tree's names of the board and its chip, e.g. ("raspberrypi,5-model-b", "brcm,bcm2712")."""
    system: str | None = None
    """Operating system: "Jetson Linux 36.4.3" or PRETTY_NAME of os-release."""


def detect_board(root: Path = Path("/")) -> Board:
    """Tell the board by its device tree. A machine without one (x86) is a host."""
    model: str | None = None
    compatible: tuple[str, ...] = ()
    for directory in _DEVICE_TREES:
        model = read_text(root / directory / "model")
        names = (read_text(root / directory / "compatible") or "").split("\0")
        compatible = tuple(name for name in names if name)
        if model is not None or compatible:
            break
    if any(name.startswith("nvidia,tegra") for name in compatible) or (model or "").startswith(
        "NVIDIA Jetson"
    ):
        release = read_l4t_release(root)
        system = _os_name(root) if release is None else f"Jetson Linux {release}"
        return Board("jetson", model, compatible, system)
    if any(name.startswith("raspberrypi,") for name in compatible) or (model or "").startswith(
        "Raspberry Pi"
    ):
        return Board("raspberry-pi", model, compatible, _os_name(root))
    return Board(
        "host", model or read_text(root / "sys/class/dmi/id/product_name"), compatible, _os_name(root)
    )


def open_sensors(root: Path = Path("/")) -> Sensors:
    """The sensors of this machine."""
    family = detect_board(root).family
    if family == "jetson":
        return JetsonSensors(root)
    if family == "raspberry-pi":
        return RaspberryPiSensors(root)
    return HostSensors(root)


def read_boot_id(root: Path = Path("/")) -> str | None:
    """The kernel's random name of this boot (a UUID): two boots never share it."""
    return read_text(root / "proc/sys/kernel/random/boot_id")


def _os_name(root: Path) -> str | None:
    match = re.search(r'^PRETTY_NAME="?([^"\n]*)"?$', read_text(root / "etc/os-release") or "", re.M)
    return match[1] if match else None
