"""JSON objects of a bundle."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from edgekit.errors import ModelFileError

__all__ = ["read_json", "read_optional_json"]


def read_json(path: Path) -> dict[str, Any]:
    """Read a file that holds a JSON object.

    Raises:
        ModelFileError: it is missing, or holds something else.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelFileError(
            f"{path}: cannot be read: {error}", hint="export the model again; its tokenizer goes with it"
        ) from error
    if not isinstance(value, dict):
        raise ModelFileError(f"{path}: not a JSON object")
    return value


def read_optional_json(path: Path) -> dict[str, Any]:
    """Read a file that holds a JSON object; empty where there is no file."""
    return read_json(path) if path.is_file() else {}
