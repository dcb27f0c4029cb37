"""A GGUF model in several files: how they are called, and one header made of theirs.

Each shard is a GGUF of its own, with some of the tensors. `split.no` counts them from 0, `split.count` says
how many there are, `split.tensors.count` how many tensors there are in all; other metadata counts in the
first shard only. llama.cpp is given the first and finds the others by their names.

Source: llama_split_path and llama_split_prefix (llama.cpp), llama_model_loader (llama-model-loader.cpp) and
gguf-split.cpp of llama.cpp 0c1e57098. What its loader takes without a look, such as two shards that tell
different counts, is refused here.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Final, NoReturn

from edgekit.errors import ModelFileError
from edgekit.gguf_header.reader import GgufHeader, TensorInfo, read_file_header

__all__ = ["first_shard", "numbered", "read_gguf_header", "shard_paths", "stem_without_shard"]

NUMBER_KEY: Final = "split.no"
COUNT_KEY: Final = "split.count"
TENSORS_KEY: Final = "split.tensors.count"
# llama.cpp ends the process on a later shard's `split.no` of another type.
_TYPES: Final = MappingProxyType({COUNT_KEY: "UINT16", NUMBER_KEY: "UINT16", TENSORS_KEY: "INT32"})
_NAME: Final = re.compile(r"(.*)-([0-9]{5})-of-([0-9]{5})\.gguf", re.DOTALL)


def numbered(path: Path, count: int) -> tuple[Path, ...]:
    """What the files of a model in `count` files are called that would be `path` in one."""
    if count == 1:
        return (path,)
    return tuple(path.with_name(f"{path.stem}{_ending(index, count)}") for index in range(count))


def shard_paths(path: Path) -> tuple[Path, ...]:
    """All files of the model that `path` is named as a shard of, the first one first; else `path` alone.

    Goes by the name: nothing is looked up on disk.
    """
    name = _shard_of(path)
    if name is None:
        return (path,)
    prefix, count = name
    return tuple(path.with_name(f"{prefix}{_ending(index, count)}") for index in range(count))


def first_shard(path: Path) -> Path:
    """The file that stands for the whole model: the first shard by the name of any, else `path` itself."""
    name = _shard_of(path)
    return path if name is None else path.with_name(f"{name[0]}{_ending(0, name[1])}")


def stem_without_shard(path: Path) -> str:
    """The name of a model's file without `.gguf`, and without `-00001-of-00003`."""
    name = _shard_of(path)
    return path.stem if name is None or not name[0] else name[0]


def read_gguf_header(path: Path) -> GgufHeader:
    """Read and check the header of a GGUF file, version 2 or 3, little endian; given a first shard, of all.

    Raises:
        ModelFileError: a file cannot be read, is not a GGUF, or contradicts itself or the other shards; a
            shard is missing; `path` is a shard, but not the first. The message names the file and, inside a
            file, the item and the byte.
    """
    header = read_file_header(path)
    count = _number(header, COUNT_KEY)
    if count <= 1:
        return header
    paths = _checked_paths(header, count)
    headers = [header, *map(read_file_header, paths[1:])]
    tensors: dict[str, TensorInfo] = {}
    for index, shard in enumerate(headers):
        _check_place(shard, header, index)
        for tensor in shard.tensors:
            if tensor.name in tensors:
                _fail(shard, f"tensor '{tensor.name}' is in {tensors[tensor.name].path.name}, too")
            tensors[tensor.name] = tensor
    total = _number(header, TENSORS_KEY)
    if len(tensors) != total:
        _fail(header, f"{TENSORS_KEY} is {total}; its {count} files have {len(tensors)} tensors")
    return replace(
        header,
        alignment=min(shard.alignment for shard in headers),
        tensors=tuple(tensors.values()),
        files=paths,
    )


def _checked_paths(header: GgufHeader, count: int) -> tuple[Path, ...]:
    """The paths of all shards, which are there, of the model whose first shard this is."""
    path, number = header.path, _number(header, NUMBER_KEY)
    if number >= count:
        _fail(header, f"{NUMBER_KEY} is {number}, of {count} files")
    ending = _ending(number, count)
    if not path.name.endswith(ending):
        raise ModelFileError(
            f"{path}: part {number + 1} of a model in {count} files, but its name does not end in {ending}",
            hint="give the files their names back: each is found by the name of the first",
        )
    paths = shard_paths(path)
    if number:
        raise ModelFileError(
            f"{path}: part {number + 1} of a model in {count} files",
            hint=f"give the first, {paths[0]}: the others are found beside it",
        )
    missing = [shard.name for shard in paths if _is_missing(shard)]
    if missing:
        others = f" and {len(missing) - 1} more of its {count} files are" if len(missing) > 1 else " is"
        raise ModelFileError(
            f"{path}: {missing[0]}{others} missing beside it",
            hint=f"download or copy all {count} files of the model into one directory",
        )
    return paths


def _check_place(shard: GgufHeader, first: GgufHeader, index: int) -> None:
    """Check what a shard says of itself against its place in the list, and against the first."""
    for key in _TYPES:
        if key not in shard.metadata:
            _fail(shard, f"metadata key '{key}' is missing in a part of a model in several files")
        told = _number(shard, key)
        if key == NUMBER_KEY and told != index:
            _fail(shard, f"{key} is {told}, but its name makes it {index}")
        if key != NUMBER_KEY and told != _number(first, key):
            _fail(
                shard,
                f"{key} is {told}, but {_number(first, key)} in {first.path.name}: these are files of "
                "different models",
            )


def _number(header: GgufHeader, key: str) -> int:
    """A number that tells about shards; 0 where it is not there, as llama.cpp has it."""
    value, kind = header.metadata.get(key, 0), header.value_types.get(key, _TYPES[key])
    if not isinstance(value, int) or kind != _TYPES[key]:
        _fail(header, f"metadata key '{key}' is of type {kind}, not {_TYPES[key]}")
    return value


def _is_missing(path: Path) -> bool:
    try:
        path.stat()
    except FileNotFoundError:
        return True
    except OSError:
        return False  # it is there; reading it will tell what is wrong
    return False


def _shard_of(path: Path) -> tuple[str, int] | None:
    """What is before the number, and the count; None for a name of another kind."""
    match = _NAME.fullmatch(path.name)
    if match is None:
        return None
    number, count = int(match[2]), int(match[3])
    return (match[1], count) if 1 <= number <= count else None


def _ending(index: int, count: int) -> str:
    return f"-{index + 1:05}-of-{count:05}.gguf"


def _fail(header: GgufHeader, problem: str) -> NoReturn:
    raise ModelFileError(f"{header.path}: {problem}")
