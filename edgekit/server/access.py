"""Who may ask: API keys for servers that listen beyond this machine."""

from __future__ import annotations

import hmac
import ipaddress
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from starlette.types import ASGIApp, Receive, Scope, Send

from edgekit.errors import UsageError
from edgekit.server.errors import ApiError, JsonAnswer
from edgekit.server.page import PAGE_PATHS

__all__ = ["ApiKeys", "KeyCheck", "is_loopback"]

log = logging.getLogger(__name__)

_LOOK_EVERY_S: Final = 1.0
_OPEN_PATHS = frozenset({"/health"}) | PAGE_PATHS
"""What load balancers ask; it tells nothing but whether the model answers."""


class ApiKeys:
    """The keys that open the API.

    Args:
        keys: the keys.
        path: the file that they come from. When it changes, its keys take their place, within a second.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        keys: frozenset[str],
        *,
        path: Path | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._keys = tuple(key.encode() for key in keys)
        self._path = path
        self._clock = clock
        self._seen = None if path is None else _stamp(path)
        self._looked_s = clock()

    @classmethod
    def from_file(cls, path: Path, *, clock: Callable[[], float] = time.monotonic) -> ApiKeys:
        """Read one key a line; blank lines and lines that begin with # are passed over.

        Raises:
            UsageError: the file cannot be read or has no key.
        """
        return cls(_read_keys(path), path=path, clock=clock)

    def open_to(self, authorization: bytes) -> bool:
        """Whether the value of an Authorization header carries one of the keys."""
        if self._path is not None and self._clock() - self._looked_s >= _LOOK_EVERY_S:
            self._looked_s = self._clock()
            if _stamp(self._path) != self._seen:
                self.reload()
        scheme, _, given = authorization.partition(b" ")
        # Every key is compared, in constant time: the answer's delay tells nothing.
        matches = [hmac.compare_digest(given.strip(), key) for key in self._keys]
        return scheme.lower() == b"bearer" and any(matches)

    def reload(self) -> None:
        """Read the file again. When that fails the old keys stay: a slip of the pen must not lock all out."""
        if self._path is None:
            return
        self._seen = _stamp(self._path)
        try:
            keys = _read_keys(self._path)
        except UsageError as error:
            log.error("%s; the keys stay as they were", error.message)
            return
        self._keys = tuple(key.encode() for key in keys)
        log.info("%s: %d API keys are good from now on", self._path, len(keys))


def _read_keys(path: Path) -> frozenset[str]:
    try:
        text = path.read_text("utf-8-sig")
        mode = path.stat().st_mode
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: cannot read the API keys: {error}") from error
    lines = (line.strip() for line in text.splitlines())
    keys = frozenset(line for line in lines if line and not line.startswith("#"))
    if not keys:
        raise UsageError(f"{path}: holds no API key", hint="write one key a line")
    if mode & 0o044:
        log.warning("%s: other users of this machine can read the API keys: chmod 600 it", path)
    return keys


def _stamp(path: Path) -> tuple[int, int, int] | None:
    """Changes when the file does; None when it is not there."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns


class KeyCheck:
    """ASGI middleware that answers 401 to requests without a key, before anything of their body is read.

    /health stays open; /metrics does not.

    Args:
        app: the application behind it.
        keys: who may pass.
    """

    def __init__(self, app: ASGIApp, *, keys: ApiKeys) -> None:
        self._app = app
        self._keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        guarded = scope["type"] == "http" and scope["path"] not in _OPEN_PATHS
        if guarded and not self._keys.open_to(dict(scope["headers"]).get(b"authorization", b"")):
            error = ApiError(
                401,
                "this server needs an API key: send 'Authorization: Bearer KEY'",
                kind="authentication_error",
                code="invalid_api_key",
            )
            answer = JsonAnswer(error.body(), error.status, headers={"WWW-Authenticate": "Bearer"})
            await answer(scope, receive, send)
            return
        await self._app(scope, receive, send)


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
