"""Runs a GGUF model on llama.cpp's low-level API: batches of several sequences, native samplers.

API: llama.h of the llama.cpp that llama-cpp-python vendors. Struct layouts drift between releases, which is
why the version is pinned.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from edgekit.engine.base import Constraint, Sampling
from edgekit.engine.constraint import ConstraintCompiler
from edgekit.engine.llama_library import (
    ThreadPool,
    default_threads,
    forget_reasons,
    load_library,
    reason_of_failure,
)
from edgekit.engine.llama_sampler import LlamaSampler, LlamaSamplers
from edgekit.engine.runner import CacheFullError, Matcher, ModelText, Slice
from edgekit.engine.sequence_ids import SequenceIds
from edgekit.engine.text import SPOKEN_TOKENS
from edgekit.errors import EngineError, ModelFileError
from edgekit.gguf_header import read_gguf_header
from edgekit.profiles import ServeSettings
from edgekit.weight_buffers import held_weights, isa_of_build

__all__ = ["LlamaRunner"]

_KV_TYPES: Final = {"f32": 0, "f16": 1, "q4_0": 2, "q8_0": 8, "bf16": 30}
"""enum ggml_type."""
_FLASH_ATTENTION: Final = {None: -1, False: 0, True: 1}
_LOAD_MODE_NONE: Final = 0
"""enum llama_load_mode: the file is read, not mapped."""
_SEQUENCES: Final = 64
"""Running streams and parked histories. In a unified KV cache a sequence costs nothing."""


class LlamaRunner:
    """A model and its context.

    Args:
        path: the GGUF file, or the first of its shards.
        settings: threads, context, KV cache and batch sizes.
        repack: let ggml rearrange weights for this CPU's kernels: faster prefill, but the rearranged
            weights take memory beside the mapped file.
        progress: called with the fraction loaded, 0 to 1.

    Raises:
        ModelFileError: llama.cpp does not accept the file.
        EngineError: the context cannot be made, e.g. for lack of memory.
    """

    def __init__(
        self,
        path: Path,
        settings: ServeSettings,
        *,
        repack: bool = True,
        progress: Callable[[float], None] | None = None,
    ) -> None:
        if settings.slots > settings.batch_tokens:
            raise EngineError(
                f"{settings.slots} streams do not fit a batch of {settings.batch_tokens} tokens",
                hint="serve with fewer slots, or export with a larger batch",
            )
        self._api = load_library()
        self._model: Any = None
        self._context: Any = None
        self._pool: ThreadPool | None = None
        self._streams = settings.slots
        self._batch_tokens = settings.batch_tokens
        try:
            self._load_model(path, settings, repack, progress)
            self._make_context(settings)
        except BaseException:
            self.close()
            raise
        self._ids = SequenceIds(_SEQUENCES, self._streams, self._move)
        self._make_batch()
        self._pieces: dict[int, bytes] = {}
        self._samplers = LlamaSamplers(self._api, self._vocab, self._context, self.piece)
        self._warm_up()

    def _load_model(
        self, path: Path, settings: ServeSettings, repack: bool, progress: Callable[[float], None] | None
    ) -> None:
        api = self._api
        params = api.llama_model_default_params()
        params.n_gpu_layers = settings.gpu_layers
        params.use_extra_bufts = repack
        if self._is_copied(path, settings, repack):
            # What was mapped would stay resident beside the copies that are made of it.
            params.load_mode = _LOAD_MODE_NONE
        if progress is not None:
            report = progress

            @api.llama_progress_callback  # type: ignore[untyped-decorator]
            def on_progress(fraction: float, _user_data: Any) -> bool:
                report(fraction)
                return True

            params.progress_callback = on_progress
        forget_reasons()
        self._model = api.llama_model_load_from_file(str(path).encode(), params)
        if not self._model:
            raise ModelFileError(
                f"{path}: llama.cpp does not load it: {reason_of_failure()}",
                hint="check the bundle with `edgekit verify`; if it is whole, export the model again",
            )
        self._vocab = api.llama_model_get_vocab(self._model)

    def _is_copied(self, path: Path, settings: ServeSettings, repack: bool) -> bool:
        """Whether llama.cpp keeps weights in memory of its own: rearranged, or on an accelerator."""
        on_gpu = settings.gpu_layers > 0
        if not repack and not on_gpu:
            return False
        isa = isa_of_build(self._api.llama_print_system_info().decode()) if repack else frozenset[str]()
        return held_weights(read_gguf_header(path).tensors, isa, on_gpu=on_gpu).copied_bytes > 0

    def _make_context(self, settings: ServeSettings) -> None:
        api = self._api
        threads = settings.threads or default_threads()
        params = api.llama_context_default_params()
        params.n_ctx = settings.kv_cells or settings.context_tokens
        params.n_batch = settings.batch_tokens
        params.n_ubatch = min(settings.ubatch_tokens, settings.batch_tokens)
        params.n_seq_max = settings.slots
        # One row of logits a stream: without this, memory is reserved for a row a prompt token.
        params.n_outputs_max = settings.slots
        params.n_threads = params.n_threads_batch = threads
        params.type_k = params.type_v = _KV_TYPES[settings.kv_type]
        params.flash_attn_type = _FLASH_ATTENTION[settings.flash_attention]
        params.kv_unified = True
        params.no_perf = True
        forget_reasons()
        self._context = api.llama_init_from_model(self._model, params)
        if not self._context:
            raise EngineError(
                f"llama.cpp cannot make a context of {params.n_ctx} tokens: {reason_of_failure()}",
                hint="serve with a smaller context, or a KV cache of type q8_0",
            )
        self._pool = ThreadPool(api, threads)
        self._pool.attach(self._context)
        self._memory = api.llama_get_memory(self._context)
        self._kv_cells = int(api.llama_n_ctx(self._context))

    def _make_batch(self) -> None:
        # One batch for all steps. Every entry has one sequence id, whose address never changes.
        size = self._batch_tokens
        self._tokens = (ctypes.c_int32 * size)()
        self._positions = (ctypes.c_int32 * size)()
        self._sequence_ids = (ctypes.c_int32 * size)()
        self._outputs = (ctypes.c_int8 * size)()
        self._sequence_counts = (ctypes.c_int32 * size)(*[1] * size)
        id_type = ctypes.POINTER(ctypes.c_int32)
        first = ctypes.addressof(self._sequence_ids)
        self._sequence_id_pointers = (id_type * size)(
            *(ctypes.cast(first + 4 * index, id_type) for index in range(size))
        )
        self._batch = self._api.llama_batch(
            n_tokens=0,
            token=self._tokens,
            embd=None,
            pos=self._positions,
            n_seq_id=self._sequence_counts,
            seq_id=self._sequence_id_pointers,
            logits=self._outputs,
        )

    def _warm_up(self) -> None:
        """Decode one token and forget it: the first request should not pay for page faults."""
        vocabulary = int(self._api.llama_vocab_n_tokens(self._vocab))
        bos = int(self._api.llama_vocab_bos(self._vocab))
        self.run([Slice(0, 0, [bos if 0 <= bos < vocabulary else 0], sample=True)])
        self._api.llama_memory_clear(self._memory, False)
        forget_reasons()

    @property
    def kv_cells(self) -> int:
        return self._kv_cells

    @property
    def sequences(self) -> int:
        return _SEQUENCES

    @property
    def streams(self) -> int:
        return self._streams

    @property
    def keeps_prefixes(self) -> bool:
        # A recurrent state is that of the newest token; it has no beginnings.
        recurrent = self._api.llama_model_is_recurrent(self._model)
        return not (recurrent or self._api.llama_model_is_hybrid(self._model))

    @property
    def batch_tokens(self) -> int:
        return self._batch_tokens

    @property
    def vocabulary(self) -> int:
        return int(self._api.llama_vocab_n_tokens(self._vocab))

    @property
    def text(self) -> ModelText:
        return ModelText(self.chat_template, self.bos_text, self.eos_text, self._default_sampling())

    def _default_sampling(self) -> Sampling:
        """The model's own settings (`general.sampling.*`), else DeepSeek's advice for R1.

        The R1 model card asks for a temperature of 0.5 to 0.7 (0.6) and top_p 0.95, against endless
        repetition; top_k 40 is llama.cpp's default and keeps the draw cheap.
        """

        def number(key: str, otherwise: float) -> float:
            text = self.metadata(f"general.sampling.{key}")
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

    @property
    def chat_template(self) -> str | None:
        """The model's own chat template, None when it has none."""
        text = self._api.llama_model_chat_template(self._model, None)
        return text.decode("utf-8", "replace") if text else None

    @property
    def bos_text(self) -> str:
        """The text of the token that begins a prompt; empty when the model has none."""
        return self._token_text(int(self._api.llama_vocab_bos(self._vocab)))

    @property
    def eos_text(self) -> str:
        """The text of the token that ends a text; empty when the model has none."""
        return self._token_text(int(self._api.llama_vocab_eos(self._vocab)))

    def metadata(self, key: str) -> str | None:
        """A GGUF metadata value as text, None when the key is absent."""
        buffer = ctypes.create_string_buffer(512)
        length = self._api.llama_model_meta_val_str(self._model, key.encode(), buffer, len(buffer))
        return buffer.value.decode("utf-8", "replace") if length >= 0 else None

    def _token_text(self, token: int) -> str:
        if token < 0:
            return ""
        text = self._api.llama_vocab_get_text(self._vocab, token)
        return text.decode("utf-8", "replace") if text else ""

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        data = text.encode("utf-8", "replace")
        room = len(data) + 2  # a token stands for a byte at least; BOS and EOS may be added
        for _ in range(2):
            tokens = (ctypes.c_int32 * room)()
            count = int(
                self._api.llama_tokenize(
                    self._vocab, data, len(data), tokens, room, add_special, parse_special
                )
            )
            if count >= 0:
                return tokens[:count]
            room = -count
        raise EngineError(f"llama.cpp cannot tokenize a text of {len(data)} bytes")

    def piece(self, token: int) -> bytes:
        known = self._pieces.get(token)
        if known is None:
            known = self._pieces[token] = self._read_piece(token)
        return known

    def _read_piece(self, token: int) -> bytes:
        room = 64
        spoken = self._token_text(token) in SPOKEN_TOKENS
        for _ in range(2):
            buffer = ctypes.create_string_buffer(room)
            length = int(self._api.llama_token_to_piece(self._vocab, token, buffer, room, 0, spoken))
            if length >= 0:
                return buffer.raw[:length]
            room = -length
        raise EngineError(f"llama.cpp cannot write token {token}")

    def ends_generation(self, token: int) -> bool:
        return bool(self._api.llama_vocab_is_eog(self._vocab, token))

    def open_matcher(self, constraint: Constraint) -> Matcher:
        return self._constraints.compile(constraint)

    @cached_property
    def _constraints(self) -> ConstraintCompiler:
        # Asking for all tokens takes 0.2 s with R1's vocabulary: not before it is needed.
        return ConstraintCompiler(
            self.vocabulary,
            piece=self._read_piece,  # `piece` would keep them all
            special=self._special,
            ends=[token for token in range(self.vocabulary) if self.ends_generation(token)],
            tokenize=lambda text: self.tokenize(
                text.decode("utf-8", "replace"), add_special=False, parse_special=False
            ),
        )

    def _special(self, token: int) -> str:
        """The text of a token that is more than its text. What a model says aloud is plain text."""
        control = self._api.llama_vocab_is_control(self._vocab, token)
        text = self._token_text(token) if control else ""
        return "" if text in SPOKEN_TOKENS else text

    def open_sampler(self, sampling: Sampling, prompt: Sequence[int]) -> LlamaSampler:
        return self._samplers.open(sampling, prompt)

    def run(self, slices: Sequence[Slice]) -> list[int]:
        filled = 0
        rows: list[int] = []
        self._ids.make_computable(piece.sequence for piece in slices)
        for piece in slices:
            end = filled + len(piece.tokens)
            count = end - filled
            self._tokens[filled:end] = list(piece.tokens)
            self._positions[filled:end] = list(range(piece.start, piece.start + count))
            self._sequence_ids[filled:end] = [self._ids[piece.sequence]] * count
            self._outputs[filled:end] = [0] * count
            if piece.sample or piece.embed:
                self._outputs[end - 1] = 1
                rows.append(end - 1)
            filled = end
        self._batch.n_tokens = filled
        embed = any(piece.embed for piece in slices)
        if embed:
            self._api.llama_set_embeddings(self._context, True)
        status = self._api.llama_decode(self._context, self._batch)
        if embed:
            self._api.llama_set_embeddings(self._context, False)
        if status == 0:
            return rows
        if status == 1:
            raise CacheFullError
        raise EngineError(f"llama_decode failed with status {status}: {reason_of_failure()}")

    def embedding(self, row: int) -> tuple[float, ...]:
        pointer = self._api.llama_get_embeddings_ith(self._context, row)
        if not pointer:
            raise EngineError("llama.cpp gives no embedding for this model")
        values: list[float] = pointer[: self._api.llama_model_n_embd(self._model)]
        length = math.sqrt(math.fsum(value * value for value in values))
        if not math.isfinite(length) or length == 0:
            raise EngineError("the model's output for this text is not a number")
        return tuple(value / length for value in values)

    def share(self, source: int, target: int, end: int) -> bool:
        self._api.llama_memory_seq_cp(self._memory, self._ids[source], self._ids[target], 0, end)
        return True

    def forget(self, sequence: int, start: int) -> None:
        self._api.llama_memory_seq_rm(self._memory, self._ids[sequence], start, -1)

    def _move(self, source: int, target: int) -> None:
        self._api.llama_memory_seq_cp(self._memory, source, target, -1, -1)
        self._api.llama_memory_seq_rm(self._memory, source, -1, -1)

    def close(self) -> None:
        if self._context:
            self._api.llama_free(self._context)
            self._context = None
        if self._pool is not None:
            self._pool.close()
            self._pool = None
        if self._model:
            self._api.llama_model_free(self._model)
            self._model = None
