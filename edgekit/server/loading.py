"""From a bundle on disk to a model that answers: check, try, load."""

from __future__ import annotations

import threading
from collections.abc import Callable

from edgekit.bundle.bundle import Bundle
from edgekit.engine.base import Sampling
from edgekit.engine.chat_template import ChatTemplate
from edgekit.engine.llama import LlamaRunner
from edgekit.engine.probe import probe_model
from edgekit.engine.scheduler import Scheduler
from edgekit.errors import BundleError, EngineError
from edgekit.gguf_header import read_gguf_header, validate_model
from edgekit.profiles import ServeSettings
from edgekit.server.model import LoadedModel

__all__ = ["load_bundle"]


def load_bundle(
    bundle: Bundle,
    settings: ServeSettings,
    *,
    stop: threading.Event | None = None,
    on_engine_failure: Callable[[EngineError], None] = lambda error: None,
) -> LoadedModel:
    """Load a verified bundle's model.

    The file's header is checked first, then the file is tried in a child process, then it is loaded here:
    no file that is damaged or meant for another CPU can take the server down.

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
    if manifest.runtime != "llama.cpp":
        raise BundleError(
            f"{bundle.path}: made for the runtime {manifest.runtime}; this server runs llama.cpp bundles",
            hint="export the model with --format gguf",
        )
    validate_model(read_gguf_header(bundle.entry_path))
    probe_model(bundle.entry_path, settings, stop=stop)
    runner = LlamaRunner(bundle.entry_path, settings)
    source = runner.chat_template
    template = ChatTemplate(source, bos_token=runner.bos_text, eos_token=runner.eos_text) if source else None
    return LoadedModel(
        name=manifest.name,
        engine=Scheduler(
            runner,
            context_tokens=settings.context_tokens,
            prefill_tokens=settings.ubatch_tokens,
            on_failure=on_engine_failure,
        ),
        facts=manifest.model,
        template=template,
        bos_text=runner.bos_text,
        sampling=_default_sampling(runner),
    )


def _default_sampling(runner: LlamaRunner) -> Sampling:
    """What applies where a request says nothing: the model's own settings, else DeepSeek's advice for R1.

    The R1 model card asks for a temperature of 0.5 to 0.7 (0.6) and top_p 0.95, against endless repetition;
    top_k 40 is llama.cpp's default and keeps the draw cheap. A model's own are in `general.sampling.*`.
    """

    def number(key: str, otherwise: float) -> float:
        text = runner.metadata(f"general.sampling.{key}")
        try:
            return otherwise if text is None else float(text)
        except ValueError:
            return otherwise

    return Sampling(
        temperature=number("temp", 0.6),
        top_p=number("top_p", 0.95),
        top_k=int(number("top_k", 40)),
        min_p=number("min_p", 0.0),
    )
