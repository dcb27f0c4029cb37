from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping
from pathlib import Path

from edgekit.device.detect import Board, detect_board, open_sensors, read_boot_id
from edgekit.device.jetson import JetsonSensors
from edgekit.device.raspberry_pi import RaspberryPiSensors
from edgekit.device.sensors import HostSensors

WriteTree = Callable[[Mapping[str, str]], Path]


def test_detect__jetson(agx_orin: Path) -> None:
    assert detect_board(agx_orin) == Board(
        family="jetson",
        model="NVIDIA Jetson AGX Orin Developer Kit",
        compatible=("nvidia,p3737-0000+p3701-0005", "nvidia,p3701-0005", "nvidia,tegra234"),
        system="Jetson Linux 36.4.3",
    )
    assert isinstance(open_sensors(agx_orin), JetsonSensors)


def test_detect__raspberry_pi(pi_5: Path) -> None:
    assert detect_board(pi_5) == Board(
        family="raspberry-pi",
        model="Raspberry Pi 5 Model B Rev 1.0",
        compatible=("raspberrypi,5-model-b", "brcm,bcm2712"),
        system="Debian GNU/Linux 13 (trixie)",
    )
    assert isinstance(open_sensors(pi_5), RaspberryPiSensors)


def test_detect__third_party_carrier_is_a_jetson_by_its_chip(write_tree: WriteTree) -> None:
    root = write_tree(
        {
            "sys/firmware/devicetree/base/model": "Example Carrier with Orin NX\0",
            "sys/firmware/devicetree/base/compatible": "example,carrier\0nvidia,tegra234\0",
            "etc/os-release": "PRETTY_NAME=Ubuntu\n",
        }
    )
    board = detect_board(root)
    assert (board.family, board.system) == ("jetson", "Ubuntu")


def test_detect__other_boards_and_x86_are_hosts(write_tree: WriteTree, tmp_path: Path) -> None:
    assert detect_board(tmp_path) == Board("host")
    root = write_tree(
        {"proc/device-tree/model": "Example Board\0", "proc/device-tree/compatible": "example,b\0"}
    )
    assert detect_board(root) == Board("host", "Example Board", ("example,b",))
    assert type(open_sensors(root)) is HostSensors


def test_boot_id__is_a_uuid_of_this_boot(tmp_path: Path) -> None:
    boot_id = read_boot_id()
    assert boot_id is not None
    assert str(uuid.UUID(boot_id)) == boot_id == read_boot_id()
    assert read_boot_id(tmp_path) is None
