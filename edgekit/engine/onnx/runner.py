"""Runs an ONNX bundle on plain onnxruntime: batches of several sequences, samplers in numpy."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from edgekit.engine.base import Constraint, Sampling
from edgekit.engine.constraint import ConstraintCompiler
from edgekit.engine.llama_library import default_threads
from edgekit.engine.onnx.growing import GrowingDecoder
from edgekit.engine.onnx.in_place import InPlaceDecoder
from edgekit.engine.onnx.model_config import read_model_config
from edgekit.engine.onnx.sampler import OnnxSampler
from edgekit.engine.onnx.session import open_graph
from edgekit.engine.onnx.tokenizer import BundleTokenizer
from edgekit.engine.runner import Matcher, ModelText, Slice
from edgekit.errors import EngineError, ModelFileError
from edgekit.profiles import ServeSettings

__all__ = ["OnnxRunner"]

_PARKED: Final = 16
"""Histories that are kept beside the running streams."""


class OnnxRunner:
    """A model and its KV cache. Implements `edgekit.engine.runner.Runner`.

    Args:
        path: the graph; its weights, configuration and tokenizer lie beside it.
        settings: threads, context, streams, KV cells and batch sizes. The KV cache is of the graph's type,
            and the graph runs on the CPU, whatever they say of that.

    Raises:
        ModelFileError: a file is missing or damaged, or onnxruntime does not accept the graph.
        EngineError: the graph does not compute, or there is no room for the KV cache.
    """

    def __init__(self, path: Path, settings: ServeSettings) -> None:
        if settings.slots > settings.batch_tokens:
            raise EngineError(
                f"{settings.slots} streams do not fit a batch of {settings.batch_tokens} tokens",
                hint="serve with fewer slots, or export with a larger batch",
            )
        self._config = read_model_config(path.parent)
        self._tokenizer = BundleTokenizer(path.parent / "tokenizer.json")
        self._settings = settings
        self._context_tokens = min(
            settings.context_tokens, self._config.context_tokens or settings.context_tokens
        )
        graph = open_graph(path, threads=settings.threads or default_threads())
        self._vocabulary = graph.vocabulary
        chunk_tokens = min(settings.ubatch_tokens, settings.batch_tokens)
        self._decoder: InPlaceDecoder | GrowingDecoder = (
            InPlaceDecoder(
                graph,
                sequences=self.sequences,
                streams=settings.slots,
                context_tokens=self._context_tokens,
                chunk_tokens=chunk_tokens,
            )
            if self._config.in_place
            else GrowingDecoder(graph, chunk_tokens=chunk_tokens)
        )
        eos = self._tokenizer.id_of(self._config.text.eos)
        ends = (*self._config.end_tokens, *(() if eos is None else (eos,)))
        self._ends = frozenset(token for token in ends if 0 <= token < graph.vocabulary)
        self._pieces: dict[int, bytes] = {}
        self._constraints = ConstraintCompiler(
            self._vocabulary,
            piece=self.piece,
            special=self._tokenizer.special,
            ends=sorted(self._ends),
            tokenize=lambda text: self.tokenize(
                text.decode(errors="replace"), add_special=False, parse_special=False
            ),
        )
        try:
            self._warm_up()
        except EngineError as error:
            raise ModelFileError(
                f"{path}: the graph does not compute: {error.message}", hint="export the model again"
            ) from error

    def _warm_up(self) -> None:
        """Compute a prompt and a token: the first request should not pay for what is set up by that."""
        self.run([Slice(0, 0, [0, 0], sample=True)])
        self.run([Slice(0, 2, [0], sample=True)])
        self.forget(0, 0)

    @property
    def kv_cells(self) -> int:
        return self._settings.cells

    @property
    def sequences(self) -> int:
        return self._settings.slots + _PARKED

    @property
    def streams(self) -> int:
        return self._settings.slots

    @property
    def keeps_prefixes(self) -> bool:
        return True

    @property
    def batch_tokens(self) -> int:
        return self._settings.batch_tokens

    @property
    def context_tokens(self) -> int:
        """What one request may use: of the settings, as far as the graph knows positions."""
        return self._context_tokens

    @property
    def vocabulary(self) -> int:
        return self._vocabulary

    @property
    def text(self) -> ModelText:
        return self._config.text

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        return self._tokenizer.tokenize(text, add_special=add_special, parse_special=parse_special)

    def piece(self, token: int) -> bytes:
        known = self._pieces.get(token)
        if known is None:
            known = self._pieces[token] = self._tokenizer.piece(token)
        return known

    def ends_generation(self, token: int) -> bool:
        return token in self._ends

    def open_sampler(self, sampling: Sampling, prompt: Sequence[int]) -> OnnxSampler:
        return OnnxSampler(self._logits, self.piece, self._vocabulary, sampling, prompt)

    def open_matcher(self, constraint: Constraint) -> Matcher:
        return self._constraints.compile(constraint)

    def run(self, slices: Sequence[Slice]) -> list[int]:
        rows = self._decoder.run(slices)
        for row in rows:
            if not np.isfinite(self._logits(row).sum()):
                raise EngineError("the model's output is not a number")
        return rows

    def embedding(self, row: int) -> tuple[float, ...]:
        raise EngineError(
            "this model cannot embed texts: its ONNX graph gives nothing but logits",
            hint="export it with --format gguf to have embeddings",
        )

    def share(self, source: int, target: int, end: int) -> bool:
        self._decoder.share(source, target, end)
        return False

    def forget(self, sequence: int, start: int) -> None:
        self._decoder.forget(sequence, start)

    def close(self) -> None:
        self._decoder.close()

    def _logits(self, row: int) -> NDArray[np.float32]:
        return self._decoder.logits(row)
