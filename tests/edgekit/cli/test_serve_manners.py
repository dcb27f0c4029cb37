"""How `edgekit serve` starts, ends and defends itself: a real process, real signals, real sockets."""

from __future__ import annotations

import json
import signal
import ssl
import subprocess
from pathlib import Path
from typing import Any

import httpx
import pytest
from front_server import Posting
from notify_socket import notify_socket
from serving import Serve, messages_of, wait_until

from edgekit.server.watchdog import STUCK_EXIT_CODE

ENDLESS: dict[str, Any] = {
    "messages": [{"role": "user", "content": "Count."}],
    "max_tokens": 450,
    "logit_bias": {"2": -100},
}
SLOW_STEPS = """
import time
from edgekit.engine.llama import LlamaRunner
working = LlamaRunner.run
def run(self, slices):
    time.sleep(0.1)
    return working(self, slices)
LlamaRunner.run = run
"""
STUCK_STEP = """
import pathlib, time
from edgekit.engine.llama import LlamaRunner
working = LlamaRunner.run
def run(self, slices):
    while pathlib.Path("hang").exists():
        time.sleep(0.05)
    return working(self, slices)
LlamaRunner.run = run
"""
NO_LUCK = """
from edgekit.engine.llama import LlamaRunner
def run(self, slices): raise RuntimeError("out of luck")
LlamaRunner.run = run
"""


def streaming(url: str) -> Posting:
    """An endless stream that has begun."""
    posting = Posting(url, {**ENDLESS, "stream": True})
    wait_until(lambda: any('"content":' in line for line in posting.lines))
    return posting


def health(url: str) -> dict[str, Any]:
    answer = httpx.get(f"{url}/health", timeout=30)
    return {"http": answer.status_code, **answer.json()}


def test_sigterm__what_is_under_way_ends_in_peace(serve: Serve, bundle: Path) -> None:
    serving = serve(bundle, "--integrity-only", "--port", "0", "--drain-timeout", "60", fault=SLOW_STEPS)
    serving.wait_for("ready: student")
    posting = Posting(serving.url, {**ENDLESS, "stream": True, "max_tokens": 20})
    wait_until(lambda: any('"content":' in line for line in posting.lines))
    serving.terminate()
    draining = wait_until(lambda: health(serving.url) if health(serving.url)["http"] == 503 else None)
    assert draining["status"] == "draining"
    assert draining["streams_left"] == 1
    refused = httpx.post(f"{serving.url}/v1/chat/completions", json=ENDLESS, timeout=30)
    assert refused.status_code == 503
    assert refused.json()["error"]["code"] == "shutting_down"
    lines = posting.join().lines
    assert '"finish_reason":"length"' in "".join(lines)
    assert lines[-1] == "data: [DONE]"
    assert serving.exit_code() == 0


@pytest.mark.parametrize("ended_by", ["time", "second signal"])
def test_sigterm__what_takes_too_long_is_told(serve: Serve, bundle: Path, ended_by: str) -> None:
    limit = "0.2" if ended_by == "time" else "600"
    serving = serve(bundle, "--integrity-only", "--port", "0", "--drain-timeout", limit, fault=SLOW_STEPS)
    serving.wait_for("ready: student")
    streamed = streaming(serving.url)
    whole = Posting(serving.url, ENDLESS)
    metrics = f"{serving.url}/metrics"
    wait_until(lambda: "llamacpp:requests_processing 2" in httpx.get(metrics, timeout=30).text)
    serving.terminate()
    if ended_by == "second signal":
        serving.wait_for("draining: 2 requests")
        serving.process.send_signal(signal.SIGINT)
    *_, error, done = streamed.join().lines
    assert json.loads(error.removeprefix("data: "))["error"]["code"] == "shutting_down"
    assert done == "data: [DONE]"
    assert whole.join().status == 503
    assert serving.exit_code() == 0
    assert "Traceback" not in serving.log


def test_systemd__from_start_to_end(serve: Serve, bundle: Path, tmp_path: Path) -> None:
    with notify_socket(tmp_path / "notify") as told:
        environ = {"NOTIFY_SOCKET": told.name, "WATCHDOG_USEC": "2000000"}
        serving = serve(bundle, "--integrity-only", "--port", "0", **environ)
        ready = told.wait_for(lambda message: "READY" in message)
        assert ready == {"READY": "1", "STATUS": "serving student"}
        # A token has been decoded before anybody was told.
        page = httpx.get(f"{serving.url}/metrics", timeout=30).text
        assert "llamacpp:prompt_tokens_total 0.0" not in page
        for _ in range(3):
            told.wait_for(lambda message: message == {"WATCHDOG": "1"})
        serving.terminate()
        stopping = told.wait_for(lambda message: "STOPPING" in message)
        assert int(stopping["EXTEND_TIMEOUT_USEC"]) > 30_000_000
        assert serving.exit_code() == 0
    said = [message["STATUS"] for message in told.messages if list(message) == ["STATUS"]]
    assert said == ["checking the bundle", "loading student", "trying student"]
    before_ready = told.messages[: told.messages.index(ready)]
    assert any("EXTEND_TIMEOUT_USEC" in message for message in before_ready)
    assert not any("WATCHDOG" in message for message in before_ready)


def test_systemd__model_that_cannot_decode_is_never_ready(serve: Serve, bundle: Path, tmp_path: Path) -> None:
    with notify_socket(tmp_path / "notify") as told:
        serving = serve(bundle, "--integrity-only", "--port", "0", fault=NO_LUCK, NOTIFY_SOCKET=told.name)
        told.wait_for(lambda message: message.get("STATUS", "").startswith("failed: "))
        assert serving.exit_code() == 1
        assert not any("READY" in message for message in told.messages)
    assert "out of luck" in serving.log


def test_stuck_step__ends_the_process_and_is_told(
    serve: Serve, bundle: Path, tmp_path: Path, mosquitto_port: int
) -> None:
    with messages_of(mosquitto_port) as received, notify_socket(tmp_path / "notify") as told:
        environ = {"NOTIFY_SOCKET": told.name, "WATCHDOG_USEC": "1000000"}
        serving = serve(
            *(bundle, "--integrity-only", "--port", "0", "--step-timeout", "3"),
            *("--mqtt", f"mqtt://127.0.0.1:{mosquitto_port}"),
            fault=STUCK_STEP,
            **environ,
        )
        serving.wait_for("ready: student")
        wait_until(lambda: received)
        (tmp_path / "hang").touch()
        Posting(serving.url, ENDLESS)
        assert serving.exit_code() == STUCK_EXIT_CODE
        wait_until(lambda: [1 for kind, _ in received if kind == "event"])
    events = [message for kind, message in received if kind == "event"]
    assert [(event["event"], event["severity"]) for event in events] == [("engine_stuck", "error")]
    assert "a step of the engine has been running for" in serving.log
    # Where it hangs.
    assert "in run\n" in serving.log


def test_load_failure__is_told_to_the_broker(serve: Serve, bundle: Path, mosquitto_port: int) -> None:
    broker = f"mqtt://127.0.0.1:{mosquitto_port}"
    with messages_of(mosquitto_port) as received:
        serving = serve(bundle, "--integrity-only", "--port", "0", "--mqtt", broker, fault=NO_LUCK)
        assert serving.exit_code() == 1
        wait_until(lambda: [1 for kind, message in received if message.get("state") == "offline"])
    (event,) = [message for kind, message in received if kind == "event"]
    assert (event["event"], event["severity"]) == ("load_failed", "error")
    assert "out of luck" in event["detail"]["message"]


def test_load_failure__broker_that_is_not_there_holds_nobody_long(serve: Serve, bundle: Path) -> None:
    (bundle_without_model := bundle.parent / "nothing").mkdir(exist_ok=True)
    serving = serve(bundle_without_model, "--integrity-only", "--port", "0", "--mqtt", "mqtt://127.0.0.1:1")
    assert serving.exit_code(30) == 1
    assert "edgekit: " in serving.log


def test_tls__and_keys_that_change(serve: Serve, bundle: Path, tmp_path: Path) -> None:
    certificate, key, keys = tmp_path / "cert.pem", tmp_path / "key.pem", tmp_path / "keys"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"),
            *("-nodes", "-days", "2", "-subj", "/CN=pi", "-addext", "subjectAltName=IP:127.0.0.1"),
            *("-keyout", key, "-out", certificate),
        ],
        check=True,
        capture_output=True,
    )
    keys.write_text("old\n")
    keys.chmod(0o600)
    serving = serve(
        *(bundle, "--integrity-only", "--port", "0", "--tls-cert", certificate, "--tls-key", key),
        *("--api-key-file", keys),
    )
    serving.wait_for("ready: student")
    url = serving.wait_for(r"listening on (https://\S+)")[1]
    trusted = ssl.create_default_context(cafile=str(certificate))

    def status(token: str) -> int:
        headers = {"authorization": f"Bearer {token}"}
        return httpx.get(f"{url}/v1/models", headers=headers, verify=trusted, timeout=30).status_code

    assert (status("old"), status("new")) == (200, 401)
    keys.write_text("new\n")
    serving.process.send_signal(signal.SIGHUP)
    serving.wait_for("1 API keys are good from now on")
    assert (status("old"), status("new")) == (401, 200)
    serving.terminate()
    assert serving.exit_code() == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--tls-cert", "cert.pem"], "--tls-cert and --tls-key go together"),
        (["--tls-cert", "cert.pem", "--tls-key", "key.pem"], "cannot read the TLS certificate"),
        (["--allow-origin", "chat.example.org"], "is no origin"),
    ],
)
def test_arguments__are_checked_before_the_model(
    serve: Serve, bundle: Path, arguments: list[str], said: str
) -> None:
    serving = serve(bundle, "--integrity-only", "--port", "0", *arguments)
    assert serving.exit_code() == 2
    assert said in serving.log
    assert "verifying" not in serving.log


def test_rebound_name__is_refused_unless_allowed(serve: Serve, bundle: Path) -> None:
    serving = serve(bundle, "--integrity-only", "--port", "0", "--allow-host", "pi.local")
    url = serving.url

    def status(host: str) -> int:
        return httpx.get(f"{url}/metrics", headers={"host": host}, timeout=30).status_code

    assert status("evil.example") == 403
    assert status("pi.local") == 200
    assert status("localhost") == 200
    serving.terminate()
    assert serving.exit_code() == 0
