from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import psutil

from edgekit.device.sensors import HostSensors

WriteTree = Callable[[Mapping[str, str]], Path]


def test_host__reports_this_machine() -> None:
    readings = HostSensors().read()
    total = psutil.virtual_memory().total
    assert readings.memory_used_bytes is not None
    assert readings.memory_available_bytes is not None
    assert readings.memory_used_bytes + readings.memory_available_bytes == total
    assert readings.process_rss_bytes is not None
    assert readings.process_private_bytes is not None
    assert 0 < readings.process_private_bytes <= readings.process_rss_bytes < total


def test_host__cpu_percent_rises_with_load() -> None:
    sensors = HostSensors()
    stop = time.monotonic() + 0.5
    while time.monotonic() < stop:
        pass
    percent = sensors.read().cpu_percent
    # One core was busy all the time; the counters tick in hundredths of a second.
    assert percent is not None
    assert 0.8 * 100 / (os.cpu_count() or 1) <= percent <= 100


def test_host__process_that_ended_is_unknown() -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    sensors = HostSensors(process=psutil.Process(child.pid))
    assert sensors.read().process_rss_bytes
    child.communicate(b"\n")
    readings = sensors.read()
    assert readings.process_rss_bytes is None
    assert readings.process_private_bytes is None


def test_host__empty_root_has_no_temperatures_and_no_power(tmp_path: Path) -> None:
    readings = HostSensors(tmp_path).read()
    assert readings.temperatures_c == {}
    assert readings.power_w == {}
    assert readings.power_total_w is None
    assert readings.throttle is None
    assert readings.cpu_frequency_mhz is None


def test_host__temperatures_of_an_x86_machine(write_tree: WriteTree) -> None:
    root = write_tree(
        {
            "sys/class/thermal/thermal_zone0/type": "acpitz\n",
            "sys/class/thermal/thermal_zone0/temp": "27800\n",
            "sys/class/thermal/thermal_zone1/type": "acpitz\n",
            "sys/class/thermal/thermal_zone1/temp": "29800\n",
            "sys/class/thermal/thermal_zone2/type": "broken\n",
            "sys/class/thermal/thermal_zone2/temp": "not a number\n",
            "sys/class/hwmon/hwmon0/name": "acpitz\n",
            "sys/class/hwmon/hwmon0/temp1_input": "27800\n",
            "sys/class/hwmon/hwmon1/name": "coretemp\n",
            "sys/class/hwmon/hwmon1/temp1_input": "48000\n",
            "sys/class/hwmon/hwmon1/temp1_label": "Package id 0\n",
            "sys/class/hwmon/hwmon1/temp38_input": "47000\n",
            "sys/class/hwmon/hwmon1/temp38_label": "Core 36\n",
        }
    )
    assert HostSensors(root).read().temperatures_c == {
        "acpitz": 27.8,
        "acpitz-2": 29.8,
        "coretemp/Package id 0": 48.0,
    }
