from __future__ import annotations

from pathlib import Path

import pytest

from edgekit.errors import TelemetryError
from edgekit.telemetry.address import BrokerAddress, parse_broker_url


@pytest.mark.parametrize(
    ("url", "address", "shown"),
    [
        ("mqtt://broker", BrokerAddress("broker", 1883), "mqtt://broker:1883"),
        ("mqtt://broker/", BrokerAddress("broker", 1883), "mqtt://broker:1883"),
        ("mqtt://10.0.0.7:2883", BrokerAddress("10.0.0.7", 2883), "mqtt://10.0.0.7:2883"),
        ("mqtts://broker.local", BrokerAddress("broker.local", 8883, tls=True), "mqtts://broker.local:8883"),
        ("mqtt://[::1]:1884", BrokerAddress("::1", 1884), "mqtt://[::1]:1884"),
        ("mqtt://pi:p%40ss%2F@b", BrokerAddress("b", 1883, username="pi", password="p@ss/"), "mqtt://b:1883"),
        ("mqtt://pi@b", BrokerAddress("b", 1883, username="pi"), "mqtt://b:1883"),
        (
            "mqtts://b?ca=/etc/ca.pem&cert=c.pem&key=k.pem",
            BrokerAddress("b", 8883, tls=True, ca=Path("/etc/ca.pem"), cert=Path("c.pem"), key=Path("k.pem")),
            "mqtts://b:8883",
        ),
    ],
)
def test_parse__forms(url: str, address: BrokerAddress, shown: str) -> None:
    assert parse_broker_url(url) == address
    assert str(address) == shown


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("", "no scheme"),
        ("broker:1883", "broker"),
        ("http://broker", "http"),
        ("mqtt://", "no host"),
        ("mqtt://:1883", "no host"),
        ("mqtt://broker:99999", "port"),
        ("mqtt://broker:0", "port is 0"),
        ("mqtt://broker:x", "port"),
        ("mqtt://[::1", "host or port"),
        ("mqtt://broker/topic", "path"),
        ("mqtt://broker#", "#"),
        ("mqtt://:secret@broker", "no user"),
        ("mqtt://broker?ca=x", "mqtts"),
        ("mqtts://broker?insecure=1", "'insecure'"),
        ("mqtts://broker?ca=", "empty"),
        ("mqtts://broker?key=k.pem", "no cert"),
    ],
)
def test_parse__others_say_what_is_wrong_and_what_to_write(url: str, problem: str) -> None:
    with pytest.raises(TelemetryError, match="is not the address of a broker") as caught:
        parse_broker_url(url)
    assert problem in caught.value.message
    assert "mqtt://" in (caught.value.hint or "")


@pytest.mark.parametrize(
    "url",
    ["mqtt://u:SECRET@b/x", "mqtt://u:SEC/RET@b", "mqtt://u:SECRET#@b", "http://u:SECRET@b", "mqtt://u:SECRET@b:port",
     "mqtt://u:SEC@RET@b:port", "mqtt://u:SECRET@[b"],
)  # fmt: skip
def test_parse__errors_do_not_show_the_password(url: str) -> None:
    with pytest.raises(TelemetryError) as caught:
        parse_broker_url(url)
    error: BaseException | None = caught.value
    while error is not None:
        assert "SEC" not in str(error)
        assert "RET" not in str(error)
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def test_address__repr_does_not_show_the_password() -> None:
    assert "SECRET" not in repr(parse_broker_url("mqtt://u:SECRET@b"))


def test_tls_context__names_the_file_that_cannot_be_read(tmp_path: Path) -> None:
    assert parse_broker_url("mqtt://b").tls_context() is None
    with pytest.raises(TelemetryError, match=r"missing\.pem"):
        parse_broker_url(f"mqtts://b?ca={tmp_path}/missing.pem").tls_context()
    (tmp_path / "empty.pem").write_text("nothing here")
    with pytest.raises(TelemetryError, match=r"empty\.pem"):
        parse_broker_url(f"mqtts://b?ca={tmp_path}/empty.pem").tls_context()
