"""Loads a bundle's model for a measurement: a runner, and nothing around it."""

from __future__ import annotations

from edgekit.bundle.bundle import Bundle
from edgekit.engine.llama import LlamaRunner
from edgekit.engine.runner import Runner
from edgekit.errors import BundleError
from edgekit.gguf_header import read_gguf_header, validate_model
from edgekit.profiles import ServeSettings

__all__ = ["open_runner"]


def open_runner(bundle: Bundle, settings: ServeSettings) -> Runner:
    """Load a verified bundle's model.

    Raises:
        BundleError: it is for a runtime that does not run in this process.
        ModelFileError, EngineError, MissingExtraError: see `LlamaRunner` and `OnnxRunner`.
    """
    runtime = bundle.manifest.runtime
    if runtime == "llama.cpp":
        validate_model(read_gguf_header(bundle.entry_path))
        return LlamaRunner(bundle.entry_path, settings)
    if runtime == "onnxruntime":
        # Needs packages that a device which serves GGUF has no use for.
        from edgekit.engine.onnx.runner import OnnxRunner

        return OnnxRunner(bundle.entry_path, settings)
    raise BundleError(
        f"{bundle.path}: made for the runtime {runtime}, which runs in a server of its own",
        hint="put a load on that server: edgekit bench URL",
    )
