"""Where the broker is, from a URL."""

from __future__ import annotations

import re
import ssl
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from edgekit.errors import TelemetryError

__all__ = ["BrokerAddress", "parse_broker_url"]

_FORM: Final = (
    "write mqtt://[user[:password]@]host[:port], or mqtts://… for TLS (with ?ca=FILE for your own CA)"
)
_DEFAULT_PORTS: Final = {"mqtt": 1883, "mqtts": 8883}
_FILES: Final = ("ca", "cert", "key")


@dataclass(frozen=True, slots=True)
class BrokerAddress:
    """A broker and how to enter. `str(address)` is for people and logs: it never has the password."""

    host: str
    port: int
    tls: bool = False
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    ca: Path | None = None
    """File of the CA certificates to trust instead of the system's, PEM."""
    cert: Path | None = None
    """File of the client's certificate chain, PEM."""
    key: Path | None = None
    """File of the client's key, PEM; None when `cert` holds it."""

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'mqtts' if self.tls else 'mqtt'}://{host}:{self.port}"

    def tls_context(self) -> ssl.SSLContext | None:
        """Settings for TLS 1.2 and later with the server's name checked; None without TLS.

        Raises:
            TelemetryError: a certificate or key file cannot be read.
        """
        if not self.tls:
            return None
        try:
            context = ssl.create_default_context(cafile=self.ca)
            if self.cert is not None:
                context.load_cert_chain(self.cert, self.key)
        except (OSError, ssl.SSLError) as error:
            files = ", ".join(str(path) for path in (self.ca, self.cert, self.key) if path is not None)
            raise TelemetryError(
                f"{self}: cannot load the certificates from {files}: {error.strerror or error}",
                hint="ca, cert and key are PEM files, and the key belongs to the certificate",
            ) from error
        return context


def parse_broker_url(url: str) -> BrokerAddress:
    """Read mqtt://[user[:password]@]host[:1883] or mqtts://host[:8883][?ca=FILE][&cert=FILE][&key=FILE].

    Special characters in user and password are percent-encoded, as in all URLs.

    Raises:
        TelemetryError: the URL is something else. The message does not show the password.
    """
    # `from None` everywhere: urllib's own errors quote parts of the URL.
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise _not_an_address(url, "its host or port is not valid") from None
    if parts.scheme not in _DEFAULT_PORTS:
        raise _not_an_address(url, f"it starts with {parts.scheme or 'no scheme'}")
    if parts.fragment or "#" in url:
        raise _not_an_address(url, "it has a '#' (in a password, write %23)")
    if parts.path not in ("", "/"):
        raise _not_an_address(url, "it has a path (in a password, write %2F for '/')")
    if not parts.hostname:
        raise _not_an_address(url, "it names no host")
    if port == 0:
        raise _not_an_address(url, "its port is 0")
    if parts.password is not None and not parts.username:
        raise _not_an_address(url, "it has a password and no user")
    tls = parts.scheme == "mqtts"
    files = _files(url, parts, tls)
    return BrokerAddress(
        host=parts.hostname,
        port=port or _DEFAULT_PORTS[parts.scheme],
        tls=tls,
        username=unquote(parts.username) if parts.username else None,
        password=unquote(parts.password) if parts.password is not None else None,
        ca=files.get("ca"),
        cert=files.get("cert"),
        key=files.get("key"),
    )


def _files(url: str, parts: SplitResult, tls: bool) -> dict[str, Path]:
    options = parse_qsl(parts.query, keep_blank_values=True)
    for name, value in options:
        if name not in _FILES:
            raise _not_an_address(url, f"it has an unknown option {name!r}; known are {', '.join(_FILES)}")
        if not value:
            raise _not_an_address(url, f"its option {name!r} is empty")
        if not tls:
            raise _not_an_address(url, f"its option {name!r} is for mqtts://")
    files = {name: Path(value).expanduser() for name, value in options}
    if "key" in files and "cert" not in files:
        raise _not_an_address(url, "it has a key and no cert")
    return files


def _not_an_address(url: str, problem: str) -> TelemetryError:
    shown = re.sub(r"//.*@", "//***@", url, flags=re.S)
    return TelemetryError(f"{shown!r} is not the address of a broker: {problem}", hint=_FORM)
