"""The header reader on files cut, twisted and lying about their sizes."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from edgekit.errors import ModelFileError
from edgekit.gguf_header import read_gguf_header


def test_read_gguf_header__reads_what_was_written(raw: ModuleType, tmp_path: Path) -> None:
    model = raw.tiny_model()
    model.set("test.i64", "I64", -(2**40))
    model.set("test.f64", "F64", 0.25)
    model.set("test.flags", "ARR", ("BOOL", [True, False]))
    path = model.write(tmp_path / "model.gguf")
    header = read_gguf_header(path)
    assert (header.version, header.alignment, header.path) == (3, 32, path)
    assert header.metadata["test.i64"] == -(2**40)
    assert header.metadata["test.f64"] == 0.25
    assert header.metadata["test.flags"] == (True, False)
    assert header.value_types["tokenizer.ggml.tokens"] == "ARRAY[STRING]"
    tokens = header.metadata["tokenizer.ggml.tokens"]
    assert isinstance(tokens, tuple) and len(tokens) == 264 and tokens[-1] == "</think>"
    assert [tensor.name for tensor in header.tensors] == [tensor.name for tensor in model.tensors]
    content = path.read_bytes()
    for tensor, written in zip(header.tensors, model.tensors, strict=True):
        assert content[tensor.offset : tensor.offset + tensor.size_bytes] == written.data
        assert tensor.offset % 32 == 0


def test_read_gguf_header__agrees_with_the_gguf_library(student: Path) -> None:
    import gguf

    header = read_gguf_header(student)
    reference = gguf.GGUFReader(student)
    assert [(t.name, t.shape, t.type_name, t.offset, t.size_bytes) for t in header.tensors] == [
        (t.name, tuple(map(int, t.shape)), t.tensor_type.name, int(t.data_offset), int(t.n_bytes))
        for t in reference.tensors
    ]
    for key, value in header.metadata.items():
        expected = reference.get_field(key).contents()
        assert (list(value) if isinstance(value, tuple) else value) == expected, key


def test_read_gguf_header__reads_version_2(raw: ModuleType, tmp_path: Path) -> None:
    model = raw.tiny_model()
    model.version = 2
    assert read_gguf_header(model.write(tmp_path / "model.gguf")).version == 2


def test_read_gguf_header__cut_anywhere_is_refused(raw: ModuleType, tmp_path: Path) -> None:
    content = raw.tiny_model().to_bytes()
    path = tmp_path / "model.gguf"
    # All of the header's first part, then samples: the last tensor's padding may be missing.
    for length in [*range(700), *range(700, len(content) - 64, 997)]:
        path.write_bytes(content[:length])
        with pytest.raises(ModelFileError, match=r"model\.gguf: "):
            read_gguf_header(path)


def test_read_gguf_header__flipped_bytes_never_escape_as_another_error(
    raw: ModuleType, tmp_path: Path
) -> None:
    content = bytearray(raw.tiny_model().to_bytes())
    path = tmp_path / "model.gguf"
    for position in range(0, 12_000, 3):
        before = content[position]
        content[position] ^= 0xFF
        path.write_bytes(content)
        try:
            read_gguf_header(path)
        except ModelFileError as error:
            assert str(path) in error.message
        content[position] = before


def _replace(content: bytes, position: int, code: str, value: int) -> bytes:
    patch = struct.pack("<" + code, value)
    return content[:position] + patch + content[position + len(patch) :]


Damage = Callable[[Any], Any]

DAMAGE: dict[str, tuple[Damage, str]] = {
    "another kind of file": (lambda m: b"PK\x03\x04" + m.to_bytes()[4:], "not a GGUF file"),
    "version 1": (lambda m: _replace(m.to_bytes(), 4, "I", 1), "version 1"),
    "version 4": (lambda m: _replace(m.to_bytes(), 4, "I", 4), "version 4"),
    "version 0": (lambda m: _replace(m.to_bytes(), 4, "I", 0), "version 0"),
    "big endian": (lambda m: _replace(m.to_bytes(), 4, "I", 0x03000000), "big-endian"),
    "2^63 tensors": (
        lambda m: _replace(m.to_bytes(), 8, "Q", 2**63),
        r"9223372036854775808 tensors; the limit",
    ),
    "200000 tensors": (lambda m: _replace(m.to_bytes(), 8, "Q", 200_000), r"200000 tensors do not fit"),
    "2^40 pairs": (lambda m: _replace(m.to_bytes(), 16, "Q", 2**40), "metadata pairs; the limit"),
    "one pair more": (lambda m: _replace(m.to_bytes(), 16, "Q", 20), "the name of tensor 0 claims"),
    "one tensor more": (lambda m: _replace(m.to_bytes(), 8, "Q", 22), "tensor 21"),
    "key twice": (
        lambda m: m.extra_pairs.append(("general.name", ("STR", "x"))),
        "'general.name' appears twice",
    ),
    "empty key": (lambda m: m.extra_pairs.append(("", ("STR", "x"))), "metadata pair 19 is empty"),
    "tensor twice": (
        lambda m: setattr(m.tensors[1], "name", "token_embd.weight"),
        "'token_embd.weight' appears twice",
    ),
    "unnamed tensor": (lambda m: setattr(m.tensors[1], "name", ""), "tensor 1 is empty"),
    "long tensor name": (lambda m: setattr(m.tensors[1], "name", "x" * 64), "64 bytes; the limit is 63"),
    "tensor name not UTF-8": (lambda m: setattr(m.tensors[1], "name", b"\xff"), "not UTF-8"),
    "text not UTF-8": (lambda m: m.set("general.name", "STR", b"\xff"), "'general.name' is not UTF-8"),
    "token not UTF-8": (
        lambda m: m.set("x", "ARR", ("STR", ["ok", b"\xc3("])),
        "element 1 of 'x' is not UTF-8",
    ),
    "five dimensions": (lambda m: setattr(m.tensors[0], "shape", [64, 264, 1, 1, 1]), "5 dimensions"),
    "no dimensions": (lambda m: setattr(m.tensors[0], "shape", []), "0 dimensions"),
    "no elements": (lambda m: setattr(m.tensors[0], "shape", [64, 0]), r"impossible shape \[64, 0\]"),
    "too many elements": (lambda m: setattr(m.tensors[0], "shape", [2**40, 2**40]), "impossible shape"),
    "removed type": (lambda m: setattr(m.tensors[0], "kind", 4), "unknown or removed type 4"),
    "future type": (lambda m: setattr(m.tensors[0], "kind", 77), "unknown or removed type 77"),
    "row not whole blocks": (
        lambda m: (setattr(m.tensors[0], "kind", 2), setattr(m.tensors[0], "shape", [33, 64])),
        "rows of 33 elements, not a multiple of Q4_0's block of 32",
    ),
    "overlap": (lambda m: setattr(m.tensors[3], "offset", 0), "overlaps the one before"),
    "gap": (lambda m: setattr(m.tensors[3], "offset", 1 << 20), "leaves a gap"),
    "misaligned": (lambda m: setattr(m.tensors[3], "offset", 7), "offset 7, not aligned to 32"),
    "alignment 3": (lambda m: m.set("general.alignment", "U32", 3), "general.alignment is 3"),
    "alignment 0": (lambda m: m.set("general.alignment", "U32", 0), "general.alignment is 0"),
    "alignment of another type": (lambda m: m.set("general.alignment", "U64", 32), "type UINT64, not UINT32"),
    "truth value 2": (
        lambda m: m.set("test.x", "BOOL", True) or _patched(m, b"test.x", 2),
        "other than 0 and 1",
    ),
    "unknown value type": (
        lambda m: m.set("test.x", "BOOL", True) or _retyped(m, b"test.x", 13),
        "value type 13",
    ),
    "array of arrays": (
        lambda m: m.set("x", "ARR", ("ARR", [("U8", [1])])),
        "'x' has unknown or unsupported value type 9",
    ),
}


def _patched(model: Any, key: bytes, value: int) -> bytes:
    content: bytes = model.to_bytes()
    at = content.index(struct.pack("<Q", len(key)) + key) + 8 + len(key) + 4
    return _replace(content, at, "B", value)


def _retyped(model: Any, key: bytes, number: int) -> bytes:
    content: bytes = model.to_bytes()
    at = content.index(struct.pack("<Q", len(key)) + key) + 8 + len(key)
    return _replace(content, at, "I", number)


@pytest.mark.parametrize("name", DAMAGE)
def test_read_gguf_header__damage_is_named(name: str, raw: ModuleType, tmp_path: Path) -> None:
    damage, message = DAMAGE[name]
    model = raw.tiny_model()
    result = damage(model)
    path = tmp_path / "model.gguf"
    path.write_bytes(result if isinstance(result, bytes) else model.to_bytes())
    with pytest.raises(ModelFileError, match=message) as caught:
        read_gguf_header(path)
    assert caught.value.message.startswith(f"{path}: ")


def test_read_gguf_header__missing_file_and_directory_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="cannot be read: No such file"):
        read_gguf_header(tmp_path / "absent.gguf")
    with pytest.raises(ModelFileError, match="cannot be read: Is a directory"):
        read_gguf_header(tmp_path)
