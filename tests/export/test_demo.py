"""The demo itself, with both brokers."""

from __future__ import annotations

import http.server
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from edgekit.bundle.bundle import verify_bundle
from edgekit.bundle.signing import load_public_key
from edgekit.errors import EdgekitError
from edgekit.fleet.subscriber import FleetSubscriber
from export.demo import run, run_demo
from export.demo.broker import free_port, running_broker
from export.demo.chat import Answer, stream_answer, wait_until_ready
from export.progress import silent


def _not_installed(program: str, path: str | None = None) -> None:
    return None


def _children() -> set[int]:
    return {child.pid for child in psutil.Process().children(recursive=True)}


@pytest.mark.parametrize(
    ("which", "broker"), [(shutil.which, "mosquitto ("), (_not_installed, "amqtt, embedded")]
)
def test_run_demo__does_the_main_job_and_leaves_nothing_running(
    which: Callable[..., str | None], broker: str, tmp_path: Path, student: Path
) -> None:
    said: list[str] = []
    before = _children()
    # An earlier demo in the same place is replaced.
    (tmp_path / "demo" / "bundle").mkdir(parents=True)
    (tmp_path / "demo" / "demo.key").touch()
    result = run_demo(tmp_path / "demo", say=said.append, progress=silent, student=student, which=which)
    text = "".join(said)
    assert result.broker.startswith(broker)
    assert "online (started)" in text
    assert "offline (shutdown)" in text
    assert "neural network" in text
    assert result.tokens > 0
    assert result.decode_tokens_per_s > 0
    assert result.ttft_s > 0
    assert _children() == before
    bundle = verify_bundle(tmp_path / "demo" / "bundle", load_public_key(str(result.public_key_path)))
    assert bundle.digest == result.bundle.digest


def test_demo__ended_by_sigterm_leaves_nothing_running(tmp_path: Path, student: Path) -> None:
    # The command itself, with the student that the tests have.
    code = (
        "import pathlib, sys, export.demo.run as run; student = pathlib.Path(sys.argv.pop(1)); "
        "run.fetch_sample_student = lambda progress: student; "
        "from edgekit.cli.main import main; main()"
    )
    command = [sys.executable, "-c", code, str(student), "demo", "--out", str(tmp_path / "demo")]
    demo = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert demo.stdout is not None
    for line in demo.stdout:
        if line.startswith("serving"):
            break
    started = psutil.Process(demo.pid).children(recursive=True)
    assert len(started) >= 2, "the broker and the server"
    demo.send_signal(signal.SIGTERM)
    demo.communicate(timeout=60)
    assert demo.returncode == 130
    assert not [process for process in started if process.is_running()]


def test_run_demo__server_that_dies_at_once_is_reported_with_its_last_line(
    tmp_path: Path, student: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "_FLEET", "not/a/level")
    monkeypatch.setattr(run, "FleetSubscriber", lambda url, fleet: FleetSubscriber(url))
    begun = time.monotonic()
    with pytest.raises(EdgekitError, match=r"the server ended with status 1: .*not/a/level") as caught:
        run_demo(tmp_path, say=lambda text: None, progress=silent, student=student)
    assert time.monotonic() - begun < run._READY_S / 2
    assert str(tmp_path / "server.log") in (caught.value.hint or "")


def test_run_demo__takes_no_module_of_the_working_directory(
    tmp_path: Path, student: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "psutil.py").write_text("raise SystemExit('psutil.py of the working directory ran')\n")
    monkeypatch.chdir(tmp_path)
    assert run_demo(tmp_path / "demo", say=lambda text: None, progress=silent, student=student).tokens > 0


# --- a server that goes away -------------------------------------------------------------------------------

EVENT = b'data: {"choices": [{"delta": {"content": "Hello"}}]}\n\n'


class _Leaves(http.server.BaseHTTPRequestHandler):
    """Sends a part of an answer and hangs up."""

    protocol_version = "HTTP/1.1"
    part = b""

    def do_POST(self) -> None:
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self.wfile.write(self.part)
        self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 (the base class's name)
        pass


@pytest.fixture
def leaving_server() -> Iterator[int]:
    server = http.server.HTTPServer(("127.0.0.1", 0), _Leaves)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server.server_port
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize(
    "part",
    [
        pytest.param(b"%x\r\n%s\r\n" % (len(EVENT), EVENT), id="between chunks"),
        pytest.param(b"%x\r\n%s" % (len(EVENT), EVENT[:20]), id="in a chunk"),
        pytest.param(b"%x\r\n%s\r\n0\r\n\r\n" % (len(EVENT), EVENT), id="no [DONE]"),
        pytest.param(b"%x\r\n%s\r\n0\r\n\r\n" % (20, EVENT[:20]), id="in an event"),
    ],
)
def test_stream_answer__lost_connection_is_an_error(
    part: bytes, leaving_server: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_Leaves, "part", part)
    with pytest.raises(EdgekitError, match="the connection to the server was lost"):
        list(stream_answer(leaving_server, "Hi", Answer()))


def test_stream_answer__nobody_there_is_an_error() -> None:
    with pytest.raises(EdgekitError, match=r"the connection to the server was lost: .*refused"):
        list(stream_answer(free_port(), "Hi", Answer()))


def test_wait_until_ready__dead_server_ends_the_wait() -> None:
    with pytest.raises(EdgekitError, match="ended before it was ready"):
        wait_until_ready(free_port(), timeout_s=60, is_alive=lambda: False)


def test_running_broker__without_mosquitto_an_embedded_one_starts(tmp_path: Path) -> None:
    with running_broker(tmp_path, which=_not_installed) as broker:
        assert "amqtt" in broker.name
        with FleetSubscriber(broker.url):
            pass
        port = int(broker.url.rsplit(":", 1)[1])
    with pytest.raises(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port), timeout=1):
        pass
