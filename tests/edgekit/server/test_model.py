from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast

import pytest

from edgekit.engine.base import Sampling
from edgekit.errors import EdgekitError, EngineError, EngineStoppedError, ModelFileError
from edgekit.facts import ModelFacts
from edgekit.server.errors import ApiError
from edgekit.server.model import LoadedModel, ModelSlot


@dataclass
class Engine:
    """As much of an engine as a slot touches."""

    failure: EngineError | None = None
    closed: threading.Event = field(default_factory=threading.Event)

    def close(self) -> None:
        self.closed.set()


def loaded(engine: Engine) -> LoadedModel:
    return LoadedModel("model", cast(Any, engine), cast(ModelFacts, None), None, "", Sampling())


def started(slot: ModelSlot) -> ModelSlot:
    async def start() -> None:
        slot.start()

    asyncio.run(start())
    return slot


def status_of(ask: Callable[[], object]) -> int:
    with pytest.raises(ApiError) as raised:
        ask()
    return raised.value.status


def test_close__stops_a_load_and_waits_for_it() -> None:
    seen: list[object] = []
    loading = threading.Event()

    def load(stop: threading.Event) -> LoadedModel:
        loading.set()
        assert stop.wait(10)
        seen.append("load ended")
        raise EngineStoppedError("loading was stopped")

    slot = started(ModelSlot(load, on_failure=seen.append))
    assert loading.wait(10)
    slot.close()
    assert seen == ["load ended"]
    assert slot.failure is None


def test_close__model_that_comes_too_late_is_freed_and_not_announced() -> None:
    engine, announced = Engine(), []

    def load(stop: threading.Event) -> LoadedModel:
        assert stop.wait(10)
        return loaded(engine)

    slot = started(ModelSlot(load, on_ready=announced.append))
    slot.close()
    assert engine.closed.is_set()
    assert announced == []
    assert slot.model is None


def test_close__without_start_and_twice() -> None:
    slot = ModelSlot(lambda _stop: loaded(Engine()))
    slot.close()
    slot.close()


def test_failure__of_loading_is_told_once() -> None:
    def load(_stop: threading.Event) -> LoadedModel:
        raise ModelFileError("model.gguf: truncated")

    told: list[EdgekitError] = []
    slot = ModelSlot(load, on_failure=told.append)
    assert status_of(slot.ready_model) == 503
    started(slot).close()
    assert told == [slot.failure]
    assert status_of(slot.ready_model) == 500


def test_failure__of_the_engine_is_the_slots() -> None:
    engine, ready = Engine(), threading.Event()
    slot = started(ModelSlot(lambda _stop: loaded(engine), on_ready=lambda _model: ready.set()))
    assert ready.wait(10)
    assert slot.ready_model().name == "model"
    engine.failure = EngineError("the engine has stopped")
    assert slot.failure is engine.failure
    assert status_of(slot.ready_model) == 500
