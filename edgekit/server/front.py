"""What stands between the network and the application: limits, sites, and an orderly end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp

from edgekit.server.connection import ConnectionLimits
from edgekit.server.drain import Drain
from edgekit.server.limits import RequestLimit
from edgekit.server.sites import SiteCheck

__all__ = ["Manners", "put_in_front"]


@dataclass(frozen=True, slots=True)
class Manners:
    """How the server treats its clients, and what it puts up with."""

    drain_timeout_s: float = 30.0
    """How long what is under way may take to end after SIGTERM."""
    step_timeout_s: float = 120.0
    """A step of the engine that takes longer hangs, and the process ends. The longest true step is a full
    batch of prompt tokens: 512 tokens of a 1.5B model take a Raspberry Pi 5 about 10 s."""
    max_requests: int = 256
    """Requests under way at most; the engine's own queue is shorter."""
    connections: ConnectionLimits = field(default_factory=ConnectionLimits)
    allow_hosts: tuple[str, ...] = ()
    """Names, beside localhost, by which a server without keys may be called."""
    allow_origins: tuple[str, ...] = ()
    """Other sites whose pages may use the server; "*" means all."""


def put_in_front(
    app: ASGIApp,
    manners: Manners,
    *,
    hosts: tuple[str, ...] | None,
    on_drained: Callable[[], None] = lambda: None,
) -> tuple[ASGIApp, Drain]:
    """The application as it is served, and what ends it.

    Args:
        app: the application.
        manners: see there.
        hosts: names that the server goes by; None accepts any, for a server that asks for keys.
        on_drained: see `Drain`.
    """
    drain = Drain(app, on_drained=on_drained)
    front: ASGIApp = RequestLimit(drain, max_requests=manners.max_requests)
    front = SiteCheck(front, hosts=hosts, origins=manners.allow_origins)
    if manners.allow_origins:
        # First of all: a page cannot read an error without these headers either.
        front = CORSMiddleware(
            front,
            allow_origins=manners.allow_origins,
            allow_methods=("GET", "POST"),
            allow_headers=("*",),
            expose_headers=("Retry-After",),
        )
    return front, drain
