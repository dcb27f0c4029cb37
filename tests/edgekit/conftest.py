from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from live_server import load_student, running_server, wait_until_ready


@pytest.fixture(scope="session")
def server_url(student: Path) -> Iterator[str]:
    with running_server(lambda: load_student(student)) as url:
        wait_until_ready(url)
        yield url
