from __future__ import annotations

import os
import secrets
from pathlib import Path

import pytest
from notify_socket import NotifySocket, notify_socket

from edgekit.server.systemd import Systemd


def test_notify__path_and_abstract_name(tmp_path: Path) -> None:
    for name in (str(tmp_path / "notify"), f"@edgekit-{secrets.token_hex(8)}"):
        with notify_socket(name) as socket:
            Systemd({"NOTIFY_SOCKET": name}).ready("serving x")
            assert socket.next() == {"READY": "1", "STATUS": "serving x"}


@pytest.fixture
def told(tmp_path: Path) -> NotifySocket:
    with notify_socket(tmp_path / "notify") as socket:
        yield socket


def test_notify__words_of_the_protocol(told: NotifySocket) -> None:
    systemd = Systemd({"NOTIFY_SOCKET": told.name})
    systemd.status("loading")
    systemd.alive()
    systemd.extend(20)
    systemd.stopping("draining", within_s=1.5)
    systemd.reloading()
    assert [told.next() for _ in range(4)] == [
        {"STATUS": "loading"},
        {"WATCHDOG": "1"},
        {"EXTEND_TIMEOUT_USEC": "20000000"},
        {"STOPPING": "1", "STATUS": "draining", "EXTEND_TIMEOUT_USEC": "1500000"},
    ]
    reloading = told.next()
    assert reloading is not None
    assert reloading["RELOADING"] == "1"
    assert int(reloading["MONOTONIC_USEC"]) > 0


def test_notify__line_breaks_begin_no_field(told: NotifySocket) -> None:
    Systemd({"NOTIFY_SOCKET": told.name}).status("failed: x\nREADY=1")
    assert told.next() == {"STATUS": "failed: x READY=1"}


@pytest.mark.parametrize("name", ["", "relative", "vsock:2:1"])
def test_notify__nobody_to_tell(name: str) -> None:
    systemd = Systemd({"NOTIFY_SOCKET": name, "WATCHDOG_USEC": "1000"})
    assert not systemd.present
    assert systemd.watchdog_s is None
    systemd.ready("nobody hears it")


def test_notify__socket_that_is_gone_is_logged_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    systemd = Systemd({"NOTIFY_SOCKET": str(tmp_path / "gone")})
    systemd.ready("x")
    systemd.alive()
    assert len(caplog.records) == 1


@pytest.mark.parametrize(
    ("environ", "seconds"),
    [
        ({"WATCHDOG_USEC": "3000000"}, 3.0),
        ({"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": str(os.getpid())}, 3.0),
        ({"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({}, None),
    ],
)
def test_watchdog_s__as_systemd_asks(environ: dict[str, str], seconds: float | None) -> None:
    assert Systemd({"NOTIFY_SOCKET": "/run/x", **environ}).watchdog_s == seconds
