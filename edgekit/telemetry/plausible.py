"""Leaves out readings that cannot be: one sensor gone mad must not take the message with it. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import TypeVar

from edgekit.device import Readings

__all__ = ["is_plausible_power", "plausible"]

Number = TypeVar("Number", int, float)


def plausible(readings: Readings) -> tuple[Readings, tuple[str, ...]]:
    """Readings with None, or nothing, for what cannot be, and what that was: "power_w of VDD_IN"."""
    odd: list[str] = []

    def number(name: str, value: Number | None, most: float = math.inf) -> Number | None:
        if value is None or (math.isfinite(value) and 0 <= value <= most):
            return value
        odd.append(name)
        return None

    def each(name: str, values: Mapping[str, float], least: float) -> dict[str, float]:
        odd.extend(
            f"{name} of {key}"
            for key, value in values.items()
            if not (math.isfinite(value) and value >= least)
        )
        return {key: value for key, value in values.items() if math.isfinite(value) and value >= least}

    possible = replace(
        readings,
        cpu_percent=number("cpu_percent", readings.cpu_percent, 100),
        cpu_frequency_mhz=number("cpu_frequency_mhz", readings.cpu_frequency_mhz),
        gpu_percent=number("gpu_percent", readings.gpu_percent, 100),
        memory_used_bytes=number("memory_used_bytes", readings.memory_used_bytes),
        memory_available_bytes=number("memory_available_bytes", readings.memory_available_bytes),
        process_rss_bytes=number("process_rss_bytes", readings.process_rss_bytes),
        process_private_bytes=number("process_private_bytes", readings.process_private_bytes),
        temperatures_c=each("temperatures_c", readings.temperatures_c, -273.15),
        power_w=each("power_w", readings.power_w, 0),
        power_total_w=number("power_total_w", readings.power_total_w),
    )
    return possible, tuple(odd)


def is_plausible_power(watts: float) -> bool:
    """Whether a board can take this much: a finite number, and not less than nothing."""
    return math.isfinite(watts) and watts >= 0
