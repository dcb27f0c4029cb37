"""Models in several files, whole and damaged, and what llama.cpp itself makes of them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from edgekit.errors import ModelFileError
from edgekit.gguf_header import (
    first_shard,
    model_facts,
    numbered,
    read_gguf_header,
    shard_paths,
    stem_without_shard,
    validate_model,
)

COUNT, NUMBER, TENSORS = "split.count", "split.no", "split.tensors.count"


def _write(parts: list[Any], directory: Path, stem: str = "tiny") -> list[Path]:
    directory.mkdir(exist_ok=True)
    names = [directory / f"{stem}-{index + 1:05}-of-{len(parts):05}.gguf" for index in range(len(parts))]
    return [part.write(path) for part, path in zip(parts, names, strict=True)]


def test_read_gguf_header__first_shard_gives_the_model_of_all(raw: ModuleType, tmp_path: Path) -> None:
    model = raw.tiny_model()
    paths = _write(raw.split(model, 3, 4), tmp_path)
    header = read_gguf_header(paths[0])
    whole = read_gguf_header(model.write(tmp_path / "whole.gguf"))
    assert (header.path, header.files) == (paths[0], tuple(paths))
    assert whole.files == (whole.path,)
    assert [replace(t, offset=0, path=Path()) for t in header.tensors] == [
        replace(t, offset=0, path=Path()) for t in whole.tensors
    ]
    assert [paths.index(tensor.path) for tensor in header.tensors] == [0, 0, 0, 1] + [2] * 17
    for tensor, written in zip(header.tensors, model.tensors, strict=True):
        content = tensor.path.read_bytes()
        assert content[tensor.offset : tensor.offset + tensor.size_bytes] == written.data
    assert header.metadata.items() > whole.metadata.items()
    validate_model(header)
    assert model_facts(header) == model_facts(whole)


def test_read_gguf_header__agrees_with_the_gguf_librarys_writer(tmp_path: Path) -> None:
    import gguf
    import numpy as np

    writer = gguf.GGUFWriter(tmp_path / "made.gguf", "llama", split_max_tensors=2)
    values = {f"t{index}": np.full((4, 32), index, np.float32) for index in range(5)}
    for name, array in values.items():
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    header = read_gguf_header(numbered(tmp_path / "made.gguf", 3)[0])
    assert {path.name for path in header.files} == {path.name for path in tmp_path.iterdir()}
    for tensor in header.tensors:
        read = np.fromfile(tensor.path, np.float32, count=tensor.elements, offset=tensor.offset)
        assert np.array_equal(read, values[tensor.name].reshape(-1))


def test_read_gguf_header__first_shard_may_hold_no_tensor(
    raw: ModuleType, native: dict[str, str], tmp_path: Path
) -> None:
    # gguf-split --no-tensor-first-split
    header = read_gguf_header(_write(raw.split(raw.tiny_model(), 0, 9), tmp_path)[0])
    validate_model(header)
    assert len(header.tensors) == 21
    assert native["no tensor in the first"] == "ok"


def test_read_gguf_header__links_to_files_of_other_names_work(raw: ModuleType, tmp_path: Path) -> None:
    # As a model hub's cache keeps them.
    for index, path in enumerate(_write(raw.split(raw.tiny_model(), 9), tmp_path / "blobs")):
        path.rename(path.with_name(f"blob{index}"))
        (tmp_path / path.name).symlink_to(path.with_name(f"blob{index}"))
    assert len(read_gguf_header(tmp_path / "tiny-00001-of-00002.gguf").tensors) == 21


def test_read_gguf_header__later_shard_names_the_first(raw: ModuleType, tmp_path: Path) -> None:
    paths = _write(raw.split(raw.tiny_model(), 3, 4), tmp_path)
    with pytest.raises(ModelFileError, match="part 2 of a model in 3 files") as caught:
        read_gguf_header(paths[1])
    assert caught.value.hint is not None and str(paths[0]) in caught.value.hint


def test_read_gguf_header__missing_shards_are_named(raw: ModuleType, tmp_path: Path) -> None:
    paths = _write(raw.split(raw.tiny_model(), 3, 4), tmp_path)
    paths[2].unlink()
    with pytest.raises(ModelFileError, match=r": tiny-00003-of-00003\.gguf is missing beside it") as caught:
        read_gguf_header(paths[0])
    assert caught.value.message.startswith(f"{paths[0]}: ")
    paths[1].unlink()
    with pytest.raises(ModelFileError, match=r": tiny-00002-of-00003\.gguf and 1 more of its 3 files are"):
        read_gguf_header(paths[0])
    paths[1].symlink_to("nowhere")
    with pytest.raises(ModelFileError, match=r": tiny-00002-of-00003\.gguf and 1 more"):
        read_gguf_header(paths[0])


def test_read_gguf_header__every_cut_of_a_later_shard_is_refused(raw: ModuleType, tmp_path: Path) -> None:
    paths = _write(raw.split(raw.tiny_model(), 3, 4), tmp_path)
    content = paths[1].read_bytes()
    for length in range(0, len(content) - 64, 61):
        paths[1].write_bytes(content[:length])
        with pytest.raises(ModelFileError, match=r"tiny-00002-of-00003\.gguf: "):
            read_gguf_header(paths[0])


def test_shard_paths__go_by_the_name() -> None:
    paths = tuple(Path(f"/m/R1-0000{number}-of-00003.gguf") for number in (1, 2, 3))
    assert shard_paths(paths[1]) == shard_paths(paths[0]) == paths == numbered(Path("/m/R1.gguf"), 3)
    assert numbered(Path("/m/R1.gguf"), 1) == (Path("/m/R1.gguf"),)
    assert first_shard(paths[2]) == paths[0]
    assert stem_without_shard(paths[2]) == "R1"
    for name in ("R1.gguf", "R1-00004-of-00003.gguf", "R1-00000-of-00003.gguf", "R1-1-of-3.gguf", "R1"):
        path = Path("/m") / name
        assert (shard_paths(path), first_shard(path), stem_without_shard(path)) == ((path,), path, path.stem)


def _set(part: int, key: str, kind: str, value: Any) -> Callable[[list[Any]], None]:
    return lambda parts: parts[part].set(key, kind, value)


def _without(part: int, key: str) -> Callable[[list[Any]], None]:
    return lambda parts: parts[part].metadata.pop(key)


def _twice(parts: list[Any]) -> None:
    parts[2].tensors[-1].name = "token_embd.weight"


def _swapped(parts: list[Any]) -> None:
    parts[1], parts[2] = parts[2], parts[1]


def _misaligned(parts: list[Any]) -> None:
    parts[2].alignment = 8
    parts[2].set("general.alignment", "U32", 8)


def _of_another_kind(parts: list[Any]) -> None:
    parts[2].magic = b"PK\x03\x04"


def _all_told(kind: str, key: str, value: int) -> Callable[[list[Any]], None]:
    def damage(parts: list[Any]) -> None:
        for part in parts:
            part.set(key, kind, value)

    return damage


# Name: what is done to a model in 3 files, the file that is named, what is said, and what llama.cpp does.
DAMAGE: dict[str, tuple[Callable[[list[Any]], Any], int, str, str]] = {
    "number of another": (_set(2, NUMBER, "U16", 1), 2, "split.no is 1, but its name makes it 2", "refused"),
    "two shards swapped": (_swapped, 1, "split.no is 2, but its name makes it 1", "refused"),
    "number of another type": (_set(2, NUMBER, "U32", 2), 2, "'split.no' is of type UINT32", "SIGABRT"),
    "no number": (_without(1, NUMBER), 1, "'split.no' is missing", "refused"),
    "number beyond the count": (_set(0, NUMBER, "U16", 3), 0, "split.no is 3, of 3 files", "refused"),
    "no number in the first": (_without(0, NUMBER), 0, "'split.no' is missing", "refused"),
    "count of another type": (_set(0, COUNT, "U32", 3), 0, "'split.count' is of type UINT32", "refused"),
    "another count in a later one": (_set(1, COUNT, "U16", 4), 1, "is 4, but 3 in tiny-00001-of-", "ok"),
    "no count in a later one": (_without(1, COUNT), 1, "'split.count' is missing", "ok"),
    "count against the names": (_all_told("U16", COUNT, 4), 0, "1 of a model in 4 files, but", "refused"),
    "tensor twice": (_twice, 2, "'token_embd.weight' is in tiny-00001-of-00003.gguf, too", "refused"),
    "fewer tensors": (_all_told("I32", TENSORS, 22), 0, "is 22; its 3 files have 21", "refused"),
    "negative tensors": (_all_told("I32", TENSORS, -1), 0, "is -1; its 3 files have 21", "refused"),
    "tensors of another type": (_set(0, TENSORS, "U16", 21), 0, "of type UINT16, not INT32", "refused"),
    "no tensors told": (_without(0, TENSORS), 0, "'split.tensors.count' is missing", "refused"),
    "other tensors in a later one": (_set(2, TENSORS, "I32", 20), 2, "files of different models", "ok"),
    "another kind of file": (_of_another_kind, 2, "not a GGUF file", "refused"),
    "alignment 8 in a later one": (_misaligned, 0, "alignment is 8; llama.cpp needs 32", "SIGABRT"),
}


@pytest.fixture(scope="session")
def native(raw: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What llama.cpp itself makes of each case, by name: "ok", "refused", or the signal it died of."""
    directory = tmp_path_factory.mktemp("shards")
    paths = {"no tensor in the first": _write(raw.split(raw.tiny_model(), 0, 9), directory / "empty")[0]}
    for index, (name, (damage, *_)) in enumerate(DAMAGE.items()):
        parts = raw.split(raw.tiny_model(), 3, 4)
        damage(parts)
        paths[name] = _write(parts, directory / str(index))[0]
    command = [sys.executable, str(Path(__file__).with_name("try_loading.py")), *map(str, paths.values())]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    outcomes = json.loads(done.stdout)
    return {name: outcomes[str(path)] for name, path in paths.items()}


@pytest.mark.parametrize("name", DAMAGE)
def test_read_gguf_header__damaged_shards_are_refused_with_a_reason(
    name: str, raw: ModuleType, native: dict[str, str], tmp_path: Path
) -> None:
    damage, index, message, outcome = DAMAGE[name]
    parts = raw.split(raw.tiny_model(), 3, 4)
    damage(parts)
    paths = _write(parts, tmp_path)
    with pytest.raises(ModelFileError, match=message) as caught:
        validate_model(read_gguf_header(paths[0]))
    assert caught.value.message.startswith(f"{paths[index]}: ")
    assert native[name] == outcome
