"""HTTPS: a certificate and its key, checked before time goes into loading a model."""

from __future__ import annotations

import logging
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from cryptography import x509

from edgekit.errors import UsageError

__all__ = ["TlsFiles"]

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """Where certificate chain and private key lie, both in PEM."""

    certificate: Path
    key: Path

    def context(self, now: Callable[[], datetime] = lambda: datetime.now(timezone.utc)) -> ssl.SSLContext:
        """A context for TLS 1.2 and later.

        Raises:
            UsageError: a file cannot be read, or the two do not go together.
        """
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        self.load_into(context)
        self._warn(now())
        return context

    def load_into(self, context: ssl.SSLContext) -> None:
        """Read the files again; connections to come use what they hold.

        Raises:
            UsageError: as above; the context is as it was.
        """
        for what, path in (("certificate", self.certificate), ("key", self.key)):
            try:
                path.read_bytes()
            except OSError as error:
                raise UsageError(f"{path}: cannot read the TLS {what}: {error.strerror}") from error
        # First into a context that nobody uses: half of a pair must not be taken.
        for target in (ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), context):
            try:
                target.load_cert_chain(self.certificate, self.key, password=self._no_password)
            except ssl.SSLError as error:
                reason = (error.reason or str(error)).lower().replace("_", " ")
                raise UsageError(
                    f"{self.certificate} and {self.key} are not a certificate and its key: {reason}",
                    hint="both must be PEM files, and the key the one that the certificate was made for",
                ) from error

    def _no_password(self) -> str:
        # OpenSSL would ask on the terminal.
        raise UsageError(
            f"{self.key}: the TLS key is encrypted",
            hint="write it without a password: openssl pkey -in KEY -out PLAIN.key; chmod 600 PLAIN.key",
        )

    def _warn(self, now: datetime) -> None:
        if self.key.stat().st_mode & 0o044:
            log.warning("%s: other users of this machine can read the TLS key: chmod 600 it", self.key)
        leaf = x509.load_pem_x509_certificate(self.certificate.read_bytes())
        if now > leaf.not_valid_after_utc:
            log.warning("%s: the certificate expired on %s", self.certificate, leaf.not_valid_after_utc)
        if now < leaf.not_valid_before_utc:
            log.warning(
                "%s: the certificate is not valid before %s; is the clock right?",
                self.certificate,
                leaf.not_valid_before_utc,
            )
