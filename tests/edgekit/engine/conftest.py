from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from edgekit.engine.llama import LlamaRunner
from edgekit.engine.scheduler import Scheduler
from edgekit.profiles import ServeSettings


@pytest.fixture(scope="session")
def engine(student: Path) -> Iterator[Scheduler]:
    """The real model behind the real scheduler."""
    settings = ServeSettings(threads=None, context_tokens=1024, slots=4)
    scheduler = Scheduler(LlamaRunner(student, settings), context_tokens=1024)
    yield scheduler
    scheduler.close()
