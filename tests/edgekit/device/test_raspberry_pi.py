from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from edgekit.device.raspberry_pi import RaspberryPiSensors, parse_pmic, parse_throttled
from edgekit.device.sensors import Throttle

WriteTree = Callable[[Mapping[str, str]], Path]

# Synthetic: the form of the Pi 5 firmware's answer, with round numbers.
PMIC = """\
 3V7_WL_SW_A current(0)=0.10000000A
   3V3_SYS_A current(1)=0.50000000A
  VDD_CORE_A current(7)=2.00000000A
 3V7_WL_SW_V volt(8)=3.70000000V
   3V3_SYS_V volt(9)=3.30000000V
  VDD_CORE_V volt(15)=0.90000000V
     EXT5V_V volt(24)=5.10000000V
      BATT_V volt(25)=0.00000000V"""


@pytest.mark.parametrize(
    ("text", "now", "since_boot"),
    [
        ("throttled=0x0\n", (), ()),
        ("throttled=0x50005\n", ("undervoltage", "throttled"), ("undervoltage", "throttled")),
        ("throttled=0x50000", (), ("undervoltage", "throttled")),
        (
            "throttled=0xE0008",
            ("soft_temperature_limit",),
            ("frequency_capped", "throttled", "soft_temperature_limit"),
        ),
        # The record of a cause can lag behind the cause.
        ("throttled=0x2", ("frequency_capped",), ("frequency_capped",)),
    ],
)
def test_parse_throttled(text: str, now: tuple[str, ...], since_boot: tuple[str, ...]) -> None:
    assert parse_throttled(text) == Throttle(now=now, since_boot=since_boot)


@pytest.mark.parametrize("text", ["", "throttled=", "VCHI initialization failed", "throttled=0xZZ"])
def test_parse_throttled__something_else_is_unknown(text: str) -> None:
    assert parse_throttled(text) is None


def test_parse_pmic__watts_of_rails_with_both_figures() -> None:
    assert parse_pmic(PMIC) == {"3V7_WL_SW": 0.37, "3V3_SYS": 1.65, "VDD_CORE": 1.8}
    assert parse_pmic('error=1 error_msg="Command not registered"') == {}


def test_read__pi_5(pi_5: Path, install_vcgencmd: Callable[..., None]) -> None:
    install_vcgencmd(throttled="0x50005", pmic=PMIC)
    readings = RaspberryPiSensors(pi_5).read()
    assert readings.throttle == Throttle(
        now=("undervoltage", "throttled"), since_boot=("undervoltage", "throttled")
    )
    assert readings.power_w == {"3V7_WL_SW": 0.37, "3V3_SYS": 1.65, "VDD_CORE": 1.8}
    assert readings.power_total_w == 3.82
    assert readings.temperatures_c == {"cpu": 62.8, "rp1_adc/temp1": 58.123, "nvme/Composite": 44.85}
    assert readings.cpu_frequency_mhz == 2400.0


def test_read__pi_4_has_no_power_monitor(pi_5: Path, install_vcgencmd: Callable[..., None]) -> None:
    install_vcgencmd(pmic=None)
    readings = RaspberryPiSensors(pi_5).read()
    assert readings.power_w == {}
    assert readings.power_total_w is None
    assert readings.throttle == Throttle(now=(), since_boot=())


def test_read__without_vcgencmd_the_kernel_tells_undervoltage(pi_5: Path, write_tree: WriteTree) -> None:
    sensors = RaspberryPiSensors(pi_5)
    assert sensors.read().throttle == Throttle(now=(), since_boot=None)
    write_tree({"sys/class/hwmon/hwmon3/in0_lcrit_alarm": "1\n"})
    assert sensors.read().throttle == Throttle(now=("undervoltage",), since_boot=None)


def test_read__vcgencmd_without_permission_counts_as_absent(
    pi_5: Path, install_vcgencmd: Callable[..., None]
) -> None:
    install_vcgencmd(fails=True)
    assert RaspberryPiSensors(pi_5).read().throttle == Throttle(now=(), since_boot=None)


def test_read__no_source_at_all_is_unknown(tmp_path: Path) -> None:
    assert RaspberryPiSensors(tmp_path).read().throttle is None
