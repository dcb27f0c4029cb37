"""The model that a server serves: from a bundle on disk to an engine that answers."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from edgekit.engine.base import Engine, Sampling
from edgekit.engine.chat_template import ChatTemplate
from edgekit.errors import EdgekitError, EngineError
from edgekit.facts import ModelFacts
from edgekit.server.bridge import EventBridge
from edgekit.server.errors import ApiError

__all__ = ["LoadedModel", "ModelSlot"]

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model that is ready to answer.

    `sampling` holds what applies where a request says nothing.
    """

    name: str
    engine: Engine
    facts: ModelFacts
    template: ChatTemplate | None
    bos_text: str
    """Text of the token that begins a prompt, empty when the model has none."""
    sampling: Sampling
    created: int = field(default_factory=lambda: int(time.time()))
    """Unix time of loading."""


class ModelSlot:
    """Holds the model while it loads, serves, or has failed.

    The server listens from the first moment, so that a load balancer sees 503 and not a refused connection.

    Args:
        load: makes the model; called once, on a thread of its own.
        on_ready: called when the model answers.
        on_failure: called when loading has failed.
    """

    def __init__(
        self,
        load: Callable[[], LoadedModel],
        *,
        on_ready: Callable[[LoadedModel], None] = lambda model: None,
        on_failure: Callable[[EdgekitError], None] = lambda error: None,
    ) -> None:
        self._load = load
        self._on_ready = on_ready
        self._on_failure = on_failure
        self._model: LoadedModel | None = None
        self._bridge: EventBridge | None = None
        self.failure: EdgekitError | None = None

    def start(self) -> None:
        """Begin to load. Call on the event loop that will serve."""
        self._bridge = EventBridge(asyncio.get_running_loop())
        threading.Thread(target=self._run, name="load-model", daemon=True).start()

    def _run(self) -> None:
        try:
            self._model = self._load()
            self._on_ready(self._model)
        except EdgekitError as error:
            self._give_up(error)
        except Exception as error:
            log.exception("loading the model failed")
            self._give_up(EngineError(f"loading the model failed: {type(error).__name__}: {error}"))

    def _give_up(self, error: EdgekitError) -> None:
        self.failure = error
        self._on_failure(error)

    @property
    def bridge(self) -> EventBridge:
        """Where the engine's events come out."""
        assert self._bridge is not None, "the slot has not been started"
        return self._bridge

    @property
    def model(self) -> LoadedModel | None:
        """The model once it is ready, None before."""
        return self._model

    def ready_model(self) -> LoadedModel:
        """The model, or the error that a client gets instead.

        Raises:
            ApiError: 503 while loading, 500 when the model or its engine has failed.
        """
        model = self._model
        failure = self.failure or (model.engine.failure if model is not None else None)
        if failure is not None:
            raise ApiError(500, failure.message, kind="server_error", code="model_failed")
        if model is None:
            raise ApiError(
                503,
                "Loading model",
                kind="unavailable_error",
                code="model_loading",
                headers={"Retry-After": "1"},
            )
        return model

    def close(self) -> None:
        """Stop the engine and free the model."""
        if self._model is not None:
            self._model.engine.close()
