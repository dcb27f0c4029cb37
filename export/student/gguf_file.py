"""A student that is a GGUF file already, of any quantization."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

import numpy as np

from edgekit.bundle.manifest import SourceRecord
from edgekit.errors import MissingExtraError
from edgekit.facts import ModelFacts
from edgekit.gguf_header import GgufHeader, TensorInfo, model_facts, read_gguf_header, validate_model
from export.cache import file_sha256
from export.progress import Progress, silent
from export.student.base import Array, StudentTensor
from export.student.provenance import CHECKSUM, find_license_text, find_revision

try:
    import gguf
except ImportError as error:
    raise MissingExtraError("gguf", extra="export", feature="reading a GGUF's weights") from error

__all__ = ["GgufStudent", "open_gguf"]


class GgufStudent:
    """A GGUF file whose header has been read and checked. Its tensors carry llama.cpp's names."""

    def __init__(self, path: Path, header: GgufHeader) -> None:
        self.path = path
        self.header = header

    @cached_property
    def facts(self) -> ModelFacts:
        return model_facts(self.header)

    @cached_property
    def _data(self) -> Array:
        return np.memmap(self.path, dtype=np.uint8, mode="r")

    def tensors(self) -> Iterator[StudentTensor]:
        for info in self.header.tensors:
            yield self._tensor(info)

    def source(self, progress: Progress = silent) -> SourceRecord:
        total = self.path.stat().st_size
        version = self.header.metadata.get("general.version")
        return SourceRecord(
            name=self.path.name,
            kind="gguf",
            sha256=file_sha256(self.path, lambda done: progress(CHECKSUM, done, total)),
            revision=find_revision(self.path) or (version if isinstance(version, str) else None),
            license=self.facts.license,
            base_model=self.facts.base_model,
        )

    def license_text(self) -> str | None:
        return find_license_text(self.path.parent)

    def _tensor(self, info: TensorInfo) -> StudentTensor:
        shape = tuple(reversed(info.shape))

        def read(rows: slice) -> Array:
            raw = self._data[info.offset : info.offset + info.size_bytes].reshape(*shape[:-1], -1)[rows]
            floats = {"F32": "<f4", "F16": "<f2", "BF16": "<u2"}.get(info.type_name)
            if floats is not None:
                return raw.view(np.dtype(floats))
            values: Array = gguf.dequantize(raw, gguf.GGMLQuantizationType[info.type_name])
            return values

        return StudentTensor(
            name=info.name, shape=shape, storage=info.type_name, size_bytes=info.size_bytes, _read=read
        )


def open_gguf(path: Path) -> GgufStudent:
    """Open a GGUF file.

    Raises:
        ModelFileError: the file is damaged, or llama.cpp could not load it.
    """
    header = read_gguf_header(path)
    validate_model(header)
    return GgufStudent(path, header)
