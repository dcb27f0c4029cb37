from __future__ import annotations

import datetime
import http.server
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import ip_address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from timed_sse import Script, TimedServer

from edgekit.errors import EdgekitError, UsageError
from edgekit.http_load import ClosedLoop, Target, measure
from edgekit.http_load.target import read_api_key


@contextmanager
def saying(reply: bytes) -> Iterator[str]:
    """A server that says one thing to everybody."""
    listening = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                connection, _ = listening.accept()
            except OSError:
                return
            with connection:
                connection.recv(65536)
                connection.sendall(reply)

    threading.Thread(target=serve, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        listening.shutdown(socket.SHUT_RDWR)
        listening.close()


@pytest.mark.parametrize(
    ("url", "host", "port", "base", "secure"),
    [
        ("http://127.0.0.1:8080", "127.0.0.1", 8080, "", False),
        ("http://pi.local/", "pi.local", 80, "", False),
        ("https://api.example.org/v1", "api.example.org", 443, "", True),
        ("http://[::1]:9000/llm/v1/", "::1", 9000, "/llm", False),
    ],
)
def test_parse__base_urls(url: str, host: str, port: int, base: str, secure: bool) -> None:
    target = Target.parse(url)
    assert (target.host, target.port, target.base) == (host, port, base)
    assert (target.tls is not None) is secure


@pytest.mark.parametrize(
    "url", ["localhost:8080", "ftp://x", "http://", "http://x:99999", "http://me:secret@x/"]
)
def test_parse__what_is_no_base_url_is_wrong_usage(url: str) -> None:
    with pytest.raises(UsageError) as caught:
        Target.parse(url)
    assert "secret" not in str(caught.value)


def test_request__carries_key_and_path() -> None:
    raw = Target.parse("http://[::1]:9000/llm", api_key="abc").request("/v1/x", {"a": "ü"})
    head, _, content = raw.partition(b"\r\n\r\n")
    assert head.startswith(b"POST /llm/v1/x HTTP/1.1\r\nHost: [::1]:9000\r\n")
    assert b"\r\nAuthorization: Bearer abc\r\n" in head
    assert f"\r\nContent-Length: {len(content)}\r\n".encode() in head


@pytest.mark.parametrize(
    ("url", "local"),
    [
        ("http://localhost", True),
        ("http://127.0.0.9", True),
        ("http://[::1]", True),
        ("http://10.0.0.1", False),
    ],
)
def test_is_local(url: str, local: bool) -> None:
    assert Target.parse(url).is_local is local


def test_check__server_that_answers() -> None:
    with TimedServer() as server:
        Target.parse(server.url).check()


def test_check__nobody_there() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(EdgekitError, match="connection refused") as caught:
        Target.parse(f"http://127.0.0.1:{port}").check()
    assert caught.value.hint == "is the server running?"


def test_check__key_that_is_missing_or_wrong() -> None:
    with TimedServer(key="right") as server:
        with pytest.raises(EdgekitError, match=r"wants an API key \(401\)") as caught:
            Target.parse(server.url).check()
        assert "--api-key-file" in str(caught.value.hint)
        with pytest.raises(EdgekitError, match="wants an API key") as caught:
            Target.parse(server.url, api_key="wrong").check()
        assert caught.value.hint == "it does not know this key"
        target = Target.parse(server.url, api_key="right")
        target.check()
        assert measure(target, ClosedLoop(1, 1)).figures.answered == 1


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        (b"220 mail.example.org ESMTP\r\n", "does not speak HTTP"),
        (b"", "does not speak HTTP"),
        (b"HTTP/1.1 404 Not Found\r\nContent-Length: 5\r\n\r\nnope\n", "gives 404, and no JSON"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 13\r\n\r\n<html></html>", "not an OpenAI-style server"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}", "not an OpenAI-style server"),
        (b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n", "not ready"),
    ],
)
def test_check__what_is_no_such_server(reply: bytes, message: str) -> None:
    with saying(reply) as url, pytest.raises(EdgekitError, match=message):
        Target.parse(url).check()


def test_check__plain_server_asked_for_https() -> None:
    server = http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        with pytest.raises(EdgekitError, match="no TLS connection"):
            Target.parse(f"https://127.0.0.1:{server.server_port}").check()
    finally:
        server.shutdown()
        server.server_close()


def test_measure__https_with_a_certificate_of_ones_own(tmp_path: Path) -> None:
    certificate = write_certificate(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    with TimedServer(lambda number: Script(events=3), tls=context) as server:
        with pytest.raises(EdgekitError, match="no TLS connection") as caught:
            Target.parse(server.url).check()
        assert "--ca-file" in str(caught.value.hint)
        target = Target.parse(server.url, ca_file=certificate)
        target.check()
        assert measure(target, ClosedLoop(2, 1)).figures.tokens == 6


def test_parse__ca_file_without_certificates(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("nothing")
    with pytest.raises(UsageError, match=r"ca\.pem: no certificates"):
        Target.parse("https://x", ca_file=tmp_path / "ca.pem")


def test_read_api_key__first_one_of_the_servers_file(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text("# those who may\n\n sk-one \nsk-two\n")
    assert read_api_key(path) == "sk-one"
    path.write_text("# none\n")
    with pytest.raises(UsageError, match="holds no API key"):
        read_api_key(path)
    with pytest.raises(UsageError, match="cannot read"):
        read_api_key(tmp_path / "absent")


def write_certificate(directory: Path) -> Path:
    """A certificate for 127.0.0.1 that signs itself, with its key, in one file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "timed")])
    now = datetime.datetime.now(datetime.timezone.utc)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    path = directory / "server.pem"
    path.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        + certificate.public_bytes(serialization.Encoding.PEM)
    )
    return path
