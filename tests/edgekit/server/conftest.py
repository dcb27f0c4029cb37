from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from live_server import running_server, wait_until_ready
from scripted_engine import ScriptedEngine, scripted_model


@pytest.fixture
def serve_script() -> Iterator[Callable[..., str]]:
    """Serve a scripted engine over real HTTP; gives the base URL."""
    with ExitStack() as stack:

        def serve(engine: ScriptedEngine, **model: Any) -> str:
            url = stack.enter_context(running_server(lambda: scripted_model(engine, **model)))
            wait_until_ready(url)
            return url

        yield serve


@pytest.fixture(scope="module")
def scripted_url() -> Iterator[str]:
    """A server whose engine says "ok" to everything."""
    with running_server(lambda: scripted_model(ScriptedEngine())) as url:
        wait_until_ready(url)
        yield url
