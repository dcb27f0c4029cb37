"""Synthetic device trees.

None of these files was captured on a board: they were written by hand after the public documentation of
the kernel, of Jetson Linux and of Raspberry Pi OS. A capture of a real board belongs beside them with the
board, the release and the date in its name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

WriteTree = Callable[[Mapping[str, str]], Path]

JETSON_AGX_ORIN = {
    "proc/device-tree/model": "NVIDIA Jetson AGX Orin Developer Kit\0",
    "proc/device-tree/compatible": "nvidia,p3737-0000+p3701-0005\0nvidia,p3701-0005\0nvidia,tegra234\0",
    "etc/nv_tegra_release": "# R36 (release), REVISION: 4.3, GCID: 1, BOARD: generic, EABI: aarch64\n",
    "etc/os-release": 'NAME="Ubuntu"\nPRETTY_NAME="Ubuntu 22.04.5 LTS"\n',
    "var/lib/nvpmodel/status": "pmode:0002 fmode:quiet\n",
    "etc/nvpmodel.conf": (
        "# < POWER_MODEL ID=2 NAME=COMMENTED_OUT >\n"
        "< POWER_MODEL ID=0 NAME=MAXN >\nCPU_ONLINE CORE_0 1\n"
        "< POWER_MODEL ID=2 NAME=MODE_30W >\n"
    ),
    "sys/class/devfreq/17000000.gpu/device/load": "473\n",
    "sys/class/hwmon/hwmon3/name": "ina3221\n",
    "sys/class/hwmon/hwmon3/in1_label": "VDD_GPU_SOC\n",
    "sys/class/hwmon/hwmon3/in1_input": "20000\n",
    "sys/class/hwmon/hwmon3/curr1_input": "1000\n",
    "sys/class/hwmon/hwmon3/in2_label": "VDD_CPU_CV\n",
    "sys/class/hwmon/hwmon3/in2_input": "20000\n",
    "sys/class/hwmon/hwmon3/curr2_input": "250\n",
    "sys/class/hwmon/hwmon3/in3_label": "VIN_SYS_5V0\n",
    "sys/class/hwmon/hwmon3/in3_input": "5000\n",
    "sys/class/hwmon/hwmon3/curr3_input": "900\n",
    "sys/class/hwmon/hwmon3/in7_label": "sum of shunt voltages\n",
    "sys/class/hwmon/hwmon3/in7_input": "4000\n",
    "sys/class/hwmon/hwmon4/name": "ina3221\n",
    "sys/class/hwmon/hwmon4/in1_label": "NC\n",
    "sys/class/hwmon/hwmon4/in1_input": "0\n",
    "sys/class/hwmon/hwmon4/curr1_input": "0\n",
    "sys/class/hwmon/hwmon4/in2_label": "VDDQ_VDD2_1V8AO\n",
    "sys/class/hwmon/hwmon4/in2_input": "5000\n",
    "sys/class/hwmon/hwmon4/curr2_input": "200\n",
    "sys/class/hwmon/hwmon5/name": "soctherm_oc\n",
    "sys/class/hwmon/hwmon5/oc1_event_cnt": "0\n",
    "sys/class/hwmon/hwmon5/oc2_event_cnt": "0\n",
    "sys/class/hwmon/hwmon5/oc3_event_cnt": "7\n",
    "sys/class/thermal/thermal_zone0/type": "cpu-thermal\n",
    "sys/class/thermal/thermal_zone0/temp": "51062\n",
    "sys/class/thermal/thermal_zone1/type": "gpu-thermal\n",
    "sys/class/thermal/thermal_zone1/temp": "47500\n",
    "sys/class/thermal/thermal_zone2/type": "cv0-thermal\n",
    "sys/class/thermal/thermal_zone2/temp": "-256000\n",
    "sys/class/thermal/thermal_zone10/type": "tj-thermal\n",
    "sys/class/thermal/thermal_zone10/temp": "51062\n",
    "sys/class/thermal/cooling_device0/type": "cpu-throttle-alert\n",
    "sys/class/thermal/cooling_device0/cur_state": "0\n",
    "sys/class/thermal/cooling_device1/type": "pwm-fan\n",
    "sys/class/thermal/cooling_device1/cur_state": "3\n",
}

RASPBERRY_PI_5 = {
    "proc/device-tree/model": "Raspberry Pi 5 Model B Rev 1.0\0",
    "proc/device-tree/compatible": "raspberrypi,5-model-b\0brcm,bcm2712\0",
    "etc/os-release": 'PRETTY_NAME="Debian GNU/Linux 13 (trixie)"\nNAME="Debian GNU/Linux"\n',
    "sys/class/thermal/thermal_zone0/type": "cpu-thermal\n",
    "sys/class/thermal/thermal_zone0/temp": "62800\n",
    "sys/class/hwmon/hwmon0/name": "cpu_thermal\n",
    "sys/class/hwmon/hwmon0/temp1_input": "62800\n",
    "sys/class/hwmon/hwmon1/name": "rp1_adc\n",
    "sys/class/hwmon/hwmon1/temp1_input": "58123\n",
    "sys/class/hwmon/hwmon2/name": "nvme\n",
    "sys/class/hwmon/hwmon2/temp1_input": "44850\n",
    "sys/class/hwmon/hwmon2/temp1_label": "Composite\n",
    "sys/class/hwmon/hwmon3/name": "rpi_volt\n",
    "sys/class/hwmon/hwmon3/in0_lcrit_alarm": "0\n",
    "sys/devices/system/cpu/cpufreq/policy0/scaling_cur_freq": "2400000\n",
}


@pytest.fixture
def write_tree(tmp_path: Path) -> WriteTree:
    """Writes files under a root, by path; a second call changes some of them."""

    def write(files: Mapping[str, str]) -> Path:
        for name, text in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return tmp_path

    return write


@pytest.fixture
def agx_orin(write_tree: WriteTree) -> Path:
    return write_tree(JETSON_AGX_ORIN)


@pytest.fixture
def pi_5(write_tree: WriteTree) -> Path:
    return write_tree(RASPBERRY_PI_5)


@pytest.fixture
def install_vcgencmd(tmp_path: Path) -> Callable[..., None]:
    """Puts a program in the tree's usr/bin that answers like the firmware."""

    def install(*, throttled: str = "0x0", pmic: str | None = None, fails: bool = False) -> None:
        program = tmp_path / "usr/bin/vcgencmd"
        program.parent.mkdir(parents=True, exist_ok=True)
        pmic_case = (
            f"cat <<'EOF'\n{pmic}\nEOF" if pmic else 'echo "error=1 error_msg=\\"Command not registered\\""'
        )
        lines = [
            "#!/bin/sh",
            'echo "Can\'t open device file: /dev/vcio" >&2; exit 255' if fails else "",
            "case $1 in",
            f"get_throttled) echo throttled={throttled} ;;",
            f"pmic_read_adc) {pmic_case}",
            ";;",
            "esac",
        ]
        program.write_text("\n".join(lines) + "\n")
        program.chmod(0o755)

    return install
