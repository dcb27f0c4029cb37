"""The one document that a verb prints with --json: what it found, or why it failed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import typer

from edgekit.errors import EdgekitError

__all__ = ["json_document"]


@contextmanager
def json_document(wanted: bool, document: dict[str, Any] | None = None) -> Iterator[dict[str, Any]]:
    """Print the document that the block fills, with "ok", at the block's end.

    On an EdgekitError it holds what was filled in so far, `error`, `hint` and `kind`, and the process exits
    with the error's code. Without `wanted` nothing is printed and errors go on their way.

    Args:
        document: what it says whatever happens.
    """
    document = {} if document is None else document
    try:
        yield document
    except EdgekitError as error:
        if not wanted:
            raise
        failure = {"ok": False, "error": error.message, "hint": error.hint, "kind": type(error).__name__}
        typer.echo(json.dumps({**document, **failure}, ensure_ascii=False))
        raise typer.Exit(error.exit_code) from error
    if wanted:
        typer.echo(json.dumps({**document, "ok": True}, ensure_ascii=False))
