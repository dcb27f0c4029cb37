"""A real server on a free port, with the real model, for any test that needs one."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import uvicorn

from edgekit.engine.base import Sampling
from edgekit.engine.chat_template import ChatTemplate
from edgekit.engine.llama import LlamaRunner
from edgekit.engine.scheduler import Scheduler
from edgekit.gguf_header import model_facts, read_gguf_header
from edgekit.profiles import ServeSettings
from edgekit.server.access import ApiKeys
from edgekit.server.app import create_app
from edgekit.server.metrics import Metrics
from edgekit.server.model import LoadedModel, ModelSlot

http = httpx.Client(timeout=60)
"""For requests of tests: on a busy machine a decode may take seconds."""


@contextmanager
def running_server(
    load: Callable[[], LoadedModel], keys: ApiKeys | None = None, *, body_timeout_s: float = 30.0
) -> Iterator[str]:
    """Serve until the block ends; yields the base URL."""
    slot = ModelSlot(
        lambda _stop: load(), on_ready=lambda model: metrics.watch(model.engine, {"release": "1"})
    )
    metrics = Metrics(slot)
    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    config = uvicorn.Config(
        create_app(slot, metrics=metrics, keys=keys, body_timeout_s=body_timeout_s), log_config=None
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive(), "the server died at once"
            time.sleep(0.01)
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(30)
        listening.close()


def wait_until_ready(url: str) -> None:
    deadline = time.monotonic() + 60
    while httpx.get(f"{url}/health").status_code != 200:
        assert time.monotonic() < deadline, "not ready in a minute"
        time.sleep(0.05)


def load_student(path: Path, *, template: str | None = None) -> LoadedModel:
    runner = LlamaRunner(path, ServeSettings(threads=None, context_tokens=512, slots=4))
    source = template or runner.chat_template
    assert source is not None
    return LoadedModel(
        name="smollm2",
        engine=Scheduler(runner, context_tokens=512, queue_limit=8),
        facts=model_facts(read_gguf_header(path)),
        template=ChatTemplate(source, bos_token=runner.bos_text, eos_token=runner.eos_text),
        bos_text=runner.bos_text,
        sampling=Sampling(temperature=0.6, top_p=0.95, top_k=40),
    )
