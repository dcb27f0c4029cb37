"""The last step of an export: the manifest is written and signed over all that lies in the directory."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError

from edgekit import __version__
from edgekit.bundle.bundle import Bundle, seal
from edgekit.bundle.manifest import ManifestFields, PlanRecord, ProfileRef, SourceRecord, format_utc
from edgekit.bundle.signing import SecretKey
from edgekit.errors import UsageError
from edgekit.facts import ModelFacts
from edgekit.forecast import Forecast
from edgekit.profiles import DeviceProfile, profile_sha256
from export.emit import Emitted
from export.plan.decide import ExportPlan
from export.progress import Progress
from export.quality.record import Proof

__all__ = ["LICENSE_NAME", "Made", "installed_versions", "proof_fields", "refuse_invalid", "seal_export"]

LICENSE_NAME: Final = "LICENSE"


@dataclass(frozen=True, slots=True)
class Made:
    """What was written and tried. `proof`: as the manifest has it; None for a copy."""

    emitted: Emitted
    facts: ModelFacts
    notes: tuple[str, ...]
    proof: dict[str, Any] | None


def seal_export(
    directory: Path,
    made: Made,
    plan: ExportPlan,
    profile: DeviceProfile,
    *,
    needs: Forecast,
    source: SourceRecord,
    license_text: str | None,
    release: int,
    now: datetime,
    tools: dict[str, str],
    secret_key: SecretKey | None,
    progress: Progress,
) -> Bundle:
    """Write the licence and the manifest of what was made in `directory`, and sign it.

    Args:
        profile: as it is published.
        needs: what was made needs on the device.
        tools: tool to version.
        secret_key: None leaves the bundle unsigned.
    """
    if license_text is not None:
        (directory / LICENSE_NAME).write_text(license_text, encoding="utf-8")
    fields = ManifestFields(
        name=made.facts.name,
        release=release,
        created_utc=format_utc(now),
        runtime=plan.runtime,
        format=plan.format,
        entry=made.emitted.entry,
        model=made.facts,
        profile=ProfileRef(name=profile.name, sha256=profile_sha256(profile)),
        plan=PlanRecord(
            quantization=plan.quantization,
            conversion=made.emitted.conversion,
            serve=plan.serve,
            forecast=needs,
            notes=(*plan.notes, *made.notes),
        ),
        source=source,
        tools=tools,
        proof=made.proof,
    )
    return seal(directory, fields, secret_key, progress=lambda done, total: progress("sealing", done, total))


def proof_fields(proof: Proof) -> dict[str, Any]:
    """A proof as the manifest has it: golden answers are in a file of their own."""
    return proof.model_dump(mode="json", exclude={"golden"})


def refuse_invalid(**fields: Any) -> None:
    """Ask the manifest's own rules now, not after hours of work.

    Raises:
        UsageError: a field has a value that no manifest takes.
    """
    try:
        ManifestFields.model_validate(fields)
    except ValidationError as error:
        for problem in error.errors(include_url=False):
            field = str(problem["loc"][0])
            if field in fields:
                what = problem["msg"].removeprefix("Value error, ")
                raise UsageError(
                    f"{field} {fields[field]!r}: {what[:1].lower()}{what[1:]}", hint=f"give another --{field}"
                ) from None


def installed_versions(names: Sequence[str]) -> dict[str, str]:
    """Version of edgekit, and of those packages that are installed."""
    tools = {"edgekit": __version__}
    for name in names:
        with contextlib.suppress(PackageNotFoundError):
            tools[name] = version(name)
    return tools
