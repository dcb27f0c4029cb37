"""Readings that cannot be."""

from __future__ import annotations

import math
from dataclasses import asdict

import pytest

from edgekit.device import Readings, Throttle
from edgekit.telemetry.plausible import is_plausible_power, plausible

SOUND = Readings(
    cpu_percent=100.0,
    cpu_frequency_mhz=0.0,
    gpu_percent=0.0,
    memory_used_bytes=1,
    memory_available_bytes=0,
    process_rss_bytes=7,
    process_private_bytes=3,
    temperatures_c={"cpu": -20.0, "gpu": 61.5},
    power_w={"VDD_IN": 0.0},
    power_total_w=12.5,
    power_mode="MAXN",
    throttle=Throttle(now=("throttled",)),
)


def test_plausible__leaves_what_can_be() -> None:
    assert plausible(SOUND) == (SOUND, ())
    assert plausible(Readings()) == (Readings(), ())


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("cpu_percent", 100.1),
        ("cpu_percent", math.nan),
        ("cpu_frequency_mhz", -1.0),
        ("gpu_percent", 250.0),
        ("memory_used_bytes", -4096),
        ("process_rss_bytes", -1),
        ("power_total_w", -2.0),
        ("power_total_w", math.inf),
    ],
)
def test_plausible__drops_a_number_that_cannot_be_and_nothing_else(name: str, value: float) -> None:
    readings, odd = plausible(Readings(**{**_fields(SOUND), name: value}))
    assert _fields(readings) == {**_fields(SOUND), name: None}
    assert odd == (name,)


def test_plausible__drops_single_rails_and_sensors() -> None:
    readings, odd = plausible(
        Readings(power_w={"VDD_IN": -2.0, "VDD_CPU": 3.0}, temperatures_c={"cpu": math.nan, "gpu": 50.0})
    )
    assert (readings.power_w, readings.temperatures_c) == ({"VDD_CPU": 3.0}, {"gpu": 50.0})
    assert odd == ("temperatures_c of cpu", "power_w of VDD_IN")


@pytest.mark.parametrize(("watts", "verdict"), [(0.0, True), (7.5, True), (-0.1, False), (math.nan, False)])
def test_is_plausible_power(watts: float, verdict: bool) -> None:
    assert is_plausible_power(watts) == verdict


def _fields(readings: Readings) -> dict[str, object]:
    return {**asdict(readings), "throttle": readings.throttle}
