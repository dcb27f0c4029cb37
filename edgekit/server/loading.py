"""From a bundle on disk to a model that answers: check, try, load."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final

from edgekit.bundle.bundle import Bundle
from edgekit.engine.chat_template import ChatTemplate
from edgekit.engine.llama import LlamaRunner
from edgekit.engine.probe import probe_model
from edgekit.engine.runner import Runner
from edgekit.engine.scheduler import Scheduler
from edgekit.errors import BundleError, EngineError
from edgekit.gguf_header import read_gguf_header, validate_model
from edgekit.profiles import ServeSettings
from edgekit.server.model import LoadedModel

__all__ = ["load_bundle"]

log = logging.getLogger(__name__)


def load_bundle(
    bundle: Bundle,
    settings: ServeSettings,
    *,
    stop: threading.Event | None = None,
    on_engine_failure: Callable[[EngineError], None] = lambda error: None,
) -> LoadedModel:
    """Load a verified bundle's model.

    What can be read without running it is checked first, then the model is tried in a child process, then it
    is loaded here: no file that is damaged or meant for another CPU can take the server down.

    Args:
        bundle: a verified bundle.
        settings: threads, context and streams.
        stop: when set, loading ends with an error as soon as it can.
        on_engine_failure: called on the engine's thread when the engine stops for good.

    Raises:
        BundleError: the bundle is for another runtime.
        EngineStoppedError: `stop` was set.
        ModelFileError, EngineError, MissingExtraError: see there.
    """
    manifest = bundle.manifest
    open_model = _RUNTIMES.get(manifest.runtime)
    if open_model is None:
        raise BundleError(
            f"{bundle.path}: made for the runtime {manifest.runtime}; this server runs bundles for "
            f"{' and '.join(_RUNTIMES)}",
            hint="export the model with --format gguf",
        )
    opened = open_model(bundle.entry_path, settings, stop)
    text = opened.runner.text
    try:
        template = (
            ChatTemplate(text.chat_template, bos_token=text.bos, eos_token=text.eos)
            if text.chat_template
            else None
        )
    except BaseException:
        opened.runner.close()
        raise
    return LoadedModel(
        name=manifest.name,
        engine=Scheduler(
            opened.runner,
            context_tokens=opened.context_tokens,
            prefill_tokens=settings.ubatch_tokens,
            on_failure=on_engine_failure,
        ),
        facts=manifest.model,
        template=template,
        bos_text=text.bos,
        sampling=text.sampling,
        slots=opened.runner.streams,
        normalize_nfc=opened.normalize_nfc,
    )


@dataclass(frozen=True, slots=True)
class _Opened:
    """A loaded model, and what a server has to know of its runtime."""

    runner: Runner
    context_tokens: int
    normalize_nfc: bool | None
    """See `LoadedModel`."""


def _open_gguf(path: Path, settings: ServeSettings, stop: threading.Event | None) -> _Opened:
    validate_model(read_gguf_header(path))
    probe_model(path, settings, stop=stop)
    return _Opened(LlamaRunner(path, settings), settings.context_tokens, None)


def _open_onnx(path: Path, settings: ServeSettings, stop: threading.Event | None) -> _Opened:
    # Needs packages that a device which serves GGUF has no use for.
    from edgekit.engine.onnx.probe import probe_graph
    from edgekit.engine.onnx.runner import OnnxRunner

    probe_graph(path, threads=settings.threads, stop=stop)
    runner = OnnxRunner(path, settings)
    if runner.context_tokens < settings.context_tokens:
        log.warning(
            "the graph knows %d positions: the context is that long, and not %d tokens",
            runner.context_tokens,
            settings.context_tokens,
        )
    # tokenizer.json says itself how text is normalized.
    return _Opened(runner, runner.context_tokens, False)


_RUNTIMES: Final = MappingProxyType({"llama.cpp": _open_gguf, "onnxruntime": _open_onnx})
