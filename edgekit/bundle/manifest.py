"""manifest.json: what a bundle is made of, what it is for, and where it came from."""

from __future__ import annotations

import json
import re
import unicodedata
from datetime import datetime, timezone
from typing import Annotated, Any, Final, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeInt,
    ValidationError,
    field_validator,
    model_validator,
)

from edgekit import __version__
from edgekit.errors import ManifestError
from edgekit.facts import ModelFacts
from edgekit.forecast import Forecast
from edgekit.profiles import Format, Runtime, ServeSettings

__all__ = [
    "MANIFEST_NAME",
    "SCHEMA_VERSION",
    "SIGNATURE_NAME",
    "FileEntry",
    "Manifest",
    "ManifestFields",
    "PlanRecord",
    "ProfileRef",
    "SourceRecord",
    "check_file_path",
    "format_utc",
    "manifest_bytes",
    "parse_manifest",
    "parse_utc",
    "release_number",
]

MANIFEST_NAME: Final = "manifest.json"
SIGNATURE_NAME: Final = "manifest.json.minisig"
SCHEMA_VERSION: Final = 1

_UTC_FORMAT: Final = "%Y-%m-%dT%H:%M:%SZ"
_LARGEST_JSON_INTEGER: Final = 2**53 - 1
"""Beyond it readers that keep numbers as doubles lose digits (RFC 8259, section 6)."""

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class FileEntry(_Record):
    """One file of the bundle."""

    path: str
    """Relative to the bundle, with slashes."""
    size_bytes: Annotated[NonNegativeInt, Field(le=_LARGEST_JSON_INTEGER)]
    sha256: Sha256

    @field_validator("path")
    @classmethod
    def _safe(cls, path: str) -> str:
        check_file_path(path)
        return path


class ProfileRef(_Record):
    """The device profile that the bundle was made for; the hash is `profiles.profile_sha256`."""

    name: str
    sha256: Sha256


class PlanRecord(_Record):
    """What the export decided."""

    quantization: str
    conversion: str
    """How the weights became what they are, e.g. "quantized from BF16" or "copied"."""
    serve: ServeSettings
    forecast: Forecast | None
    notes: tuple[str, ...] = ()


class SourceRecord(_Record):
    """The student that was exported. Unknown is None."""

    name: str
    kind: str
    """"gguf" or "safetensors"."""
    sha256: Sha256 | None
    revision: str | None
    license: str | None
    base_model: str | None


class ManifestFields(_Record):
    """What the exporter says of a bundle; `bundle.seal` adds the files."""

    name: Annotated[str, Field(min_length=1, max_length=128)]
    release: Annotated[int, Field(gt=0, le=_LARGEST_JSON_INTEGER)]
    """Grows from one release to the next; see `release_number`."""
    created_utc: str
    """ISO 8601 to the second, e.g. "2026-03-31T08:05:00Z"."""
    runtime: Runtime
    format: Format
    entry: str
    """The file that the runtime opens; one of the bundle's files."""
    model: ModelFacts
    profile: ProfileRef
    plan: PlanRecord
    source: SourceRecord
    tools: dict[str, str]
    """Tool to version."""
    proof: dict[str, Any] | None = None
    """Measured quality against the student."""

    @field_validator("name")
    @classmethod
    def _printable(cls, name: str) -> str:
        # The name goes into the signature's trusted comment, which is one line.
        if not name.isprintable() or name != name.strip():
            raise ValueError("has a line break, a control character, or a space at an end")
        return name

    @field_validator("created_utc")
    @classmethod
    def _utc(cls, text: str) -> str:
        if format_utc(parse_utc(text)) != text:
            raise ValueError("not written like 2026-03-31T08:05:00Z")
        return text


class Manifest(ManifestFields):
    """Content of manifest.json."""

    schema_version: Literal[1]
    files: Annotated[tuple[FileEntry, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _consistent(self) -> Manifest:
        _check_collisions([file.path for file in self.files])
        if self.entry not in {file.path for file in self.files}:
            raise ValueError(f"entry {self.entry!r} is not one of the files")
        return self

    @property
    def size_bytes(self) -> int:
        """Sum of the files' sizes."""
        return sum(file.size_bytes for file in self.files)


def release_number(now: datetime) -> int:
    """The default release: UTC time as YYYYMMDDHHMMSS. `now` must know its time zone."""
    return int(now.astimezone(timezone.utc).strftime("%Y%m%d%H%M%S"))


def format_utc(now: datetime) -> str:
    """Time as manifests write it. `now` must know its time zone."""
    return now.astimezone(timezone.utc).strftime(_UTC_FORMAT)


def parse_utc(text: str) -> datetime:
    """The inverse of `format_utc`. Raises ValueError."""
    return datetime.strptime(text, _UTC_FORMAT).replace(tzinfo=timezone.utc)


def check_file_path(path: str) -> None:
    """Refuse a path that could leave the bundle, hide in it, or mean something else on another system.

    Raises:
        ValueError: says what is wrong with it.
    """
    if not path.isprintable() or "\\" in path:
        raise ValueError(f"path {path!r} has a backslash, a control character, or is not UTF-8")
    if path.startswith("/"):
        raise ValueError(f"path {path!r} is absolute")
    parts = path.split("/")
    if any(part in ("", ".", "..") for part in parts):
        raise ValueError(f"path {path!r} has an empty part, '.' or '..'")
    if any(len(part.encode()) > 255 for part in parts):
        raise ValueError(f"path {path!r} has a part of more than 255 bytes")
    if _fold(path) in (MANIFEST_NAME, SIGNATURE_NAME):
        raise ValueError(f"path {path!r} is the manifest's own")


def manifest_bytes(manifest: Manifest) -> bytes:
    """Canonical content of manifest.json: sorted keys, two spaces, UTF-8, a line feed at the end.

    Raises:
        ManifestError: `proof` has something that JSON cannot say.
    """
    try:
        # Not mode="json", which would turn a NaN of `proof` into null.
        document = manifest.model_dump()
        text = json.dumps(document, sort_keys=True, indent=2, ensure_ascii=False, allow_nan=False)
        return f"{text}\n".encode()
    except (ValueError, TypeError) as error:
        raise ManifestError(f"the manifest cannot be written as JSON: {error}") from error


def parse_manifest(data: bytes, *, source: str = MANIFEST_NAME) -> Manifest:
    """Read manifest.json strictly: UTF-8, no key twice, no unknown key, no NaN, no number in quotes.

    `source` names the file in errors.

    Raises:
        ManifestError: not valid, or written by a newer edgekit.
    """
    try:
        document = json.loads(
            data.decode("utf-8"), object_pairs_hook=_unique_keys, parse_constant=_refuse_constant
        )
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else error
        raise ManifestError(f"{source}: not valid JSON: {reason}") from error
    if not isinstance(document, dict):
        raise ManifestError(f"{source}: not a JSON object")
    version = document.get("schema_version")
    if type(version) is not int or version < 1:
        raise ManifestError(f"{source}: schema_version is missing or not a positive integer")
    if version > SCHEMA_VERSION:
        raise ManifestError(
            f"{source}: written by a newer edgekit: schema_version {version}, and edgekit {__version__}"
            f" reads up to {SCHEMA_VERSION}",
            hint="upgrade edgekit on this machine, or export the bundle with this version",
        )
    try:
        return Manifest.model_validate_json(data, strict=True)
    except ValidationError as error:
        raise ManifestError(f"{source}: {_describe(error)}") from error


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    document: dict[str, Any] = {}
    for key, value in pairs:
        if key in document:
            raise ValueError(f"the key {key!r} is there twice")
        document[key] = value
    return document


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _check_collisions(paths: list[str]) -> None:
    files: dict[str, str] = {}
    directories: dict[str, str] = {}
    for path in paths:
        parts = path.split("/")
        for end in range(1, len(parts)):
            parent = "/".join(parts[:end])
            if directories.setdefault(_fold(parent), parent) != parent:
                raise ValueError(f"directories of {path!r} and {directories[_fold(parent)]!r} differ in case")
        other = files.get(_fold(path))
        if other is not None:
            raise ValueError(
                f"file {path!r} is there twice"
                if other == path
                else f"files {other!r} and {path!r} differ in case only"
            )
        files[_fold(path)] = path
    for folded in files.keys() & directories.keys():
        raise ValueError(f"{files[folded]!r} is both a file and a directory")


def _fold(path: str) -> str:
    # What a file system that ignores case and composes characters would take for the same name.
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", path).casefold())


def _describe(error: ValidationError) -> str:
    problems = []
    for detail in error.errors(include_url=False)[:3]:
        message = re.sub(r"^Value error, ", "", detail["msg"])
        place = ".".join(str(part) for part in detail["loc"])
        problems.append(f"{place}: {message}" if place else message)
    rest = error.error_count() - len(problems)
    return "; ".join(problems) + (f"; and {rest} more" if rest else "")
