from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from edgekit.device.jetson import JetsonSensors, read_l4t_release, read_power_mode
from edgekit.device.sensors import PowerMeter, Throttle

WriteTree = Callable[[Mapping[str, str]], Path]


def test_rails__are_millivolts_times_milliamperes(agx_orin: Path) -> None:
    readings = JetsonSensors(agx_orin).read()
    assert readings.power_w == {
        "VDD_GPU_SOC": 20.0,
        "VDD_CPU_CV": 5.0,
        "VIN_SYS_5V0": 4.5,
        "VDDQ_VDD2_1V8AO": 1.0,
    }


def test_total__adds_the_module_rails_and_not_the_memory_behind_one_of_them(agx_orin: Path) -> None:
    sensors = JetsonSensors(agx_orin)
    assert sensors.read().power_total_w == 29.5
    assert isinstance(sensors, PowerMeter)
    assert sensors.read_power_w() == 29.5


def test_total__is_the_input_rail_where_there_is_one(agx_orin: Path, write_tree: WriteTree) -> None:
    write_tree({"sys/class/hwmon/hwmon3/in1_label": "VDD_IN\n"})
    assert JetsonSensors(agx_orin).read().power_total_w == 20.0


def test_total__unknown_when_a_rail_cannot_be_read(agx_orin: Path, write_tree: WriteTree) -> None:
    sensors = JetsonSensors(agx_orin)
    write_tree({"sys/class/hwmon/hwmon3/curr2_input": "\n"})
    readings = sensors.read()
    assert "VDD_CPU_CV" not in readings.power_w
    assert readings.power_total_w is None


def test_rails__disabled_channel_is_left_out(agx_orin: Path, write_tree: WriteTree) -> None:
    write_tree({"sys/class/hwmon/hwmon4/in2_enable": "0\n"})
    assert "VDDQ_VDD2_1V8AO" not in JetsonSensors(agx_orin).read().power_w


def test_temperatures__by_zone_without_blocks_that_are_off(agx_orin: Path) -> None:
    assert JetsonSensors(agx_orin).read().temperatures_c == {"cpu": 51.062, "gpu": 47.5, "tj": 51.062}


@pytest.mark.parametrize(
    "path",
    [
        "sys/class/devfreq/17000000.gpu/device/load",  # JetPack 6
        "sys/class/devfreq/17000000.ga10b/device/load",  # JetPack 5
        "sys/devices/platform/bus@0/17000000.gpu/load",
        "sys/devices/gpu.0/load",
    ],
)
def test_gpu_load__per_mille_at_each_place(write_tree: WriteTree, path: str) -> None:
    assert JetsonSensors(write_tree({path: "473\n"})).read().gpu_percent == 47.3


def test_gpu_load__unknown_where_there_is_no_file(tmp_path: Path) -> None:
    assert JetsonSensors(tmp_path).read().gpu_percent is None


def test_power_mode__by_name_and_not_from_a_comment(agx_orin: Path) -> None:
    assert read_power_mode(agx_orin) == "MODE_30W"


def test_power_mode__number_when_the_configuration_has_no_name(agx_orin: Path) -> None:
    (agx_orin / "etc/nvpmodel.conf").unlink()
    assert read_power_mode(agx_orin) == "2"


def test_power_mode__unknown_without_status(tmp_path: Path) -> None:
    assert read_power_mode(tmp_path) is None


def test_l4t_release(agx_orin: Path, tmp_path: Path) -> None:
    assert read_l4t_release(agx_orin) == "36.4.3"
    (tmp_path / "etc/nv_tegra_release").write_text("garbage")
    assert read_l4t_release(tmp_path) is None


def test_throttle__counters_say_since_boot_and_rising_ones_say_now(
    agx_orin: Path, write_tree: WriteTree
) -> None:
    sensors = JetsonSensors(agx_orin)
    assert sensors.read().throttle == Throttle(now=(), since_boot=("overcurrent_peak",))
    write_tree({"sys/class/hwmon/hwmon5/oc1_event_cnt": "2\n"})
    assert sensors.read().throttle == Throttle(
        now=("undervoltage",), since_boot=("undervoltage", "overcurrent_peak")
    )
    assert sensors.read().throttle == Throttle(now=(), since_boot=("undervoltage", "overcurrent_peak"))


def test_throttle__heat_by_block(agx_orin: Path, write_tree: WriteTree) -> None:
    write_tree({"sys/class/thermal/cooling_device0/cur_state": "1\n"})
    throttle = JetsonSensors(agx_orin).read().throttle
    assert throttle == Throttle(now=("thermal:cpu",), since_boot=("overcurrent_peak", "thermal:cpu"))


def test_throttle__unknown_on_an_empty_tree(tmp_path: Path) -> None:
    assert JetsonSensors(tmp_path).read().throttle is None
