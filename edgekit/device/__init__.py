"""Reads the machine that the model runs on: load, memory, heat, power and throttling."""

from __future__ import annotations

from edgekit.device.detect import Board, detect_board, open_sensors, read_boot_id
from edgekit.device.sensors import HostSensors, PowerMeter, Readings, Sensors, Throttle

__all__ = [
    "Board",
    "HostSensors",
    "PowerMeter",
    "Readings",
    "Sensors",
    "Throttle",
    "detect_board",
    "open_sensors",
    "read_boot_id",
]
