"""fetch → keygen → export → verify → broker → serve → ask → telemetry, and everything stopped again."""

from __future__ import annotations

import contextlib
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from edgekit.bundle.bundle import Bundle, verify_bundle
from edgekit.bundle.signing import generate_key_pair, write_key_pair
from edgekit.errors import EdgekitError, TelemetryError
from edgekit.fleet.subscriber import FleetSubscriber, Received
from edgekit.fleet.watch import to_line
from edgekit.profiles import load_profile
from edgekit.telemetry.messages import Status, Telemetry
from export.demo.broker import free_port, running_broker
from export.demo.chat import Answer, stream_answer, wait_until_ready
from export.pipeline import export_bundle
from export.progress import Progress
from export.sample_student import fetch_sample_student
from export.this_machine import of_this_machine

__all__ = ["DemoResult", "run_demo"]

_QUESTION = "What is a neural network? Answer in three sentences."
_FLEET = "demo"
_REPORT_S = 1.0
_READY_S = 120
_ENDING_S = 1
_TELEMETRY_S = 30


@dataclass(frozen=True, slots=True)
class DemoResult:
    """What the demo measured. Times in seconds; figures that came over MQTT say so."""

    seconds: float
    bundle: Bundle
    public_key_path: Path
    broker: str
    tokens: int
    decode_tokens_per_s: float
    """As the telemetry told it."""
    ttft_s: float
    """As the telemetry told it."""
    server_rss_bytes: int | None
    """As the telemetry told it."""


def run_demo(
    directory: Path,
    *,
    say: Callable[[str], None],
    progress: Progress,
    student: Path | None = None,
    which: Callable[..., str | None] = shutil.which,
) -> DemoResult:
    """Do the main job once and leave nothing running.

    Args:
        directory: where the keys and the bundle go; replaced when it holds an earlier demo.
        say: takes text for the terminal, as it comes.
        progress: long steps.
        student: the model to take; None fetches SmolLM2-135M-Instruct.
        which: finds the broker, as `shutil.which` does.

    Raises:
        EdgekitError: any step failed.
    """
    begun = time.monotonic()
    student = student or fetch_sample_student(progress=progress)
    _clear(directory)
    directory.mkdir(parents=True, exist_ok=True)
    secret_path, public_path = directory / "demo.key", directory / "demo.pub"
    secret_key, public_key = generate_key_pair()
    write_key_pair(secret_key, secret_path, public_path)
    profile = load_profile("host")
    export_bundle(
        student,
        profile,
        directory / "bundle",
        secret_key=secret_key,
        at_hand=of_this_machine(profile),
        progress=progress,
    )
    bundle = verify_bundle(directory / "bundle", public_key)
    manifest = bundle.manifest
    say(f"\nbundle    {bundle.path}: {manifest.model.quantization}, release {manifest.release}\n")
    say(f"verified  all files match the manifest, signed by key {bundle.signed_by}\n")
    with running_broker(directory, which=which) as broker:
        say(f"broker    {broker.name}, {broker.url}\n")
        with FleetSubscriber(broker.url, fleet=_FLEET) as subscriber:
            port = free_port()
            log_path = directory / "server.log"
            with _running_server(bundle, public_path, port, broker.url, log_path) as server:
                wait_until_ready(port, timeout_s=_READY_S, is_alive=lambda: server.poll() is None)
                say(f"serving   http://127.0.0.1:{port}/v1\n\n> {_QUESTION}\n")
                answer = Answer()
                for text in stream_answer(port, _QUESTION, answer):
                    say(text)
                say("\n\ntelemetry that came back through the broker:\n")
                received = _show_until_decoded(subscriber, say)
            _show_until_offline(subscriber, say)
    telemetry = received.message
    assert isinstance(telemetry, Telemetry)
    return DemoResult(
        seconds=time.monotonic() - begun,
        bundle=bundle,
        public_key_path=public_path,
        broker=broker.name,
        tokens=answer.tokens,
        decode_tokens_per_s=telemetry.decode.tokens_per_s_total or 0.0,
        ttft_s=telemetry.ttft_s.p50 or 0.0,
        server_rss_bytes=telemetry.memory.process_rss_bytes,
    )


def _clear(directory: Path) -> None:
    """Remove an earlier demo, and nothing else that happens to lie there."""
    shutil.rmtree(directory / "bundle", ignore_errors=True)
    for name in ("demo.key", "demo.pub", "mosquitto.conf", "mosquitto.log", "server.log"):
        (directory / name).unlink(missing_ok=True)


@contextmanager
def _running_server(
    bundle: Bundle, public_key: Path, port: int, broker_url: str, log_path: Path
) -> Iterator[subprocess.Popen[bytes]]:
    """`edgekit serve` as a user runs it, in a process of its own."""
    options = ["--port", str(port), "--public-key", str(public_key), "--mqtt", broker_url, "--fleet", _FLEET]
    # -P: without it `-m` looks for modules in the working directory first.
    command = [sys.executable, "-P", "-m", "edgekit", "serve", str(bundle.path), *options]
    with log_path.open("wb") as log:
        server = subprocess.Popen(
            [*command, "--telemetry-interval", str(_REPORT_S)],
            stdout=log,
            stderr=log,
            stdin=subprocess.DEVNULL,
        )
        try:
            yield server
        except EdgekitError as error:
            # Its connections close before it has ended.
            with contextlib.suppress(subprocess.TimeoutExpired):
                server.wait(_ENDING_S)
            if server.returncode is not None:
                raise EdgekitError(
                    f"the server ended with status {server.returncode}: {_last_words(log_path)}",
                    hint=f"all that it said is in {log_path}",
                ) from error
            raise
        finally:
            server.send_signal(signal.SIGTERM)
            try:
                server.wait(30)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()


def _last_words(log_path: Path) -> str:
    """The log's last message: its last line, or a line and those indented under it."""
    words: list[str] = []
    for line in reversed(log_path.read_text("utf-8", "replace").splitlines()):
        if line.strip():
            words.insert(0, line.strip())
            if not line.startswith(" "):
                break
    return "; ".join(words) or "it said nothing"


def _show_until_decoded(subscriber: FleetSubscriber, say: Callable[[str], None]) -> Received:
    """Show messages until one tells of a finished request; returns that one."""
    for received in subscriber.messages(timeout_s=_TELEMETRY_S):
        say(f"  {to_line(received)}\n")
        message = received.message
        if isinstance(message, Telemetry) and message.requests.finished:
            return received
    raise TelemetryError(f"no telemetry of the request came back within {_TELEMETRY_S} s")


def _show_until_offline(subscriber: FleetSubscriber, say: Callable[[str], None]) -> None:
    for received in subscriber.messages(timeout_s=_TELEMETRY_S):
        if isinstance(received.message, Status):
            say(f"  {to_line(received)}\n")
            if received.message.state == "offline":
                return
    raise TelemetryError("the server's last word did not come back")
