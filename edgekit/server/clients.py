"""Who asks, for turns that are shared evenly."""

from __future__ import annotations

import secrets
from hashlib import blake2s

from fastapi import Request

__all__ = ["client_name"]

_SALT = secrets.token_bytes(8)
"""Of this process: a digest says nothing of its key to whoever comes to see it."""


def client_name(request: Request, user: str | None = None) -> str:
    """A name for the client behind a request.

    A digest of its API key if it sent one, since many devices may stand behind one address; else its address.
    `user` tells the users of one key apart, as the client names them.
    """
    authorization = request.headers.get("authorization", "")
    if authorization:
        asker = blake2s(authorization.encode("utf-8", "replace"), digest_size=12, salt=_SALT).hexdigest()
    else:
        asker = request.client.host if request.client else ""
    return f"{asker}/{user}" if user else asker
