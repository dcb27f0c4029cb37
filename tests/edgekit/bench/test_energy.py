from __future__ import annotations

import time

import pytest

from edgekit.bench.energy import Energy, metering
from edgekit.device import HostSensors, Readings


class Meter:
    """Tells a power that rises with each reading."""

    def __init__(self) -> None:
        self.readings = 0

    def read(self) -> Readings:
        raise AssertionError("the cheap reading is there")

    def read_power_w(self) -> float | None:
        self.readings += 1
        return 10.0 + self.readings


class SlowMeter:
    def read(self) -> Readings:
        return Readings(power_total_w=5.0)


def test_energy__power_is_straight_between_two_readings() -> None:
    energy = Energy()
    energy.note(0.0, 10.0)
    energy.note(2.0, 20.0)
    energy.note(3.0, 20.0)
    assert energy.joules == pytest.approx(30 + 20)
    assert energy.power_w == pytest.approx(50 / 3)
    assert energy.per_joule(100.0) == pytest.approx(6.0)


def test_energy__one_reading_is_none() -> None:
    energy = Energy()
    energy.note(0.0, 10.0)
    assert (energy.joules, energy.power_w, energy.per_joule(1.0)) == (None, None, None)


def test_metering__from_the_blocks_begin_to_its_end() -> None:
    meter = Meter()
    with metering(meter, every_s=0.01) as energy:
        deadline = time.monotonic() + 20
        while meter.readings < 6:
            assert time.monotonic() < deadline
            time.sleep(0.005)
    after = meter.readings
    assert energy.power_w is not None
    assert 11 <= energy.power_w <= 10 + after
    time.sleep(0.05)
    assert meter.readings == after


def test_metering__sensors_that_only_tell_all_at_once() -> None:
    with metering(SlowMeter(), every_s=0.01) as energy:
        time.sleep(0.03)
    assert energy.power_w == pytest.approx(5.0)


def test_metering__no_meter_no_figure() -> None:
    for sensors in (None, HostSensors()):
        with metering(sensors, every_s=0.01) as energy:
            time.sleep(0.03)
        assert energy.power_w is None
