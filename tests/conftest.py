"""What every test may use."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def student() -> Path:
    """SmolLM2-135M-Instruct Q4_1, a real GGUF student (cached; EDGEKIT_SAMPLE_STUDENT names a local copy)."""
    local = os.environ.get("EDGEKIT_SAMPLE_STUDENT")
    if local:
        return Path(local)
    from export.sample_student import fetch_sample_student

    return fetch_sample_student()
