"""Which web pages may use the server: none but its own, unless it is told.

A server on a loopback address without keys trusts whoever runs on the machine; a browser on that machine
runs the code of strangers. Two ways lead from a stranger's page here: a plain cross-site POST, which needs
nobody's permission to be sent, and a name that the stranger points to 127.0.0.1 once the page is loaded (DNS
rebinding), which makes the server part of the stranger's own site. A browser cannot lie about Origin in the
first case nor about Host in the second (Fetch standard, "forbidden request-header").
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from typing import Final
from urllib.parse import urlsplit

from starlette.types import ASGIApp, Receive, Scope, Send

from edgekit.errors import UsageError
from edgekit.server.errors import ApiError, JsonAnswer

__all__ = ["SiteCheck", "check_origins"]

_SAFE_METHODS: Final = frozenset({"GET", "HEAD", "OPTIONS"})
_DEFAULT_PORTS: Final = {"http": 80, "https": 443}


class SiteCheck:
    """ASGI middleware that answers 403 to requests that a page of another site has made.

    /health passes: it tells nothing of worth, and load balancers call it by all kinds of names.

    Args:
        app: the application behind it.
        hosts: names that the server goes by beside localhost and loopback addresses; None accepts all, for a
            server that asks for keys.
        origins: other sites whose pages may use the server, e.g. "https://chat.example.org"; "*" means all.
    """

    def __init__(
        self, app: ASGIApp, *, hosts: Iterable[str] | None = (), origins: Iterable[str] = ()
    ) -> None:
        self._app = app
        self._hosts = None if hosts is None else frozenset(host.lower().strip("[]") for host in hosts)
        self._origins = frozenset(origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        refusal = self._refusal(scope) if scope["type"] == "http" and scope["path"] != "/health" else None
        if refusal is None:
            await self._app(scope, receive, send)
            return
        await JsonAnswer(refusal.body(), refusal.status)(scope, receive, send)

    def _refusal(self, scope: Scope) -> ApiError | None:
        hosts = [value.decode("latin-1") for name, value in scope["headers"] if name == b"host"]
        if self._hosts is not None and not all(self._is_ours(host) for host in hosts):
            return ApiError(
                403,
                f"this server does not go by the name {hosts[0]!r}: start it with --allow-host if it should",
                code="host_not_allowed",
            )
        if scope["method"] in _SAFE_METHODS:
            return None
        for name, value in scope["headers"]:
            origin = value.decode("latin-1")
            if name == b"origin" and not self._may_use(origin, hosts):
                return ApiError(
                    403,
                    f"pages of {origin} may not use this server: start it with --allow-origin if they should",
                    code="origin_not_allowed",
                )
        return None

    def _is_ours(self, host: str) -> bool:
        assert self._hosts is not None
        name = _hostname(f"//{host}")
        if name is None:
            return False
        if name in self._hosts or name == "localhost":
            return True
        try:
            return ipaddress.ip_address(name).is_loopback
        except ValueError:
            return False

    def _may_use(self, origin: str, hosts: list[str]) -> bool:
        if "*" in self._origins or origin in self._origins:
            return True
        # A proxy in front may speak TLS where this server does not: the name and the port count.
        parts = _parts(origin)
        return parts is not None and any(parts == _parts(f"{parts[0]}://{host}") for host in hosts)


def check_origins(origins: Iterable[str]) -> None:
    """Raise UsageError on what is no origin."""
    for origin in origins:
        parts = _parts(origin)
        if origin != "*" and (parts is None or origin != origin.lower() or urlsplit(origin).path):
            raise UsageError(
                f"{origin!r} is no origin",
                hint="write scheme and name, and the port if there is one, as in https://chat.example.org",
            )


def _parts(origin: str) -> tuple[str, str, int] | None:
    """Scheme, name and port; None for what has none, such as "null"."""
    scheme, separator, _ = origin.partition("://")
    name = _hostname(origin)
    if not separator or name is None or scheme not in _DEFAULT_PORTS:
        return None
    return scheme, name, urlsplit(origin).port or _DEFAULT_PORTS[scheme]


def _hostname(url: str) -> str | None:
    """The name in a URL, in lower case; None when there is none."""
    try:
        parts = urlsplit(url)
        _ = parts.port  # of which a wrong one is an error as well
    except ValueError:
        return None
    if parts.username is not None or parts.path or parts.query:
        return None
    return parts.hostname
