"""A student that is a Hugging Face checkpoint: config.json, tokenizer, safetensors files."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from math import prod
from pathlib import Path, PurePosixPath
from typing import Any, Final, TypeVar

from edgekit.bundle.manifest import SourceRecord
from edgekit.errors import ModelFileError
from edgekit.facts import ModelFacts
from export.progress import Progress, silent
from export.student.base import StudentTensor
from export.student.config import CheckpointConfig, read_config, read_json
from export.student.provenance import (
    card_facts,
    checkpoint_name,
    files_sha256,
    find_license_text,
    find_revision,
)
from export.student.safetensors_file import StoredTensor, open_safetensors
from export.student.tokenizer import CheckpointTokenizer, read_tokenizer
from export.student.weight_reader import FLOAT_STORAGE, WeightReader, float_tensor, open_weight_reader

__all__ = ["CheckpointStudent", "open_checkpoint"]

T = TypeVar("T")

INDEX_NAME: Final = "model.safetensors.index.json"
TOKENIZER_FILES: Final = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
)
# Leftovers of old checkpoints: constants that the model computes itself.
IGNORED_SUFFIXES: Final = (".rotary_emb.inv_freq", ".attention.masked_bias", ".attention.bias")


class CheckpointStudent:
    """A checkpoint whose files have been opened and checked against its config.

    Its tensors carry Hugging Face's names. `stored_as` is the type of its float matrices. Satisfies
    `DecoderStudent`.
    """

    def __init__(
        self,
        path: Path,
        config: CheckpointConfig,
        tensors: Mapping[str, StudentTensor],
        *,
        quantization: str | None = None,
    ) -> None:
        """`quantization`: what the facts call it; None for a float checkpoint."""
        self.path = path
        self.config = config
        self._tensors = tensors
        self._quantization = quantization
        embedding = tensors["model.embed_tokens.weight"].storage
        self.stored_as = embedding if embedding in FLOAT_STORAGE else "F32"

    @cached_property
    def tokenizer(self) -> CheckpointTokenizer:
        return read_tokenizer(self.path, vocabulary=self.config.vocabulary, config=self.config.raw)

    @cached_property
    def facts(self) -> ModelFacts:
        config, tied = self.config, "lm_head.weight" not in self._tensors
        weight_bytes = sum(tensor.size_bytes for tensor in self._tensors.values())
        embedding = self._tensors["model.embed_tokens.weight"]
        license_name, base_model = self._card_facts()
        return ModelFacts(
            name=checkpoint_name(self.path),
            architecture=config.architecture,
            parameters=sum(prod(tensor.shape) for tensor in self._tensors.values()),
            weight_bytes=weight_bytes,
            bytes_per_token=weight_bytes - (0 if tied else embedding.size_bytes),
            quantization=self._quantization or self.stored_as,
            layers=config.layers,
            embedding_length=config.embedding_length,
            feed_forward_length=config.feed_forward_length,
            attention_heads=config.heads,
            attention_kv_heads=config.kv_heads,
            head_length=config.head_length,
            vocabulary=config.vocabulary,
            context_train_tokens=config.context_tokens,
            tied_embeddings=tied,
            tokenizer=self.tokenizer.pre,
            license=license_name,
            base_model=base_model,
        )

    def tensors(self) -> Iterator[StudentTensor]:
        yield from self._tensors.values()

    def source(self, progress: Progress = silent) -> SourceRecord:
        files = [*self.path.glob("*.safetensors"), *self.path.glob("*.json"), *self.path.glob("*.jinja")]
        return SourceRecord(
            name=checkpoint_name(self.path),
            kind="safetensors",
            sha256=files_sha256(files, progress),
            revision=find_revision(self.path / "config.json"),
            license=self.facts.license,
            base_model=self.facts.base_model,
        )

    def tokenizer_files(self) -> dict[str, bytes]:
        paths = [self.path / name for name in TOKENIZER_FILES]
        return {path.name: path.read_bytes() for path in paths if path.is_file()}

    def license_text(self) -> str | None:
        return find_license_text(self.path)

    def _card_facts(self) -> tuple[str | None, str | None]:
        return card_facts(self.path)


def open_checkpoint(directory: Path) -> CheckpointStudent:
    """Open a checkpoint directory and check all that can be checked without reading the weights.

    Raises:
        ModelFileError: a file is missing, damaged or of an unknown kind, or the tensors are not those that
            config.json describes.
    """
    config = read_config(directory / "config.json")
    reader = open_weight_reader(directory / "config.json", config.raw)
    ignored = IGNORED_SUFFIXES + (() if reader is None else reader.ignored_suffixes)
    stored = {name: t for name, t in _open_tensors(directory).items() if not name.endswith(ignored)}
    tensors = _weights(directory, config, stored, reader)
    return CheckpointStudent(
        directory, config, tensors, quantization=None if reader is None else reader.quantization
    )


def _open_tensors(directory: Path) -> dict[str, StoredTensor]:
    single, index_path = directory / "model.safetensors", directory / INDEX_NAME
    if single.is_file():  # as transformers chooses where an index is there, too
        return dict(open_safetensors(single).tensors)
    if not index_path.is_file():
        raise ModelFileError(
            f"{directory}: neither model.safetensors nor {INDEX_NAME} is there",
            hint="pytorch_model.bin files are not read: save the checkpoint with safe_serialization=True",
        )
    weight_map = _weight_map(index_path)
    tensors: dict[str, StoredTensor] = {}
    for shard in sorted(set(weight_map.values())):
        found = open_safetensors(directory / shard).tensors
        for name in found:
            if weight_map.get(name) != shard:
                raise ModelFileError(f"{directory / shard}: tensor '{name}' is not where {INDEX_NAME} says")
        tensors.update(found)
    missing = sorted(set(weight_map) - set(tensors))
    if missing:
        raise ModelFileError(f"{directory / weight_map[missing[0]]}: tensor '{missing[0]}' is missing")
    return tensors


def _weight_map(path: Path) -> dict[str, str]:
    weight_map = read_json(path).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ModelFileError(f"{path}: no 'weight_map'")
    for name, shard in weight_map.items():
        if (
            not isinstance(shard, str)
            or PurePosixPath(shard).name != shard
            or not shard.endswith(".safetensors")
        ):
            raise ModelFileError(
                f"{path}: tensor '{name}' is said to be in {shard!r}, which is no shard's name"
            )
        if not (path.parent / shard).is_file():
            raise ModelFileError(f"{path.parent / shard}: the shard is missing", hint="download it as well")
    return weight_map


def _weights(
    directory: Path,
    config: CheckpointConfig,
    stored: Mapping[str, StoredTensor],
    reader: WeightReader | None,
) -> dict[str, StudentTensor]:
    """The model's weights out of what is stored, in the order of the files; all of it must be used."""
    wanted = config.tensor_shapes()
    # A tied head may be stored all the same; it is then used as it is, like the converter does.
    optional = {"lm_head.weight": (config.vocabulary, config.embedding_length)}
    shapes = {**optional, **wanted}
    modules = {name.rpartition(".")[0] for name in shapes}
    weights: dict[str, StudentTensor] = {}
    for module, rest in _parts_by_module(stored, modules).items():
        matrix = shapes.get(f"{module}.weight", ())
        if f"{module}.bias" in shapes and "bias" in rest:
            weights[f"{module}.bias"] = _located(directory, float_tensor, rest.pop("bias"))
        if reader is not None and len(matrix) == 2 and rest:
            packed = _located(directory, reader.weight, module, matrix, rest)
            if packed is not None:
                weights[packed.name] = packed
                continue
        if matrix and "weight" in rest:
            weights[f"{module}.weight"] = _located(directory, float_tensor, rest.pop("weight"))
        for tensor in rest.values():
            raise ModelFileError(
                f"{directory}: tensor '{tensor.name}' of shape {list(tensor.shape)} is not part of the model"
            )
    for name in wanted:
        if name not in weights:
            raise ModelFileError(f"{directory}: tensor '{name}' is missing ({len(stored)} are there)")
    for name, weight in weights.items():
        if weight.shape != shapes[name]:
            raise ModelFileError(
                f"{directory}: tensor '{name}' has shape {list(weight.shape)}; "
                f"config.json says {list(shapes[name])}"
            )
    return weights


def _parts_by_module(
    stored: Mapping[str, StoredTensor], modules: set[str]
) -> dict[str, dict[str, StoredTensor]]:
    """Stored tensors by the module that they belong to, then by the rest of their names."""
    parts: dict[str, dict[str, StoredTensor]] = {}
    for name, tensor in stored.items():
        module = name
        while module and module not in modules:
            module = module.rpartition(".")[0]
        module = module or name.rpartition(".")[0]
        parts.setdefault(module, {})[name.removeprefix(f"{module}.")] = tensor
    return parts


def _located(directory: Path, read: Callable[..., T], *arguments: Any) -> T:
    """What `read` returns; its errors say where."""
    try:
        return read(*arguments)
    except ModelFileError as error:
        raise ModelFileError(f"{directory}: {error.message}", hint=error.hint) from error
