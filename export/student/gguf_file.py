"""A student that is a GGUF already, of any quantization, in one file or several."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
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
from export.student.provenance import CHECKSUM, files_sha256, find_license_text, find_revision

try:
    import gguf
except ImportError as error:
    raise MissingExtraError("gguf", extra="export", feature="reading a GGUF's weights") from error

__all__ = ["GgufStudent", "open_gguf"]


class GgufStudent:
    """A GGUF whose header has been read and checked. Its tensors carry llama.cpp's names.

    `path` is its file, the first one where there are several; `files` are all of them, in order.
    """

    def __init__(self, path: Path, header: GgufHeader) -> None:
        self.path = path
        self.header = header
        self._mapped: dict[Path, Array] = {}

    @property
    def files(self) -> tuple[Path, ...]:
        return self.header.files

    @cached_property
    def facts(self) -> ModelFacts:
        return model_facts(self.header)

    def tensors(self) -> Iterator[StudentTensor]:
        for info in self.header.tensors:
            yield self._tensor(info)

    def source(self, progress: Progress = silent) -> SourceRecord:
        version = self.header.metadata.get("general.version")
        return SourceRecord(
            name=self.path.name,
            kind="gguf",
            sha256=self._sha256(progress),
            revision=find_revision(self.path) or (version if isinstance(version, str) else None),
            license=self.facts.license,
            base_model=self.facts.base_model,
        )

    def sha256_of(self, sums: Sequence[str]) -> str:
        """What `source` gives as the checksum if the files, in their order, have these hex sha256.

        That of the only file; of several `files_sha256`.
        """
        if len(self.files) == 1:
            return sums[0]
        named = sorted((path.name, digest) for path, digest in zip(self.files, sums, strict=True))
        lines = "".join(f"{digest}  {name}\n" for name, digest in named)
        return hashlib.sha256(lines.encode()).hexdigest()

    def license_text(self) -> str | None:
        return find_license_text(self.path.parent)

    def _sha256(self, progress: Progress) -> str:
        if len(self.files) > 1:
            return files_sha256(self.files, progress)
        total = self.path.stat().st_size
        return file_sha256(self.path, lambda done: progress(CHECKSUM, done, total))

    def _data(self, path: Path) -> Array:
        if path not in self._mapped:
            self._mapped[path] = np.memmap(path, dtype=np.uint8, mode="r")
        return self._mapped[path]

    def _tensor(self, info: TensorInfo) -> StudentTensor:
        shape = tuple(reversed(info.shape))

        def read(rows: slice) -> Array:
            data = self._data(info.path)[info.offset : info.offset + info.size_bytes]
            floats = {"F32": "<f4", "F16": "<f2", "BF16": "<u2"}.get(info.type_name)
            if floats is not None:
                return data.view(np.dtype(floats)).reshape(shape)[rows]
            packed = data.reshape(*shape[:-1], -1)[rows]
            values: Array = gguf.dequantize(packed, gguf.GGMLQuantizationType[info.type_name])
            return values

        return StudentTensor(
            name=info.name, shape=shape, storage=info.type_name, size_bytes=info.size_bytes, _read=read
        )


def open_gguf(path: Path) -> GgufStudent:
    """Open a GGUF file, or the first of a model's shards with all the others.

    Raises:
        ModelFileError: a file is damaged or missing, or llama.cpp could not load it.
    """
    header = read_gguf_header(path)
    validate_model(header)
    return GgufStudent(path, header)
