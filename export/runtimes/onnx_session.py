"""Runs an exported ONNX bundle with onnxruntime alone, and gives the logits of every position."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from edgekit.errors import ContextOverflowError, MissingExtraError, ModelFileError
from export.targets.onnx_graph import LAST_TOKEN

try:
    import onnx
    import onnxruntime  # type: ignore[import-untyped, unused-ignore]
except ImportError as error:
    raise MissingExtraError("onnxruntime", extra="export", feature="running an ONNX model") from error

__all__ = ["OnnxDecoder"]

_CHUNK_TOKENS: Final = 256
"""Prompts go through in pieces, which bounds what the head gives at once."""


class OnnxDecoder:
    """A decoder with its KV cache.

    The graph on disk gives the logits of the last token; this runs a variant of it, made in memory, that
    gives all of them from the same weights.
    """

    def __init__(
        self,
        directory: Path,
        *,
        context_tokens: int = 4096,
        threads: int | None = None,
        all_positions: bool = True,
        spinning: bool = False,
    ) -> None:
        """Open a directory that `write_onnx` wrote.

        Args:
            context_tokens: room in the KV cache; at most what the graph was exported for.
            threads: None takes one per core.
            all_positions: False runs the graph as it is.
            spinning: whether idle threads keep their cores; faster on a machine with nothing else to do,
                several times slower on a busy one.

        Raises:
            ModelFileError: a file is missing or malformed, or onnxruntime refuses the graph.
        """
        settings = _read_settings(directory / "genai_config.json")
        try:
            model, decoder = settings["model"], settings["model"]["decoder"]
            self.vocabulary: int = model["vocab_size"]
            self.context_tokens = min(context_tokens, model["context_length"])
            path = directory / decoder["filename"]
            shape = (1, decoder["num_key_value_heads"], self.context_tokens, decoder["head_size"])
            layers = decoder["num_hidden_layers"]
        except (KeyError, TypeError) as error:
            raise ModelFileError(f"{directory / 'genai_config.json'}: malformed: {error!r}") from error
        self._session = _open_session(path, threads, all_positions, spinning)
        self._element = {"tensor(float)": np.float32, "tensor(float16)": np.float16}[
            next(item.type for item in self._session.get_outputs() if item.name == "logits")
        ]
        self._cache = {
            f"{layer}.{kind}": onnxruntime.OrtValue.ortvalue_from_numpy(np.zeros(shape, self._element))
            for layer in range(layers)
            for kind in ("key", "value")
        }
        self._past = 0

    @property
    def past_tokens(self) -> int:
        """Tokens in the KV cache."""
        return self._past

    def reset(self, past_tokens: int = 0) -> None:
        """Forget all tokens but the first ones."""
        self._past = min(past_tokens, self._past)

    def logits(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Logits after each of the tokens, from an empty cache: float32 [tokens, vocabulary].

        Raises:
            ContextOverflowError: the tokens do not fit the cache.
        """
        self.reset()
        return self.append(tokens)

    def append(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Logits after each of some more tokens: float32 [tokens, vocabulary]. See `logits`.

        With `all_positions` False, after the last one only: float32 [1, vocabulary].
        """
        if self._past + len(tokens) > self.context_tokens:
            raise ContextOverflowError(self._past + len(tokens), self.context_tokens)
        pieces = [self._run(tokens[at : at + _CHUNK_TOKENS]) for at in range(0, len(tokens), _CHUNK_TOKENS)]
        if not pieces:
            return np.zeros((0, self.vocabulary), np.float32)
        if pieces[-1].shape[0] == 1 < len(tokens):
            return pieces[-1]
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)

    def _run(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        total = self._past + len(tokens)
        binding = self._session.io_binding()
        binding.bind_cpu_input("input_ids", np.array([tokens], np.int64))
        binding.bind_cpu_input("attention_mask", np.ones((1, total), np.int64))
        binding.bind_output("logits")
        for name, values in self._cache.items():
            # The same memory in and out: the kernel appends.
            binding.bind_ortvalue_input(f"past_key_values.{name}", values)
            binding.bind_ortvalue_output(f"present.{name}", values)
        self._session.run_with_iobinding(binding)
        self._past = total
        logits: NDArray[np.float32] = binding.get_outputs()[0].numpy()[0].astype(np.float32, copy=False)
        return logits


def _read_settings(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelFileError(f"{path}: cannot be read: {error}") from error
    if not isinstance(value, dict):
        raise ModelFileError(f"{path}: not a JSON object")
    return value


def _open_session(
    path: Path, threads: int | None, all_positions: bool, spinning: bool
) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", str(int(spinning)))
    if threads is not None:
        options.intra_op_num_threads = threads
    try:
        if not all_positions:
            return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        options.add_session_config_entry(
            "session.model_external_initializers_file_folder_path", str(path.parent.absolute())
        )
        graph = _with_all_positions(path)
        return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's errors have no common base but this
        raise ModelFileError(f"{path}: onnxruntime cannot load it: {error}") from error


def _with_all_positions(path: Path) -> bytes:
    """The graph without the nodes that leave all but the last token out."""
    model = onnx.load(path, load_external_data=False)
    renamed: dict[str, str] = {}
    for node in [node for node in model.graph.node if node.name.startswith(LAST_TOKEN)]:
        renamed[node.output[0]] = node.input[0]
        model.graph.node.remove(node)
    for node in model.graph.node:
        for index, name in enumerate(node.input):
            node.input[index] = renamed.get(name, name)
    content: bytes = model.SerializeToString()
    return content
