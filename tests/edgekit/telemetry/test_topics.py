from __future__ import annotations

import pytest

from edgekit.errors import TelemetryError
from edgekit.telemetry.topics import Topic, check_name, parse_topic, subscription


def test_topic__round_trip() -> None:
    topic = Topic("lab", "pi-01.attic", "telemetry")
    assert str(topic) == "edgekit/v1/lab/pi-01.attic/telemetry"
    assert parse_topic(str(topic)) == topic


@pytest.mark.parametrize(
    "name",
    ["", "a/b", "+", "#", "a#", "a+b", "a\0b", "a\nb", "\x7f", " a", "a ", "x" * 65, "é" * 33, "\ud800"],
)
def test_check_name__refuses_what_a_topic_level_cannot_be(name: str) -> None:
    with pytest.raises(TelemetryError, match="cannot be the name of a device"):
        check_name(name, what="device")
    with pytest.raises(TelemetryError):
        Topic("lab", name, "status")
    with pytest.raises(TelemetryError):
        Topic(name, "pi", "status")


@pytest.mark.parametrize("name", ["a", "x" * 64, "é" * 32, "Büro 2", "$share", "工場"])
def test_check_name__accepts(name: str) -> None:
    assert check_name(name, what="fleet") == name


@pytest.mark.parametrize(
    "name",
    ["", "edgekit/v1/lab/pi", "edgekit/v2/lab/pi/status", "other/v1/lab/pi/status", "edgekit/v1/lab/pi/other",
     "edgekit/v1/lab/pi/status/more", "edgekit/v1//pi/status"],
)  # fmt: skip
def test_parse_topic__refuses_others(name: str) -> None:
    with pytest.raises(TelemetryError):
        parse_topic(name)


def test_subscription__one_fleet_or_all() -> None:
    assert subscription() == "edgekit/v1/+/+/+"
    assert subscription("lab", kind="status") == "edgekit/v1/lab/+/status"
    with pytest.raises(TelemetryError, match="fleet"):
        subscription("#")
