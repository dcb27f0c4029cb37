from __future__ import annotations

import json
import math
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from pydantic import ValidationError

from edgekit.bundle.manifest import (
    FileEntry,
    Manifest,
    ManifestFields,
    check_file_path,
    format_utc,
    manifest_bytes,
    parse_manifest,
    parse_utc,
    release_number,
)
from edgekit.errors import ManifestError


def _entry(path: str) -> dict[str, object]:
    return {"path": path, "size_bytes": 3, "sha256": "ab" * 32}


@pytest.fixture
def manifest(fields: ManifestFields) -> Manifest:
    files = tuple(FileEntry(path=p, size_bytes=3, sha256="ab" * 32) for p in ("a/b.json", "model.gguf"))
    return Manifest(**dict(fields), schema_version=1, files=files)


@pytest.fixture
def document(manifest: Manifest) -> dict[str, Any]:
    loaded = json.loads(manifest_bytes(manifest))
    assert isinstance(loaded, dict)
    return loaded


def _dump(document: dict[str, Any]) -> bytes:
    return json.dumps(document).encode()


def test_manifest_bytes__are_canonical_and_read_back(manifest: Manifest) -> None:
    data = manifest_bytes(manifest)
    assert parse_manifest(data) == manifest
    assert manifest_bytes(parse_manifest(data)) == data
    assert data.endswith(b"\n}\n")
    assert "größer ist nicht besser".encode() in data
    lines = data.decode().splitlines()
    keys = [line.split('"')[1] for line in lines if line.startswith('  "')]
    assert keys == sorted(keys)


def test_manifest_bytes__proof_that_json_cannot_say_is_refused(manifest: Manifest) -> None:
    with pytest.raises(ManifestError, match="cannot be written as JSON"):
        manifest_bytes(manifest.model_copy(update={"proof": {"kl": math.nan}}))


def test_parse_manifest__newer_schema_is_named(document: dict[str, Any]) -> None:
    # Whatever else the newer schema changed must not hide this message.
    newer = {**document, "schema_version": 2, "files": {"another": "shape"}}
    with pytest.raises(ManifestError, match="written by a newer edgekit: schema_version 2") as caught:
        parse_manifest(_dump(newer))
    assert "upgrade" in (caught.value.hint or "")


@pytest.mark.parametrize("version", [None, "1", 1.0, True, 0, -1])
def test_parse_manifest__schema_version_must_be_a_positive_integer(
    version: object, document: dict[str, Any]
) -> None:
    with pytest.raises(ManifestError, match="schema_version is missing or not a positive integer"):
        parse_manifest(_dump({**document, "schema_version": version}))


@pytest.mark.parametrize(
    ("mutate", "message"),
    [
        (lambda text: text.replace(b'"release"', b'"name"'), "the key 'name' is there twice"),
        (lambda text: text.replace(b'"sha256"', b'"path"', 1), "the key 'path' is there twice"),
        (lambda text: b"\xef\xbb\xbf" + text, "not valid JSON"),
        (lambda text: text.replace(b"Q4_1", b"Q4\xff1"), "not valid JSON"),
        (lambda text: text[:-3], "not valid JSON"),
        (lambda text: text + b"{}", "not valid JSON: Extra data"),
        (lambda text: text.replace(b"20260331080500", b"NaN"), "NaN is not JSON"),
        (lambda text: text.replace(b"20260331080500", b"-Infinity"), "-Infinity is not JSON"),
        (lambda text: text.replace(b"20260331080500", b"9" * 5000), "not valid JSON"),
        (lambda text: b"[" * 200_000, "not valid JSON"),
        (lambda text: b"[1]", "not a JSON object"),
        (lambda text: b"", "not valid JSON"),
    ],
)
def test_parse_manifest__json_that_is_not_strict_is_refused(
    mutate: Callable[[bytes], bytes], message: str, manifest: Manifest
) -> None:
    with pytest.raises(ManifestError, match=message):
        parse_manifest(mutate(manifest_bytes(manifest)))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("extra", 1, "extra: Extra inputs are not permitted"),
        ("release", "20260331080500", "release: Input should be a valid integer"),
        ("release", 1.0, "release: Input should be a valid integer"),
        ("release", 0, "release: Input should be greater than 0"),
        ("release", 2**53, "release: Input should be less than or equal to"),
        ("runtime", "ollama", "runtime: Input should be 'llama.cpp', 'onnxruntime' or 'vllm'"),
        ("created_utc", "2026-03-31", "created_utc"),
        ("created_utc", "2026-03-31T08:05:00+00:00", "created_utc"),
        ("created_utc", "2026-3-31T08:05:00Z", "created_utc: not written like"),
        ("created_utc", "2026-02-30T08:05:00Z", "created_utc"),
        ("name", "two\nlines", "name: has a line break"),
        ("name", "", "name: String should have at least 1 character"),
        ("entry", "other.gguf", "entry 'other.gguf' is not one of the files"),
        ("entry", "../model.gguf", "is not one of the files"),
        ("files", [], "files"),
        ("files", [{**_entry("model.gguf"), "sha256": "AB" * 32}], "files.0.sha256"),
        ("files", [{**_entry("model.gguf"), "sha256": "ab" * 32 + "\n"}], "files.0.sha256"),
        ("files", [{**_entry("model.gguf"), "size_bytes": -1}], "files.0.size_bytes"),
        ("files", [{**_entry("model.gguf"), "mode": 1}], "files.0.mode: Extra inputs"),
        ("tools", {"edgekit": 1}, "tools.edgekit"),
    ],
)
def test_parse_manifest__bad_value_is_refused_with_its_place(
    key: str, value: object, message: str, document: dict[str, Any]
) -> None:
    with pytest.raises(ManifestError, match=message):
        parse_manifest(_dump({**document, key: value}), source="here/manifest.json")


def test_parse_manifest__numbers_in_quotes_are_refused_at_any_depth(document: dict[str, Any]) -> None:
    document["plan"]["serve"]["context_tokens"] = "2048"
    with pytest.raises(ManifestError, match=r"here: plan\.serve\.context_tokens"):
        parse_manifest(_dump(document), source="here")


def test_parse_manifest__many_problems_are_counted(document: dict[str, Any]) -> None:
    with pytest.raises(ManifestError, match="; and 2 more"):
        parse_manifest(_dump({**document, **{f"extra{number}": 1 for number in range(5)}}))


PATHS = {
    "/etc/passwd": "absolute",
    "//model.gguf": "absolute",
    "../model.gguf": "'..'",
    "a/../../b": "'..'",
    "a/..": "'..'",
    "./a": "'.'",
    "a/./b": "'.'",
    "a//b": "empty part",
    "a/": "empty part",
    "": "empty part",
    "a\\b": "backslash",
    "..\\b": "backslash",
    "a\0b": "control character",
    "a\nb": "control character",
    "a\x1b[2Jb": "control character",
    "a\u202eb": "control character",
    "a\udcffb": "not UTF-8",
    "x" * 256: "255 bytes",
    "ü" * 128: "255 bytes",
    "manifest.json": "manifest's own",
    "Manifest.JSON": "manifest's own",
    "manifest.json.minisig": "manifest's own",
    "manifest.j\u017fon": "manifest's own",
}


@pytest.mark.parametrize("path", PATHS)
def test_check_file_path__unsafe_path_is_refused(path: str) -> None:
    with pytest.raises(ValueError, match=PATHS[path]):
        check_file_path(path)


@pytest.mark.parametrize("path", [p for p in PATHS if p.isascii() or "\udcff" not in p])
def test_parse_manifest__unsafe_path_is_refused(path: str, document: dict[str, Any]) -> None:
    with pytest.raises(ManifestError, match=r"files\.1\.path: "):
        parse_manifest(_dump({**document, "files": [_entry("model.gguf"), _entry(path)]}))


@pytest.mark.parametrize("path", ["a", "a b/ü.json", ".hidden", "..a/b..", "sub/manifest.json", "x" * 255])
def test_check_file_path__ordinary_path_is_taken(path: str) -> None:
    check_file_path(path)


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        (["model.gguf", "model.gguf"], "file 'model.gguf' is there twice"),
        (["model.gguf", "Model.GGUF"], "'model.gguf' and 'Model.GGUF' differ in case only"),
        (["model.gguf", "straße", "STRASSE"], "differ in case only"),
        (["model.gguf", "é", "e\u0301"], "differ in case only"),
        (["model.gguf", "a/x", "A/y"], "differ in case"),
        (["model.gguf", "a", "a/b"], "'a' is both a file and a directory"),
        (["model.gguf", "a/b", "A"], "both a file and a directory"),
    ],
)
def test_parse_manifest__paths_that_collide_are_refused(
    paths: list[str], message: str, document: dict[str, Any]
) -> None:
    with pytest.raises(ManifestError, match=message):
        parse_manifest(_dump({**document, "files": [_entry(path) for path in paths]}))


def test_manifest_fields__unknown_field_is_refused(fields: ManifestFields) -> None:
    with pytest.raises(ValidationError, match="files"):
        ManifestFields(**dict(fields), files=())  # type: ignore[call-arg]


def test_release_number__is_utc_and_grows() -> None:
    berlin = timezone(timedelta(hours=2))
    now = datetime(2026, 3, 31, 1, 5, 0, tzinfo=berlin)
    assert release_number(now) == 20260330230500
    assert format_utc(now) == "2026-03-30T23:05:00Z"
    assert parse_utc(format_utc(now)) == now
    assert release_number(now + timedelta(seconds=1)) > release_number(now)
