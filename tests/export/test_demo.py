"""The demo itself, with both brokers."""

from __future__ import annotations

import socket
from pathlib import Path

import psutil
import pytest

from edgekit.bundle.bundle import verify_bundle
from edgekit.bundle.signing import load_public_key
from edgekit.fleet.subscriber import FleetSubscriber
from export.demo import run_demo
from export.demo.broker import running_broker
from export.progress import silent


def test_run_demo__does_the_main_job_and_leaves_nothing_running(tmp_path: Path, student: Path) -> None:
    said: list[str] = []
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    result = run_demo(tmp_path / "demo", say=said.append, progress=silent, student=student)
    text = "".join(said)
    assert "mosquitto" in text
    assert "online (started)" in text
    assert "offline (shutdown)" in text
    assert "neural network" in text
    assert result.decode_tokens_per_s > 0
    assert result.ttft_s > 0
    assert {child.pid for child in psutil.Process().children(recursive=True)} == before
    bundle = verify_bundle(tmp_path / "demo" / "bundle", load_public_key(str(result.public_key_path)))
    assert bundle.digest == result.bundle.digest
    # Again in the same place: the earlier demo is replaced.
    again = run_demo(tmp_path / "demo", say=said.append, progress=silent, student=student)
    assert again.bundle.manifest.release >= bundle.manifest.release


def test_running_broker__without_mosquitto_an_embedded_one_starts(tmp_path: Path) -> None:
    with running_broker(tmp_path, which=lambda name, path=None: None) as broker:
        assert "amqtt" in broker.name
        with FleetSubscriber(broker.url):
            pass
        port = int(broker.url.rsplit(":", 1)[1])
    with pytest.raises(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port), timeout=1):
        pass
