"""Runs the server: listens, loads the bundle, reports, and stops in order."""

from __future__ import annotations

import contextlib
import ctypes
import logging
import socket
import sys
from typing import Final

from edgekit.errors import UsageError
from edgekit.server.access import ApiKeys, is_loopback
from edgekit.server.connection import limit_socket
from edgekit.server.front import Manners
from edgekit.server.reporting import Reporter, Reporting
from edgekit.server.service import OpenBundle, Service
from edgekit.server.sites import check_origins
from edgekit.server.tls import TlsFiles

__all__ = ["run_server"]

log = logging.getLogger(__name__)

_BACKLOG: Final = 256
_M_TRIM_THRESHOLD: Final = -1
"""malloc.h"""
_SWITCH_INTERVAL_S: Final = 0.0005
"""The engine's thread waits for the interpreter after every step, at most this long (default: 5 ms)."""


def run_server(
    open_bundle: OpenBundle,
    *,
    host: str,
    port: int,
    keys: ApiKeys | None = None,
    tls: TlsFiles | None = None,
    reporting: Reporting | None = None,
    manners: Manners | None = None,
) -> None:
    """Serve until SIGTERM or SIGINT. A second one ends what the first one lets end; SIGHUP reads the keys and
    the certificate again.

    Args:
        open_bundle: gives a verified bundle and the settings to serve it with. Called on a thread once the
            server listens, since checking a large bundle takes minutes; it should end early when the event
            is set.
        host, port: where to listen; port 0 takes a free one, which the log names.
        keys: API keys. Needed to listen on other than loopback addresses.
        tls: None serves plain HTTP.
        reporting: None sends no telemetry.
        manners: how clients are treated.

    Raises:
        UsageError: the address is taken, or open to others without a key; certificate or origins are wrong.
        EdgekitError: the model cannot be loaded, or its engine has stopped for good.
    """
    manners = manners or Manners()
    if keys is None and not is_loopback(host):
        raise UsageError(
            f"{host} can be reached from other machines, and no API key is set",
            hint="give --api-key-file FILE, or listen on 127.0.0.1",
        )
    if reporting is not None:
        reporting.check()
    check_origins(manners.allow_origins)
    context = None if tls is None else tls.context()
    sys.setswitchinterval(_SWITCH_INTERVAL_S)
    _give_back_freed_memory()
    with _listen(host, port, manners) as listening:
        address = listening.getsockname()
        where = f"[{address[0]}]" if ":" in address[0] else address[0]
        log.info("listening on %s://%s:%d", "http" if tls is None else "https", where, address[1])
        service = Service(open_bundle, Reporter(reporting), manners)

        def reload() -> None:
            if keys is not None:
                keys.reload()
            if tls is not None and context is not None:
                try:
                    tls.load_into(context)
                except UsageError as error:
                    log.error("%s; the certificate stays as it was", error.message)

        service.serve(
            listening, host, keys=keys, tls=context, reload=reload if keys is not None or tls else None
        )


def _give_back_freed_memory() -> None:
    """Keep glibc from hoarding: each large block that is freed raises the size below which it keeps them.

    Setting a threshold, even to its default, ends that (mallopt(3)). Other C libraries have no such habit.
    """
    with contextlib.suppress(AttributeError):
        ctypes.CDLL(None).mallopt(_M_TRIM_THRESHOLD, 128 * 1024)


def _listen(host: str, port: int, manners: Manners) -> socket.socket:
    """A socket that listens, so that a taken port is our error and not a line in a log."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, kind, protocol)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        limit_socket(listening, manners.connections)
        listening.bind(address)
        # Only one can listen, though two can be bound; and clients may connect from now on.
        listening.listen(_BACKLOG)
    except OSError as error:
        raise UsageError(
            f"cannot listen on {host}:{port}: {error.strerror or error}",
            hint="choose another --port or --host",
        ) from error
    return listening
