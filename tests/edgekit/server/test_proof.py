from __future__ import annotations

from pathlib import Path

import pytest
from front_server import HandEngine
from live_server import load_student

from edgekit.engine.base import Failed
from edgekit.errors import EngineError, TelemetryError
from edgekit.server.proof import decode_one_token


def test_decode_one_token__real_model_and_nothing_is_kept(student: Path) -> None:
    engine = load_student(student).engine
    try:
        for _ in range(3):
            decode_one_token(engine, timeout_s=60)
        # Ended streams that were cancelled are gone after the next step at the latest.
        decode_one_token(engine, timeout_s=60)
        stats = engine.stats()
        assert stats.steps >= 4
        assert stats.requests_finished == 0
        assert stats.kv_cells_used <= 8
    finally:
        engine.close()


def test_decode_one_token__no_answer_in_time() -> None:
    engine = HandEngine()
    with pytest.raises(EngineError, match=r"within 0\.05 s"):
        decode_one_token(engine, timeout_s=0.05)
    assert engine.streams[0].cancelled.is_set()


@pytest.mark.parametrize("error", [EngineError("out of luck"), TelemetryError("out of luck")])
def test_decode_one_token__failure_is_raised(error: EngineError) -> None:
    engine = HandEngine(on_submit=lambda stream: stream.end(Failed(error)))
    with pytest.raises(EngineError, match="out of luck"):
        decode_one_token(engine, timeout_s=30)
