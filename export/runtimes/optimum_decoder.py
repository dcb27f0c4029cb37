"""Runs a decoder graph as optimum-onnx writes it: float32 or int4 weights, one sequence, a growing cache."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from edgekit.errors import MissingExtraError, ModelFileError

__all__ = ["Cache", "OptimumDecoder"]

_TYPES: Final = MappingProxyType({"tensor(float)": np.float32, "tensor(float16)": np.float16})


@dataclass(frozen=True, slots=True)
class Cache:
    """Keys and values of the tokens that went through the graph, by the names of its inputs."""

    tokens: int
    values: Mapping[str, NDArray[Any]]


class OptimumDecoder:
    """A decoder graph, loaded by onnxruntime on the CPU.

    The graph takes input_ids and, where it has them, attention_mask and position_ids; past_key_values.* go
    in and present.* come out. Source: optimum-onnx 0.1.0, exporters/onnx/config.py.

    Args:
        directory: has model.onnx, and its external data.
        threads: None takes onnxruntime's choice.

    Raises:
        MissingExtraError: onnxruntime is not installed.
        ModelFileError: onnxruntime does not load the graph, or it has inputs of another kind.
    """

    def __init__(self, directory: Path, *, threads: int | None = None) -> None:
        try:
            onnxruntime = importlib.import_module("onnxruntime")
        except ImportError as error:
            raise MissingExtraError("onnxruntime", extra="onnx", feature="running an ONNX model") from error
        self._path = directory / "model.onnx"
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        if threads is not None:
            options.intra_op_num_threads = threads
        try:
            self._session: Any = onnxruntime.InferenceSession(
                str(self._path), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # onnxruntime's exceptions have no common base
            raise ModelFileError(f"{self._path}: onnxruntime does not load it: {error}") from error
        self._outputs = [output.name for output in self._session.get_outputs()]
        self._empty: dict[str, NDArray[Any]] = {}
        for entry in self._session.get_inputs():
            if entry.name.startswith("past_key_values."):
                self._empty[entry.name] = np.zeros(self._empty_shape(entry.shape), _TYPES[entry.type])
            elif entry.name not in ("input_ids", "attention_mask", "position_ids"):
                raise ModelFileError(f"{self._path}: the input '{entry.name}' is not known")
        self._inputs = {entry.name for entry in self._session.get_inputs()}

    @property
    def inputs(self) -> frozenset[str]:
        """Names of the graph's inputs."""
        return frozenset(self._inputs)

    @property
    def cache_shape(self) -> tuple[int | str, ...]:
        """Shape of one layer's keys as the graph declares it: sizes, or names of what varies."""
        entry = next(entry for entry in self._session.get_inputs() if entry.name in self._empty)
        return tuple(entry.shape)

    @property
    def layers(self) -> int:
        """Layers that have a cache."""
        return sum(name.endswith(".key") for name in self._empty)

    def logits(self, tokens: Sequence[int], *, step_tokens: int | None = None) -> NDArray[np.float32]:
        """Logits after each token: float32 [tokens, vocabulary].

        Args:
            step_tokens: compute so many at once, with the cache of those before; None computes all at once.
        """
        return np.concatenate(list(self.steps(tokens, step_tokens or len(tokens))))

    def steps(self, tokens: Sequence[int], step_tokens: int) -> Iterator[NDArray[np.float32]]:
        """`logits` in parts, as they are computed: float32 [step_tokens or fewer, vocabulary] each."""
        cache: Cache | None = None
        for start in range(0, len(tokens), step_tokens):
            logits, cache = self.run(tokens[start : start + step_tokens], cache)
            yield logits

    def run(self, tokens: Sequence[int], past: Cache | None = None) -> tuple[NDArray[np.float32], Cache]:
        """Logits after each of some more tokens, float32 [tokens, vocabulary], and the longer cache.

        Args:
            past: of the tokens before them; None: there are none.

        Raises:
            ModelFileError: onnxruntime fails, e.g. because the tokens are more than the model has positions.
        """
        past = Cache(0, self._empty) if past is None else past
        total = past.tokens + len(tokens)
        feeds = {
            "input_ids": np.array([tokens], dtype=np.int64),
            "attention_mask": np.ones((1, total), dtype=np.int64),
            "position_ids": np.arange(past.tokens, total, dtype=np.int64)[None],
        }
        feeds = {name: values for name, values in feeds.items() if name in self._inputs}
        try:
            found = self._session.run(None, {**feeds, **past.values})
        except Exception as error:  # onnxruntime's exceptions have no common base
            raise ModelFileError(f"{self._path}: onnxruntime fails on {total} tokens: {error}") from error
        results = dict(zip(self._outputs, found, strict=True))
        values = {name: results[name.replace("past_key_values", "present")] for name in past.values}
        return results["logits"][0].astype(np.float32, copy=False), Cache(total, values)

    def _empty_shape(self, shape: Sequence[int | str]) -> list[int]:
        return [size if isinstance(size, int) else 0 if "past" in size else 1 for size in shape]
