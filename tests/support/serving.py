"""A real `edgekit serve` process, for tests of what users of the command see."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import paho.mqtt.client as mqtt

from edgekit.profiles import ServeSettings

MAIN = "from edgekit.cli.main import main; main()"
SETTINGS = ServeSettings(threads=None, context_tokens=512, slots=2, kv_cells=600, batch_tokens=128)
LONG = {
    "messages": [{"role": "user", "content": "Count."}],
    "stream": True,
    "max_tokens": 400,
    "logit_bias": {"2": -100},
}


def wait_until(condition: Callable[[], Any], timeout_s: float = 60.0) -> Any:
    end_s = time.monotonic() + timeout_s
    while not (value := condition()):
        assert time.monotonic() < end_s, "the condition did not come true in time"
        time.sleep(0.02)
    return value


class Serving:
    """A running `edgekit serve`. `fault` is code that breaks something in it first."""

    def __init__(self, log: Path, *arguments: str | Path, fault: str = "", **environ: str) -> None:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("EDGEKIT_")}
        self._log = log
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-c", fault + MAIN, "serve", *(str(argument) for argument in arguments)],
                env={**inherited, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), **environ},
                cwd=log.parent,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    @property
    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def wait_for(self, pattern: str) -> re.Match[str]:
        def found() -> re.Match[str] | None:
            match = re.search(pattern, self.log)
            assert match or self.process.poll() is None, self.log
            return match

        match = wait_until(found)
        assert isinstance(match, re.Match)
        return match

    @property
    def url(self) -> str:
        return self.wait_for(r"listening on (http://\S+)")[1]

    def exit_code(self, timeout_s: float = 60.0) -> int:
        return self.process.wait(timeout_s)

    def terminate(self) -> None:
        self.process.send_signal(signal.SIGTERM)


Serve = Callable[..., Serving]


@contextmanager
def messages_of(port: int) -> Iterator[list[tuple[str, dict[str, Any]]]]:
    """All messages that come in, as kind and content."""
    received: list[tuple[str, dict[str, Any]]] = []
    subscribed = threading.Event()
    client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2)
    client.on_connect = lambda *_: client.subscribe("#", qos=1)
    client.on_subscribe = lambda *_: subscribed.set()
    client.on_message = lambda _client, _data, message: received.append(
        (message.topic.rsplit("/", 1)[1], json.loads(message.payload))
    )
    client.connect("127.0.0.1", port)
    client.loop_start()
    try:
        assert subscribed.wait(10)
        yield received
    finally:
        client.loop_stop()
        client.disconnect()
