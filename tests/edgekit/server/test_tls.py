"""HTTPS with real certificates."""

from __future__ import annotations

import ipaddress
import logging
import ssl
from datetime import datetime, timedelta, timezone
from pathlib import Path

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from front_server import STREAMED, Posting, front_server

from edgekit.errors import UsageError
from edgekit.server.tls import TlsFiles

NOW = datetime.now(timezone.utc)


def make(directory: Path, name: str = "server", *, password: bytes | None = None, days: int = 1) -> TlsFiles:
    """A certificate for 127.0.0.1 that is its own authority."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    addresses = [x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(NOW - timedelta(days=30))
        .not_valid_after(NOW + timedelta(days=days))
        .add_extension(x509.SubjectAlternativeName(addresses), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    encryption = (
        serialization.NoEncryption() if password is None else serialization.BestAvailableEncryption(password)
    )
    files = TlsFiles(directory / f"{name}.pem", directory / f"{name}.key")
    files.certificate.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    files.key.touch(mode=0o600)
    files.key.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)
    )
    return files


def trusting(files: TlsFiles) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(files.certificate))


def test_https__verified_by_a_client(tmp_path: Path) -> None:
    files = make(tmp_path)
    with front_server(tls=files.context()) as server:
        assert httpx.get(f"{server.url}/health", verify=trusting(files)).json() == {"status": "ok"}
        with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
            httpx.get(f"{server.url}/health")
        streamed = Posting(server.url, STREAMED, verify=trusting(files))
        stream = server.engine.stream(0)
        stream.give("secret")
        stream.end()
        assert '"content":"secret"' in "".join(streamed.join().lines)


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1_1:DeprecationWarning")
def test_https__older_than_1_2_is_refused(tmp_path: Path) -> None:
    files = make(tmp_path)
    assert files.context().minimum_version == ssl.TLSVersion.TLSv1_2
    with front_server(tls=files.context()) as server:
        old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        old.load_verify_locations(files.certificate)
        old.set_ciphers("ALL:@SECLEVEL=0")
        old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_1
        with server.connect() as connection, pytest.raises(ssl.SSLError):
            old.wrap_socket(connection, server_hostname="127.0.0.1")


def test_https__plain_http_gets_nothing(tmp_path: Path) -> None:
    with front_server(tls=make(tmp_path).context()) as server, pytest.raises(httpx.TransportError):
        httpx.get(f"http://127.0.0.1:{server.port}/health")


def test_load_into__new_certificate_for_connections_to_come(tmp_path: Path) -> None:
    files = make(tmp_path)
    context = files.context()
    with front_server(tls=context) as server:
        assert httpx.get(f"{server.url}/health", verify=trusting(files)).status_code == 200
        make(tmp_path)
        renewed = trusting(files)
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{server.url}/health", verify=renewed)
        files.load_into(context)
        assert httpx.get(f"{server.url}/health", verify=renewed).status_code == 200


def test_load_into__half_of_a_new_pair_leaves_the_old_one(tmp_path: Path) -> None:
    files = make(tmp_path)
    context, trusted = files.context(), trusting(files)
    files.certificate.write_bytes(make(tmp_path, "other").certificate.read_bytes())
    with front_server(tls=context) as server:
        with pytest.raises(UsageError):
            files.load_into(context)
        assert httpx.get(f"{server.url}/health", verify=trusted).status_code == 200


def test_context__files_that_are_not_there(tmp_path: Path) -> None:
    files = make(tmp_path)
    with pytest.raises(UsageError, match=r"none\.pem: cannot read the TLS certificate: No such file"):
        TlsFiles(tmp_path / "none.pem", files.key).context()
    with pytest.raises(UsageError, match=r"none\.key: cannot read the TLS key"):
        TlsFiles(files.certificate, tmp_path / "none.key").context()


def test_context__key_of_another_certificate(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"key values mismatch") as raised:
        TlsFiles(make(tmp_path, "a").certificate, make(tmp_path, "b").key).context()
    assert "PEM" in str(raised.value.hint)


def test_context__not_pem(tmp_path: Path) -> None:
    files = make(tmp_path)
    files.certificate.write_bytes(b"\x30\x82")
    with pytest.raises(UsageError, match="are not a certificate and its key"):
        files.context()


def test_context__encrypted_key_is_not_asked_about_on_a_terminal(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"server\.key: the TLS key is encrypted"):
        make(tmp_path, password=b"secret").context()


@pytest.mark.parametrize(
    ("now", "said"),
    [
        (NOW, ""),
        (NOW + timedelta(days=3), "the certificate expired on"),
        (NOW - timedelta(days=60), "is the clock right?"),
    ],
)
def test_context__dates_are_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, now: datetime, said: str
) -> None:
    with caplog.at_level(logging.WARNING):
        make(tmp_path).context(lambda: now)
    assert (said in caplog.text) if said else not caplog.records


def test_context__key_that_others_can_read_is_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    files = make(tmp_path)
    files.key.chmod(0o644)
    with caplog.at_level(logging.WARNING):
        files.context()
    assert "chmod 600" in caplog.text


def test_https__silent_client_does_not_hold_others(tmp_path: Path) -> None:
    files = make(tmp_path)
    with front_server(tls=files.context()) as server, server.connect() as silent:
        silent.sendall(b"\x16\x03\x01")
        assert httpx.get(f"{server.url}/health", verify=trusting(files)).status_code == 200
