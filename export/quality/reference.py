"""The student in float32, by numpy alone: what every artifact is compared with.

One matrix is in memory at a time, and of a large one only a block of rows: all tokens of all sequences go
through it together, then the next one is read. What it computes is what transformers computes with
attn_implementation="eager" in float32 (modeling_llama.py, modeling_qwen2.py, modeling_qwen3.py of 5.5).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from edgekit.errors import ModelFileError, UsageError
from export.progress import Progress, silent
from export.student.base import DecoderStudent, StudentTensor
from export.student.rotary import make_rotary, rotate

__all__ = ["Observer", "Reference"]

Floats = NDArray[np.float32]
Observer = Callable[[str, Floats], None]
"""Called with a matrix's Hugging Face name and what it is multiplied with, [tokens, columns]."""

_BLOCK_BYTES: Final = 64 << 20
"""Float32 bytes of the rows that are read at once: large enough for BLAS, small beside any model."""
_ACTIVATION_BYTES: Final = 256 << 20
_LABEL: Final = "running the student in float32"


class Reference:
    """Runs a student over token sequences, layer by layer.

    Memory: a block of rows of one matrix, 64 MiB; hidden states and the widest activations of the sequences
    that are computed together, 256 MiB; and logits where they are asked for.
    """

    def __init__(self, student: DecoderStudent) -> None:
        self._config = student.config
        self._tensors = {tensor.name: tensor for tensor in student.tensors()}
        self._embedding = self._tensors["model.embed_tokens.weight"]
        self._head = self._tensors.get("lm_head.weight", self._embedding)
        self._head_rows: Floats | None = None
        self._rotary = make_rotary(student.config)

    @property
    def vocabulary(self) -> int:
        return self._config.vocabulary

    def hidden_states(
        self,
        sequences: Sequence[Sequence[int]],
        *,
        observe: Observer | None = None,
        progress: Progress = silent,
    ) -> list[Floats]:
        """What the head is multiplied with, float32 [tokens, width] for every sequence.

        Sequences do not see each other; each begins at position 0. Attention takes memory with the square of
        a sequence's length: 512 tokens are a good length, thousands are possible.

        Args:
            observe: is shown the input of every matrix, the head's included; sequences that are computed
                together come together. What it is shown is not to be changed.

        Raises:
            UsageError: a sequence is empty, or has a token that the student does not know.
            ModelFileError: the student computes NaN or infinity.
        """
        for sequence in sequences:
            if not sequence or not 0 <= min(sequence) <= max(sequence) < self.vocabulary:
                raise UsageError(
                    f"a sequence is empty, or has a token beyond the vocabulary of {self.vocabulary}"
                )
        states: list[Floats] = []
        groups = list(self._groups(sequences))
        for done, group in enumerate(groups):
            steps = self._config.layers * len(groups)

            def layer_done(layer: int, before: int = done, total: int = steps) -> None:
                progress(_LABEL, before * self._config.layers + layer, total)

            states += self._run(group, observe, layer_done)
        return states

    def logits(self, hidden: Floats) -> Floats:
        """Logits float32 [tokens, vocabulary] of hidden states [tokens, width]. For chunks of ~100 tokens."""
        if math.prod(self._head.shape) * 4 <= 4 * _BLOCK_BYTES:
            if self._head_rows is None:
                self._head_rows = self._head.read_float32()
            return hidden @ self._head_rows.T
        return _multiply(hidden, self._head)

    def _groups(self, sequences: Sequence[Sequence[int]]) -> Iterator[list[Sequence[int]]]:
        """Sequences to compute together: as many as the memory for activations takes, at least one."""
        config = self._config
        # gate and up, or queries, keys, values and what comes out, beside two hidden states
        widest = max(2 * config.feed_forward_length, 3 * config.heads * config.head_length)
        most = max(1, _ACTIVATION_BYTES // (4 * (widest + 2 * config.embedding_length)))
        group: list[Sequence[int]] = []
        for sequence in sequences:
            if group and sum(map(len, group)) + len(sequence) > most:
                yield group
                group = []
            group.append(sequence)
        if group:
            yield group

    def _run(
        self,
        sequences: Sequence[Sequence[int]],
        observe: Observer | None,
        layer_done: Callable[[int], None],
    ) -> list[Floats]:
        ends = np.cumsum([len(sequence) for sequence in sequences])
        parts = [slice(int(end) - len(s), int(end)) for s, end in zip(sequences, ends, strict=True)]
        tokens = np.concatenate([np.asarray(sequence, dtype=np.int64) for sequence in sequences])
        state = _rows_of(self._embedding, tokens)
        tables = self._rotary.tables(max(len(sequence) for sequence in sequences))
        for layer in range(self._config.layers):
            name = f"model.layers.{layer}"
            normed = self._norm(state, f"{name}.input_layernorm.weight")
            state += self._attention(normed, f"{name}.self_attn", parts, tables, observe)
            normed = self._norm(state, f"{name}.post_attention_layernorm.weight")
            state += self._feed_forward(normed, f"{name}.mlp", observe)
            layer_done(layer + 1)
        state = self._norm(state, "model.norm.weight")
        if not np.isfinite(state).all():
            raise ModelFileError(
                "the student computes NaN or infinity",
                hint="the checkpoint is damaged, or is not of the architecture that its config.json says",
            )
        if observe is not None:
            observe(self._head.name, state)
        return [state[part] for part in parts]

    def _norm(self, values: Floats, name: str) -> Floats:
        """Root mean square norm over the last axis."""
        squares = np.einsum("...k,...k->...", values, values)[..., None] / np.float32(values.shape[-1])
        scale = np.float32(1) / np.sqrt(squares + np.float32(self._config.rms_norm_epsilon))
        normed: Floats = values * scale * self._tensors[name].read_float32()
        return normed

    def _matrix(self, values: Floats, name: str, observe: Observer | None) -> Floats:
        if observe is not None:
            observe(f"{name}.weight", values)
        product = _multiply(values, self._tensors[f"{name}.weight"])
        bias = self._tensors.get(f"{name}.bias")
        if bias is not None:
            product += bias.read_float32()
        return product

    def _attention(
        self,
        normed: Floats,
        name: str,
        parts: Sequence[slice],
        tables: tuple[Floats, Floats],
        observe: Observer | None,
    ) -> Floats:
        config = self._config
        queries = self._by_head(self._matrix(normed, f"{name}.q_proj", observe), f"{name}.q_norm.weight")
        keys = self._by_head(self._matrix(normed, f"{name}.k_proj", observe), f"{name}.k_norm.weight")
        values = self._by_head(self._matrix(normed, f"{name}.v_proj", observe), None)
        shared = config.heads // config.kv_heads
        mixed = np.empty((normed.shape[0], config.heads * config.head_length), np.float32)
        scale = np.float32(1 / math.sqrt(config.head_length))
        for part in parts:
            length = part.stop - part.start
            cosines, sines = (table[:length] for table in tables)
            turned = rotate(queries[:, part], cosines, sines) * scale
            turned_keys = rotate(keys[:, part], cosines, sines)
            future = np.triu(np.full((length, length), -np.inf, np.float32), k=1)
            for head in range(config.kv_heads):
                # The queries that share a key head in one multiplication: few large ones are faster.
                own = turned[head * shared : (head + 1) * shared].reshape(shared * length, -1)
                scores = (own @ turned_keys[head].T).reshape(shared, length, length)
                scores += future
                scores -= scores.max(axis=-1, keepdims=True)
                np.exp(scores, out=scores)
                scores /= scores.sum(axis=-1, keepdims=True)
                found = scores.reshape(shared * length, length) @ values[head, part]
                columns = slice(head * shared * config.head_length, (head + 1) * shared * config.head_length)
                mixed[part, columns] = found.reshape(shared, length, -1).swapaxes(0, 1).reshape(length, -1)
        return self._matrix(mixed, f"{name}.o_proj", observe)

    def _by_head(self, rows: Floats, norm: str | None) -> Floats:
        """[tokens, heads * head_length] as [heads, tokens, head_length], normed where the model does so."""
        heads = rows.reshape(rows.shape[0], -1, self._config.head_length)
        if norm in self._tensors:
            assert norm is not None
            heads = self._norm(heads, norm)
        return np.ascontiguousarray(heads.swapaxes(0, 1))

    def _feed_forward(self, normed: Floats, name: str, observe: Observer | None) -> Floats:
        gate = self._matrix(normed, f"{name}.gate_proj", observe)
        with np.errstate(over="ignore"):
            # x * sigmoid(x); exp overflows to infinity for very negative x, which gives the right 0.
            gate /= 1 + np.exp(-gate)
        gate *= self._matrix(normed, f"{name}.up_proj", observe)
        return self._matrix(gate, f"{name}.down_proj", observe)


def _multiply(values: Floats, matrix: StudentTensor) -> Floats:
    """values [tokens, columns] times the transpose of matrix [rows, columns], by blocks of rows."""
    rows, columns = matrix.shape
    step = max(1, _BLOCK_BYTES // (4 * columns))
    if step >= rows:
        return values @ matrix.read_float32().T
    product = np.empty((values.shape[0], rows), np.float32)
    for start in range(0, rows, step):
        block = slice(start, min(start + step, rows))
        product[:, block] = values @ matrix.read_float32(block).T
    return product


def _rows_of(matrix: StudentTensor, rows: NDArray[np.int64]) -> Floats:
    """Some rows of a matrix, each read once, float32 [len(rows), columns]."""
    wanted, places = np.unique(rows, return_inverse=True)
    found = np.empty((wanted.size, matrix.shape[1]), np.float32)
    for index, row in enumerate(wanted.tolist()):
        found[index] = matrix.read_float32(slice(row, row + 1))[0]
    return found[places.reshape(-1)]
