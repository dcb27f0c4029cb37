"""`edgekit serve` as a user runs it: a process, its exit codes, signals, and a real broker."""

from __future__ import annotations

import os
import re
import shutil
import socket
import time
from pathlib import Path

import httpx
import psutil
import pytest
from serving import SETTINGS, Serve, messages_of, wait_until

from edgekit.bundle.keys import generate_key_pair
from edgekit.cli.serve import adapt_settings
from edgekit.errors import UsageError
from edgekit.profiles import ServeSettings

BROKEN_ENGINE = """
from edgekit.engine.llama import LlamaRunner
working, opened = LlamaRunner.open_sampler, []
def open_sampler(self, sampling, prompt):
    opened.append(prompt)
    return working(self, sampling, prompt)
computes = LlamaRunner.run
def run(self, slices):
    # The first request is the server's own proof that it decodes.
    if len(opened) > 1: raise RuntimeError("out of luck")
    return computes(self, slices)
LlamaRunner.open_sampler, LlamaRunner.run = open_sampler, run
"""
BROKEN_SENSORS = """
import edgekit.server.reporting
def open_sensors(): raise OSError("no such sensor")
edgekit.server.reporting.open_sensors = open_sensors
"""
no_key_installed = pytest.mark.skipif(
    Path("/etc/edgekit/edgekit.pub").exists(), reason="this machine trusts a key of its own"
)


def test_serve__port_that_is_taken(serve: Serve, bundle: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        serving = serve(bundle, "--integrity-only", "--port", str(port))
        assert serving.exit_code() == 2
    assert f"cannot listen on 127.0.0.1:{port}" in serving.log
    assert "verifying" not in serving.log


def test_serve__open_address_needs_an_api_key(serve: Serve, bundle: Path) -> None:
    serving = serve(bundle, "--integrity-only", "--host", "0.0.0.0", "--port", "0")
    assert serving.exit_code() == 2
    assert "--api-key-file" in serving.log


@no_key_installed
def test_serve__no_public_key_names_the_way_out(serve: Serve, bundle: Path) -> None:
    serving = serve(bundle, "--port", "0")
    assert serving.exit_code() == 1
    assert "--integrity-only" in serving.log


def test_serve__wrong_key(serve: Serve, bundle: Path) -> None:
    other = generate_key_pair()[1].to_base64()
    serving = serve(bundle, "--public-key", other, "--port", "0")
    assert serving.exit_code() == 1
    assert str(bundle) in serving.log.splitlines()[-2] + serving.log.splitlines()[-1]
    assert "Traceback" not in serving.log


def test_serve__integrity_only_uses_no_key_at_all(serve: Serve, bundle: Path, public_key: str) -> None:
    both = serve(bundle, "--integrity-only", "--public-key", public_key, "--port", "0")
    other = generate_key_pair()[1].to_base64()
    around = serve(bundle, "--integrity-only", "--port", "0", EDGEKIT_PUBLIC_KEY=other)
    assert both.exit_code() == 2
    assert "leave out --public-key" in both.log
    around.wait_for("ready: student")
    around.terminate()
    assert around.exit_code() == 0


def test_serve__flipped_byte_is_found_and_named(
    serve: Serve, bundle: Path, public_key: str, tmp_path: Path
) -> None:
    damaged = tmp_path / "damaged"
    shutil.copytree(bundle, damaged)
    with (damaged / "model.gguf").open("r+b") as file:
        file.seek(-1000, os.SEEK_END)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1]))
    serving = serve(damaged, "--public-key", public_key, "--port", "0")
    assert serving.exit_code() == 1
    assert "model.gguf was changed" in serving.log
    assert "listening on" in serving.log
    assert "Traceback" not in serving.log


def test_serve__certificates_that_are_not_there(serve: Serve, bundle: Path) -> None:
    broker = "mqtts://127.0.0.1:1?ca=/nonexistent/ca.pem"
    serving = serve(bundle, "--integrity-only", "--port", "0", EDGEKIT_MQTT=broker)
    assert serving.exit_code() == 1
    assert "/nonexistent/ca.pem" in serving.log
    assert "verifying" not in serving.log


def test_serve__sigterm_while_loading_leaves_no_child(serve: Serve, bundle: Path) -> None:
    serving = serve(bundle, "--integrity-only", "--port", "0")
    serving.wait_for("loading student")
    (child,) = wait_until(psutil.Process(serving.process.pid).children)
    assert httpx.get(f"{serving.url}/health").status_code == 503
    begun = time.monotonic()
    serving.terminate()
    assert serving.exit_code() == 0
    assert time.monotonic() - begun < 10
    assert not child.is_running()
    assert "ready:" not in serving.log


def test_serve__reports_from_start_to_end(
    serve: Serve, bundle: Path, public_key: str, mosquitto_port: int
) -> None:
    with messages_of(mosquitto_port) as received:
        serving = serve(
            *(bundle, "--public-key", public_key, "--port", "0", "--device", "pi-1"),
            *("--telemetry-interval", "0.5"),
            EDGEKIT_MQTT=f"mqtt://127.0.0.1:{mosquitto_port}",
        )
        serving.wait_for("ready: student")
        body = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 8}
        answer = httpx.post(f"{serving.url}/v1/chat/completions", json=body, timeout=30)
        assert answer.json()["model"] == "student"
        metrics = httpx.get(f"{serving.url}/metrics").text
        assert re.search(r'edgekit_bundle_info\{.*release="7"', metrics)

        def decoded() -> bool:
            windows = [message for kind, message in received if kind == "telemetry"]
            return any((message["decode"] or {}).get("tokens") for message in windows)

        wait_until(decoded, 15)
        serving.terminate()
        assert serving.exit_code() == 0
        wait_until(lambda: received[-1][0] == "status" and received[-1][1]["state"] == "offline", 10)
    assert [message["state"] for kind, message in received if kind == "status"] == ["online", "offline"]
    assert received[0][1]["model"]["release"] == 7
    assert received[-1][1]["reason"] == "shutdown"


def test_serve__engine_that_fails_is_reported_and_ends_the_process(
    serve: Serve, bundle: Path, mosquitto_port: int
) -> None:
    broker = f"mqtt://127.0.0.1:{mosquitto_port}"
    with messages_of(mosquitto_port) as received:
        serving = serve(bundle, "--integrity-only", "--port", "0", "--mqtt", broker, fault=BROKEN_ENGINE)
        serving.wait_for("ready: student")
        wait_until(lambda: received)
        url = f"{serving.url}/v1/chat/completions"
        answer = httpx.post(url, json={"messages": [{"role": "user", "content": "Hello"}]}, timeout=30)
        assert answer.status_code == 500
        assert serving.exit_code(20) == 1
        wait_until(lambda: [message["state"] for kind, message in received if kind == "status"][1:], 10)
    events = [message for kind, message in received if kind == "event"]
    assert [(event["event"], event["severity"]) for event in events] == [("engine_failed", "error")]
    assert "out of luck" in events[0]["detail"]["message"]
    assert "edgekit: the engine has stopped: RuntimeError: out of luck" in serving.log


def test_serve__goes_on_without_telemetry_that_cannot_start(serve: Serve, bundle: Path) -> None:
    serving = serve(
        bundle, "--integrity-only", "--port", "0", "--mqtt", "mqtt://127.0.0.1:1", fault=BROKEN_SENSORS
    )
    serving.wait_for("ready: student")
    assert "serving without telemetry" in serving.log
    assert httpx.get(f"{serving.url}/health").status_code == 200
    serving.terminate()
    assert serving.exit_code() == 0


def adapted(**given: int) -> ServeSettings:
    return adapt_settings(SETTINGS, **{"threads": None, "context_tokens": None, "slots": None, **given})


def test_adapt_settings__what_is_not_given_stays() -> None:
    assert adapted() == SETTINGS
    assert adapted(threads=3).threads == 3


def test_adapt_settings__cache_grows_with_the_context_and_does_not_shrink() -> None:
    assert adapted(context_tokens=4096).kv_cells == 4096
    assert adapted(context_tokens=128).kv_cells == 600


@pytest.mark.parametrize("given", [{"slots": 129}, {"slots": 0}, {"threads": -1}])
def test_adapt_settings__what_does_not_go_together(given: dict[str, int]) -> None:
    with pytest.raises(UsageError):
        adapted(**given)
