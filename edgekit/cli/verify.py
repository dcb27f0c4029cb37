"""`edgekit verify`: check a bundle's signature and every file of it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgekit.cli.json_output import json_document
from edgekit.errors import SignatureError

if TYPE_CHECKING:
    from edgekit.bundle.bundle import Bundle

__all__ = ["verify"]


def verify(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="Directory of the bundle.")],
    public_key: Annotated[
        str | None,
        typer.Option(
            metavar="KEY",
            help="Public key: a .pub file, or its base64 text."
            " Otherwise $EDGEKIT_PUBLIC_KEY, then /etc/edgekit/edgekit.pub.",
        ),
    ] = None,
    integrity_only: Annotated[
        bool, typer.Option("--integrity-only", help="Check the files' hashes only, not who signed them.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Check that a bundle is what its maker signed: the signature, then every file.

    Takes the signatures that `minisign -V` takes.
    """
    with json_document(as_json, {"bundle": str(bundle)}) as document:
        _verify(bundle, public_key, integrity_only, document, quiet=as_json)


def _verify(
    path: Path, option: str | None, integrity_only: bool, document: dict[str, Any], *, quiet: bool
) -> None:
    from edgekit.bundle.bundle import verify_bundle
    from edgekit.cli.trusted_key import choose_key

    key = choose_key(option, integrity_only=integrity_only)
    with _progress_bar(shown=not quiet and sys.stderr.isatty()) as progress:
        bundle = verify_bundle(path, key, progress=progress)
    document.update(_facts(bundle))
    if not quiet:
        signed = "signature not checked" if bundle.signed_by is None else f"signed by {bundle.signed_by}"
        size_mib = bundle.manifest.size_bytes / 2**20
        count = len(bundle.manifest.files)
        typer.echo(
            f"{bundle.manifest.name} release {bundle.manifest.release}:"
            f" {count} file{'' if count == 1 else 's'}, {size_mib:.1f} MiB intact; {signed}"
        )
    if key is None and not integrity_only:
        raise SignatureError(
            f"{path}: the files are intact, but the signature was not checked: no public key",
            hint="pass --public-key KEY, set EDGEKIT_PUBLIC_KEY, or install /etc/edgekit/edgekit.pub;"
            " --integrity-only does without",
        )


def _facts(bundle: Bundle) -> dict[str, Any]:
    manifest = bundle.manifest
    return {
        "name": manifest.name,
        "release": manifest.release,
        "created_utc": manifest.created_utc,
        "digest": bundle.digest,
        "entry": manifest.entry,
        "files": len(manifest.files),
        "size_bytes": manifest.size_bytes,
        "signature_checked": bundle.signed_by is not None,
        "signed_by": bundle.signed_by,
    }


@contextmanager
def _progress_bar(*, shown: bool) -> Iterator[Callable[[int, int], None] | None]:
    if not shown:
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = (TextColumn("checking"), BarColumn(), DownloadColumn(binary_units=True), TransferSpeedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("checking", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
