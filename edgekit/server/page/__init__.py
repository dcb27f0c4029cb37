"""The page at `/`: a chat with the served model, and how the server does.

Static files of our own: no framework, nothing from elsewhere, nothing to build. They hold no secrets, so they
stay open where the API needs a key; the page asks for the key and sends it with its own requests.
"""

from __future__ import annotations

import hashlib
from importlib.resources import files
from typing import Final

from fastapi import FastAPI, Request, Response

__all__ = ["PAGE_PATHS", "add_page"]

_MEDIA_TYPES: Final = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
_HEADERS: Final = {
    # No script comes of a model's text: none inline, no HTML from strings (Trusted Types), no other host.
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
        "require-trusted-types-for 'script'; trusted-types 'none'"
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


def _read_responses() -> dict[str, tuple[bytes, dict[str, str]]]:
    """Body and headers by path. The assets' folder is named by what is in them: browsers may keep them."""
    static = {entry.name: entry.read_bytes() for entry in files(__name__).joinpath("static").iterdir()}
    index = static.pop("index.html")
    digest = hashlib.sha256()
    for name in sorted(static):
        digest.update(f"{name} {len(static[name])}\n".encode() + static[name])
    # Relative, as the requests of the scripts are: a proxy may put the server below a path of its own.
    folder = f"assets/{digest.hexdigest()[:16]}"
    found = {f"/{folder}/{name}": _response(name, body) for name, body in static.items()}
    found["/"] = _response("index.html", index.replace(b"{assets}", folder.encode()))
    return found


def _response(name: str, body: bytes) -> tuple[bytes, dict[str, str]]:
    caching = "no-cache" if name.endswith(".html") else "public, max-age=31536000, immutable"
    media_type = _MEDIA_TYPES[f".{name.rpartition('.')[2]}"]
    return body, {**_HEADERS, "Cache-Control": caching, "Content-Type": media_type}


_RESPONSES: Final = _read_responses()

PAGE_PATHS: Final = frozenset(_RESPONSES)
"""All paths of the page, to be left open where the rest needs a key: `/` and its assets, each by name."""


def add_page(app: FastAPI) -> None:
    """Serve the page at `/`, and its assets. They are no part of the API's description."""

    async def show(request: Request) -> Response:
        body, headers = _RESPONSES[request.scope["path"]]
        return Response(body, headers=headers)

    for path in _RESPONSES:
        app.add_route(path, show, methods=["GET"], include_in_schema=False)
