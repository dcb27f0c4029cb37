"""Who may ask: API keys for servers that listen beyond this machine."""

from __future__ import annotations

import hmac
import ipaddress
from pathlib import Path

from fastapi import Request

from edgekit.errors import UsageError
from edgekit.server.errors import ApiError

__all__ = ["ApiKeys", "is_loopback"]


class ApiKeys:
    """The keys that open the API; with none, everybody may ask.

    Use as a FastAPI dependency.
    """

    def __init__(self, keys: frozenset[str] = frozenset()) -> None:
        self._keys = tuple(key.encode() for key in keys)

    @classmethod
    def from_file(cls, path: Path) -> ApiKeys:
        """Read one key a line; blank lines and lines that begin with # are passed over.

        Raises:
            UsageError: the file cannot be read or has no key.
        """
        try:
            lines = path.read_text("utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"{path}: cannot read the API keys: {error}") from error
        keys = frozenset(line.strip() for line in lines if line.strip() and not line.startswith("#"))
        if not keys:
            raise UsageError(f"{path}: holds no API key", hint="write one key a line")
        return cls(keys)

    async def __call__(self, request: Request) -> None:
        """Let the request pass, or answer 401."""
        if not self._keys:
            return
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        # Every key is compared, in constant time: the answer's delay tells nothing.
        matches = [hmac.compare_digest(given.strip().encode(), key) for key in self._keys]
        if scheme.lower() != "bearer" or not any(matches):
            raise ApiError(
                401,
                "this server needs an API key: send 'Authorization: Bearer KEY'",
                kind="authentication_error",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
