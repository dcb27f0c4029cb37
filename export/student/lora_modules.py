"""One module's share of an adapter, as weights of the adapted model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from edgekit.errors import ModelFileError
from export.student.base import StudentTensor, as_float32
from export.student.integers import ALL_ROWS
from export.student.lora_config import LoraSettings
from export.student.lora_weights import LowRank, Magnitude, adapted
from export.student.safetensors_file import StoredTensor
from export.student.weight_reader import float_tensor

__all__ = ["EMBEDDING", "HEAD", "AdapterParts", "adapt_module"]

EMBEDDING: Final = "model.embed_tokens"
HEAD: Final = "lm_head"

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class AdapterParts:
    """What an adapter file holds for one module of the base.

    `tensors` by part: "lora_A" [rank, in] and "lora_B" [out, rank] with "lora_B.bias"; for an embedding
    "lora_embedding_A" [rank, tokens] and "lora_embedding_B" [width, rank]; "magnitude"; "tokens", the
    trained rows of an embedding; "weight" and "bias", which replace the base's.
    """

    path: Path
    tensors: Mapping[str, StoredTensor]

    @property
    def has_matrices(self) -> bool:
        return any(part.startswith("lora_") for part in self.tensors)


def adapt_module(
    settings: LoraSettings,
    module: str,
    parts: AdapterParts,
    weights: Mapping[str, StudentTensor],
    *,
    hint: str,
) -> Iterator[StudentTensor]:
    """The weights of a module that an adapter changes.

    Args:
        weights: the base's, by name.
        hint: for errors that come from an adapter for another base.

    Raises:
        ModelFileError: the module is none of the base's, a part is missing, or shapes disagree.
    """
    weight, bias = weights.get(f"{module}.weight"), weights.get(f"{module}.bias")
    if weight is None:
        raise ModelFileError(f"{parts.path}: the base has no module '{module}'", hint=hint)
    reader = _Module(settings, module, parts, hint)
    yield from reader.weight(weight)
    yield from reader.bias(bias)


@dataclass(frozen=True, slots=True)
class _Module:
    settings: LoraSettings
    name: str
    parts: AdapterParts
    hint: str

    def weight(self, base: StudentTensor) -> Iterator[StudentTensor]:
        tensors = self.parts.tensors
        whole = tensors.get("weight")
        if whole is not None:
            # Embeddings may have grown; that the two agree has been checked.
            grown = self.name in (EMBEDDING, HEAD) and whole.shape[1:] == base.shape[1:]
            self._check_shape(whole, (*whole.shape[:1], *base.shape[1:]) if grown else base.shape)
            base = float_tensor(whole, base.name)
        low_rank, magnitude = self._low_rank(base), self._magnitude(base)
        new_rows = self._new_rows(base)
        if low_rank is None and not new_rows:
            if whole is not None:
                yield base
            return
        used = [tensor for part, tensor in tensors.items() if part not in ("weight", "bias", "lora_B.bias")]
        yield adapted(
            base,
            size_bytes=base.size_bytes + sum(tensor.size_bytes for tensor in used),
            low_rank=low_rank,
            magnitude=magnitude,
            new_rows=new_rows,
        )

    def bias(self, base: StudentTensor | None) -> Iterator[StudentTensor]:
        whole, plus = self.parts.tensors.get("bias"), self.parts.tensors.get("lora_B.bias")
        if whole is None and plus is None:
            return
        if base is None:
            raise ModelFileError(
                f"{self.parts.path}: there is a bias for '{self.name}'; the base has none there"
            )
        if whole is not None:
            self._check_shape(whole, base.shape)
            base = float_tensor(whole, base.name)
        if plus is not None:
            self._check_shape(plus, base.shape)
            scale = np.float32(self.settings.scale(self.name))
            base = adapted(
                base, size_bytes=base.size_bytes + plus.size_bytes, plus=lambda: _floats(plus) * scale
            )
        yield base

    def _low_rank(self, base: StudentTensor) -> LowRank | None:
        if not self.parts.has_matrices:
            return None
        is_embedding = any(part.startswith("lora_embedding") for part in self.parts.tensors)
        rank, scale = self.settings.rank(self.name), self.settings.scale(self.name)
        rows, columns = base.shape if len(base.shape) == 2 else (0, 0)
        if is_embedding:
            across = self._part("lora_embedding_A", (rank, rows))
            back = self._part("lora_embedding_B", (columns, rank))
            # Copies, so that the product comes out bit for bit as that of a tied head.
            return LowRank(
                up=lambda part: np.ascontiguousarray(as_float32(across.read()[:, part]).T),
                down=lambda: np.ascontiguousarray(_floats(back).T),
                scale=scale,
            )
        down, up = self._part("lora_A", (rank, columns)), self._part("lora_B", (rows, rank))
        return LowRank(up=partial(_rows, up), down=partial(_floats, down), scale=scale)

    def _magnitude(self, base: StudentTensor) -> Magnitude | None:
        if not (self.settings.uses_dora and self.parts.has_matrices):
            if "magnitude" in self.parts.tensors:
                raise ModelFileError(
                    f"{self.parts.path}: there is a magnitude vector for '{self.name}', and use_dora is off"
                )
            return None
        of_columns = "lora_embedding_A" in self.parts.tensors
        vector = self._part("magnitude", base.shape[1:] if of_columns else base.shape[:1])
        return Magnitude(values=partial(_floats, vector), of_columns=of_columns)

    def _new_rows(self, base: StudentTensor) -> dict[int, Callable[[], Floats]]:
        rows = self.parts.tensors.get("tokens")
        if rows is None:
            return {}
        indices = self._token_indices()
        self._check_shape(rows, (len(indices), *base.shape[1:]))
        if max(indices) >= base.shape[0]:
            raise ModelFileError(
                f"{self.settings.path}: token {max(indices)} was trained; the base has {base.shape[0]}",
                hint=self.hint,
            )
        return {index: partial(_row, rows, place) for place, index in enumerate(indices)}

    def _token_indices(self) -> tuple[int, ...]:
        for module, indices in self.settings.token_indices.items():
            if f".{self.name}".endswith(f".{module or EMBEDDING}"):
                return indices
        raise ModelFileError(
            f"{self.parts.path}: there are trained tokens for '{self.name}'; trainable_token_indices "
            "does not say which"
        )

    def _part(self, part: str, shape: tuple[int, ...]) -> StoredTensor:
        tensor = self.parts.tensors.get(part)
        if tensor is None:
            raise ModelFileError(f"{self.parts.path}: '{part}' of '{self.name}' is missing")
        self._check_shape(tensor, shape)
        return tensor

    def _check_shape(self, tensor: StoredTensor, shape: tuple[int, ...]) -> None:
        if tensor.shape != shape:
            raise ModelFileError(
                f"{self.parts.path}: tensor '{tensor.name}' has shape {list(tensor.shape)}; "
                f"with this base and config it is {list(shape)}",
                hint=self.hint,
            )


def _floats(tensor: StoredTensor) -> Floats:
    return as_float32(tensor.read())


def _rows(tensor: StoredTensor, rows: slice = ALL_ROWS) -> Floats:
    return as_float32(tensor.read()[rows])


def _row(tensor: StoredTensor, place: int) -> Floats:
    return as_float32(tensor.read()[place])
