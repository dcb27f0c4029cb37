"""The model that a server serves: from a bundle on disk to an engine that answers."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from hashlib import blake2s
from typing import Final

from edgekit import __version__
from edgekit.engine.base import Engine, ReasoningTags, Sampling
from edgekit.engine.chat_template import ChatTemplate
from edgekit.engine.reasoning import reasoning_tags
from edgekit.errors import EdgekitError, EngineError
from edgekit.facts import ModelFacts
from edgekit.server.bridge import EventBridge
from edgekit.server.errors import ApiError
from edgekit.server.tools import ToolFormat, tool_format

__all__ = ["LoadedModel", "ModelSlot"]

log = logging.getLogger(__name__)

_STOP_LOADING_S = 20
"""How long to wait for a load to stop. Checking and trying the files takes minutes and stops at once; after
that llama.cpp cannot be interrupted, and has seconds to go."""

_COMPOSING_TOKENIZERS: Final = frozenset({"qwen2", "qwen35", "deepseek-r1-qwen"})
"""Pre-tokenizers, by their GGUF names, of tokenizers that bring text into Unicode's NFC first. llama.cpp does
not, so that "é" typed as two characters would come out in tokens that the model has hardly seen."""


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
    slots: int | None = None
    """Streams that the engine works on together, None where it does not say."""
    normalize_nfc: bool | None = None
    """Whether texts are brought into NFC before they are tokenized; None goes by the tokenizer's name."""

    @property
    def composes(self) -> bool:
        """Whether texts are brought into Unicode's NFC before they are tokenized."""
        if self.normalize_nfc is not None:
            return self.normalize_nfc
        return self.facts.tokenizer in _COMPOSING_TOKENIZERS

    @property
    def tools(self) -> ToolFormat:
        """How this model is told of tools, and how it calls them."""
        return _tool_format(None if self.template is None else self.template.source)

    @property
    def reasoning_tags(self) -> ReasoningTags | None:
        """What this model's family writes around its reasoning; None when its template knows of none."""
        return None if self.template is None else _reasoning_tags(self.template.source)

    @property
    def fingerprint(self) -> str:
        """OpenAI's `system_fingerprint`: changes with whatever may change the text of a seed."""
        facts = self.facts
        parts = (__version__, self.name, facts.quantization, facts.weight_bytes, facts.parameters)
        return f"fp_{blake2s(repr(parts).encode(), digest_size=5).hexdigest()}"


@lru_cache(maxsize=4)
def _tool_format(template: str | None) -> ToolFormat:
    return tool_format(template)


@lru_cache(maxsize=4)
def _reasoning_tags(template: str) -> ReasoningTags | None:
    return reasoning_tags(template)


class ModelSlot:
    """Holds the model while it loads, serves, or has failed.

    The server listens from the first moment, so that a load balancer sees 503 and not a refused connection.

    Args:
        load: makes the model; called once, on a thread of its own. Once the event it is given is set, nobody
            wants the model any more.
        on_ready: called when the model answers.
        on_failure: called when loading has failed.
    """

    def __init__(
        self,
        load: Callable[[threading.Event], LoadedModel],
        *,
        on_ready: Callable[[LoadedModel], None] = lambda model: None,
        on_failure: Callable[[EdgekitError], None] = lambda error: None,
    ) -> None:
        self._load = load
        self._on_ready = on_ready
        self._on_failure = on_failure
        self._model: LoadedModel | None = None
        self._bridge: EventBridge | None = None
        self._load_failure: EdgekitError | None = None
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="load-model", daemon=True)

    def start(self) -> None:
        """Begin to load. Call on the event loop that will serve."""
        self._bridge = EventBridge(asyncio.get_running_loop())
        self._thread.start()

    def _run(self) -> None:
        try:
            model = self._load(self._closing)
        except EdgekitError as error:
            self._give_up(error)
        except Exception as error:
            log.exception("loading the model failed")
            self._give_up(EngineError(f"loading the model failed: {type(error).__name__}: {error}"))
        else:
            if self._closing.is_set():
                model.engine.close()
                return
            self._model = model
            self._on_ready(model)

    def _give_up(self, error: EdgekitError) -> None:
        if self._closing.is_set():
            log.info("loading has ended: %s", error.message)
            return
        self._load_failure = error
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

    @property
    def failure(self) -> EdgekitError | None:
        """Why there is no model, or why its engine has stopped for good; None while all is well."""
        if self._model is not None:
            return self._model.engine.failure
        return self._load_failure

    def ready_model(self) -> LoadedModel:
        """The model, or the error that a client gets instead.

        Raises:
            ApiError: 503 while loading, 500 when the model or its engine has failed.
        """
        model = self._model
        if (failure := self.failure) is not None:
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
        """Stop loading, or stop the engine and free the model. Harmless when done before."""
        self._closing.set()
        if self._thread.ident is not None:
            self._thread.join(_STOP_LOADING_S)
            if self._thread.is_alive():
                log.warning("the model still loads after %d s: the process ends without it", _STOP_LOADING_S)
        if self._model is not None:
            self._model.engine.close()
