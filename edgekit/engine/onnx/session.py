"""A decoder graph in onnxruntime: its session, and what its inputs and outputs tell."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import numpy as np
import onnxruntime  # type: ignore[import-untyped, unused-ignore]

from edgekit.errors import EngineError, ModelFileError

__all__ = ["DecoderGraph", "open_graph", "run_bound"]

_ELEMENTS: Final[Mapping[str, type[np.floating[Any]]]] = MappingProxyType(
    {"tensor(float)": np.float32, "tensor(float16)": np.float16}
)
_PAST: Final = "past_key_values."
_OTHER_INPUTS: Final = frozenset({"input_ids", "attention_mask", "position_ids"})
_SPIN_US: Final = 50
"""How long a thread that waits for the others keeps its core. A decode step has hundreds of operators, each
of a few microseconds: threads that sleep between them take nearly twice as long. Those that wait for ever
are several times slower when anything else needs a core."""


@dataclass(frozen=True, slots=True)
class DecoderGraph:
    """A loaded graph."""

    path: Path
    session: Any
    """onnxruntime.InferenceSession."""
    inputs: frozenset[str]
    caches: tuple[str, ...]
    """What follows "past_key_values." and "present." in the names of the KV cache, e.g. "0.key"."""
    kv_heads: int
    head_length: int
    element: type[np.floating[Any]]
    """Type of the KV cache and the logits."""
    vocabulary: int


def open_graph(path: Path, *, threads: int) -> DecoderGraph:
    """Load a graph for the CPU.

    Raises:
        ModelFileError: onnxruntime does not load it, or it is not a decoder with a KV cache of keys and
            values [batch, heads, tokens, head length].
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors; warnings are about its own choices
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "1")
    options.add_session_config_entry("session.intra_op.spin_duration_us", str(_SPIN_US))
    # Between steps the cores belong to whoever sends the tokens.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's errors have no common base but this
        raise ModelFileError(
            f"{path}: onnxruntime does not load it: {_first_line(error)}",
            hint="check the bundle with `edgekit verify`; if it is whole, export the model again",
        ) from error
    return _describe(path, session)


def _describe(path: Path, session: Any) -> DecoderGraph:
    inputs = {item.name: item for item in session.get_inputs()}
    outputs = {item.name: item for item in session.get_outputs()}
    pasts = [item for name, item in inputs.items() if name.startswith(_PAST)]
    caches = tuple(item.name.removeprefix(_PAST) for item in pasts)
    if unknown := sorted(set(inputs) - _OTHER_INPUTS - {item.name for item in pasts}):
        raise ModelFileError(f"{path}: the graph's input '{unknown[0]}' is not known")
    needed = {"input_ids", "logits", *(f"present.{name}" for name in caches)}
    if missing := sorted(needed - set(inputs) - set(outputs)):
        raise ModelFileError(f"{path}: the graph has no '{missing[0]}'")
    shapes = {(item.type, len(item.shape), *item.shape[1::2]) for item in pasts}
    if len(shapes) != 1:
        raise ModelFileError(f"{path}: the layers' KV caches are not of one shape")
    element, rank, heads, length = (*shapes.pop(), None, None)[:4]
    vocabulary = outputs["logits"].shape[-1]
    if rank != 4 or element not in _ELEMENTS or not all(type(n) is int for n in (heads, length, vocabulary)):
        raise ModelFileError(f"{path}: the KV cache is not laid out as [batch, heads, tokens, head length]")
    return DecoderGraph(
        path, session, frozenset(inputs), caches, heads, length, _ELEMENTS[element], vocabulary
    )


def run_bound(graph: DecoderGraph, binding: Any) -> None:
    """Run a graph on what is bound.

    Raises:
        EngineError: onnxruntime failed.
    """
    try:
        graph.session.run_with_iobinding(binding)
    except Exception as error:  # onnxruntime's errors have no common base but this
        raise EngineError(f"onnxruntime failed: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    """What an error says, in one line that steers no terminal: parts of it come from the file."""
    line = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return "".join(character if character.isprintable() else "?" for character in line)
