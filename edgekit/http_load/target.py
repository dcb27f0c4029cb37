"""A server to put a load on: where it is, the key that it wants, and whether it answers."""

from __future__ import annotations

import http.client
import ipaddress
import json
import socket
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from edgekit.errors import EdgekitError, UsageError

__all__ = ["Target", "read_api_key"]

_TIMEOUT_S = 30
_HINT_KEY = "give a key that it knows: --api-key-file FILE, or in $EDGEKIT_API_KEY"


@dataclass(frozen=True, slots=True)
class Target:
    """An OpenAI-style server. Made by `Target.parse`."""

    url: str
    """As it was given."""
    host: str
    port: int
    base: str
    """What stands before /v1 in paths; mostly nothing."""
    api_key: str | None = None
    tls: ssl.SSLContext | None = None
    """None: plain HTTP."""

    @classmethod
    def parse(cls, url: str, *, api_key: str | None = None, ca_file: Path | None = None) -> Target:
        """Read a base URL: http://host:port, https://host; a /v1 at its end is passed over.

        Args:
            ca_file: certificates (PEM) to trust in place of the system's.

        Raises:
            UsageError: it is not an http or https URL, or `ca_file` holds no certificates.
        """
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError as error:
            raise UsageError(f"{url}: {error}", hint="give e.g. http://127.0.0.1:8080") from error
        if parts.scheme not in ("http", "https") or parts.hostname is None:
            raise UsageError(f"{url}: not an http:// or https:// URL", hint="give e.g. http://127.0.0.1:8080")
        if parts.username is not None:
            raise UsageError(f"{parts.hostname}: a URL is no place for a password", hint=_HINT_KEY)
        tls = None
        if parts.scheme == "https":
            try:
                tls = ssl.create_default_context(cafile=ca_file)
            except (OSError, ssl.SSLError) as error:
                raise UsageError(f"{ca_file}: no certificates to trust: {error}") from error
        default = 443 if tls else 80
        base = parts.path.rstrip("/").removesuffix("/v1")
        return cls(url, parts.hostname, port or default, base, api_key, tls)

    @property
    def is_local(self) -> bool:
        """Whether it runs on this machine, by its address."""
        try:
            return self.host == "localhost" or ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    def request(self, path: str, body: dict[str, Any]) -> bytes:
        """A POST request as it goes over the wire, on a connection of its own."""
        content = json.dumps(body).encode()
        lines = [f"POST {self.base}{path} HTTP/1.1", f"Host: {self._authority}"]
        lines += [f"{name}: {value}" for name, value in self._headers().items()]
        lines += [f"Content-Length: {len(content)}", "Connection: close", "", ""]
        return "\r\n".join(lines).encode() + content

    def call(self, method: str, path: str, body: dict[str, Any] | None = None) -> tuple[int, Any]:
        """A small request outside the load; returns the status and the JSON document, None if it is none.

        Raises:
            EdgekitError: the server cannot be reached, or does not speak HTTP.
        """
        plain, secure = http.client.HTTPConnection, http.client.HTTPSConnection
        connection = (
            plain(self.host, self.port, timeout=_TIMEOUT_S)
            if self.tls is None
            else secure(self.host, self.port, timeout=_TIMEOUT_S, context=self.tls)
        )
        content = None if body is None else json.dumps(body)
        try:
            connection.request(method, self.base + path, content, self._headers())
            response = connection.getresponse()
            text = response.read()
        except ssl.SSLError as error:
            raise EdgekitError(
                f"{self.url}: no TLS connection: {error}",
                hint="does it speak https there? --ca-file FILE trusts a certificate of your own",
            ) from error
        except http.client.HTTPException as error:
            raise EdgekitError(
                f"{self.url}: what answers there does not speak HTTP: {type(error).__name__}: {error}"[:300],
                hint="check the port",
            ) from error
        except TimeoutError as error:
            raise EdgekitError(f"{self.url}: no answer in {_TIMEOUT_S} s") from error
        except OSError as error:
            raise EdgekitError(f"{self.url}: {describe(error)}", hint="is the server running?") from error
        finally:
            connection.close()
        try:
            return response.status, json.loads(text)
        except ValueError:
            return response.status, None

    def check(self) -> None:
        """See that a server with an OpenAI-style API answers, and takes our key.

        Raises:
            EdgekitError: it does not; says which.
        """
        status, document = self.call("GET", "/v1/models")
        if status in (401, 403):
            hint = _HINT_KEY if self.api_key is None else "it does not know this key"
            raise EdgekitError(f"{self.url}: the server wants an API key ({status})", hint=hint)
        if status == 503:
            raise EdgekitError(
                f"{self.url}: the server is not ready (503)", hint="wait until /health answers 200"
            )
        if status != 200 or not isinstance(document, dict) or "data" not in document:
            raise EdgekitError(
                f"{self.url}: not an OpenAI-style server: GET {self.base}/v1/models gives {status}"
                + ("" if document is not None else ", and no JSON"),
                hint="give the base URL of the API, without a path, e.g. http://127.0.0.1:8080",
            )

    @property
    def _authority(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"

    def _headers(self) -> dict[str, str]:
        headers = {"Content-Type": "application/json", "Accept": "text/event-stream, application/json"}
        if self.api_key is not None:
            headers["Authorization"] = f"Bearer {self.api_key}"
        return headers


def read_api_key(path: Path) -> str:
    """The first key of a file as `edgekit serve --api-key-file` takes it.

    Raises:
        UsageError: it cannot be read, or holds none.
    """
    try:
        lines = path.read_text("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: cannot read the API key: {error}") from error
    keys = [line.strip() for line in lines if line.strip() and not line.strip().startswith("#")]
    if not keys or not keys[0].isascii() or any(character.isspace() for character in keys[0]):
        raise UsageError(f"{path}: holds no API key", hint="write the key on a line of its own")
    return keys[0]


def describe(error: OSError) -> str:
    """Why a connection failed, in the words that errors are counted under."""
    if isinstance(error, ConnectionRefusedError):
        return "connection refused"
    if isinstance(error, ConnectionResetError | BrokenPipeError):
        return "connection reset"
    if isinstance(error, TimeoutError):
        return "timed out"
    if isinstance(error, socket.gaierror):
        return f"unknown host: {error.strerror}"
    return error.strerror or str(error) or type(error).__name__
