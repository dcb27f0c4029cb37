"""Ed25519 key pairs in minisign's key files: generated, encrypted with a password, read back.

Format: SeckeyStruct and PubkeyStruct of src/minisign.h, minisign 0.11 and 0.12.
"""

from __future__ import annotations

import hashlib
import hmac
import io
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from edgekit.bundle.minisign_format import (
    COMMENT_LIMIT,
    ED25519,
    base64_line_limit,
    format_key_id,
    from_base64,
    read_bytes,
    read_c_line,
    to_base64,
)
from edgekit.errors import SignatureError

__all__ = [
    "KDF_INTERACTIVE",
    "KDF_SENSITIVE",
    "KdfLimits",
    "PublicKey",
    "SecretKey",
    "generate_key_pair",
    "load_public_key",
    "load_secret_key",
    "read_password",
    "write_key_pair",
]

_KDF_SCRYPT: Final = b"Sc"
_KDF_NONE: Final = b"\0\0"
_CHECKSUM_BLAKE2B: Final = b"B2"
_PASSWORD_LIMIT: Final = 1024
_SCRYPT_MEMORY_LIMIT: Final = 2**31 - 1


@dataclass(frozen=True, slots=True)
class KdfLimits:
    """Cost of turning a password into a key: libsodium's opslimit and memlimit (bytes) for scrypt."""

    opslimit: int
    memlimit: int

    def scrypt_parameters(self) -> tuple[int, int, int]:
        """N, r and p as libsodium's crypto_pwhash_scryptsalsa208sha256 picks them."""
        r = 8
        opslimit = max(self.opslimit, 32768)
        if opslimit < self.memlimit // 32:
            return _power_of_two_above(opslimit // (r * 4) // 2), r, 1
        n = _power_of_two_above(self.memlimit // (r * 128) // 2)
        return n, r, min(opslimit // 4 // n, 0x3FFFFFFF) // r


KDF_SENSITIVE: Final = KdfLimits(33554432, 1073741824)
"""What minisign uses: 1 GiB of memory and some seconds."""
KDF_INTERACTIVE: Final = KdfLimits(524288, 16777216)
"""16 MiB and a fraction of a second; for keys whose password is long and random."""


@dataclass(frozen=True, slots=True)
class PublicKey:
    """A key to verify with: `id_bytes` has 8 bytes, `point` 32."""

    id_bytes: bytes
    point: bytes

    @property
    def key_id(self) -> str:
        """16 upper-case hex digits, as minisign prints it."""
        return format_key_id(self.id_bytes)

    def to_base64(self) -> str:
        """The key as one string of 56 characters, as `minisign -P` takes it."""
        return to_base64(ED25519 + self.id_bytes + self.point)

    def to_text(self) -> str:
        """Content of a .pub file."""
        return f"untrusted comment: minisign public key {self.key_id}\n{self.to_base64()}\n"


@dataclass(frozen=True, slots=True)
class SecretKey:
    """A key to sign with: `id_bytes` has 8 bytes, `seed` 32. Its seed is not in its repr."""

    id_bytes: bytes
    seed: bytes = field(repr=False)

    @property
    def key_id(self) -> str:
        """16 upper-case hex digits, as minisign prints it."""
        return format_key_id(self.id_bytes)

    def public_key(self) -> PublicKey:
        """The key that verifies what this one signs."""
        return PublicKey(self.id_bytes, self._private().public_key().public_bytes_raw())

    def to_text(self, password: str | None = None, *, limits: KdfLimits = KDF_SENSITIVE) -> str:
        """Content of a .key file, encrypted when there is a password.

        Raises:
            SignatureError: the password cannot be typed into minisign, or memory is short.
        """
        secret = self.seed + self.public_key().point
        body = self.id_bytes + secret + _checksum(self.id_bytes, secret)
        if password is None:
            kdf, salt, costs = _KDF_NONE, bytes(32), KdfLimits(0, 0)
        else:
            kdf, salt, costs = _KDF_SCRYPT, os.urandom(32), limits
            body = _xor(body, _derive(password, salt, costs, len(body)))
        head = ED25519 + kdf + _CHECKSUM_BLAKE2B + salt
        head += costs.opslimit.to_bytes(8, "little") + costs.memlimit.to_bytes(8, "little")
        kind = "minisign secret key" if password is None else "minisign encrypted secret key"
        return f"untrusted comment: {kind}\n{to_base64(head + body)}\n"

    def sign_bytes(self, data: bytes) -> bytes:
        """The plain ed25519 signature of `data`, 64 bytes."""
        return self._private().sign(data)

    def _private(self) -> Ed25519PrivateKey:
        return Ed25519PrivateKey.from_private_bytes(self.seed)


def generate_key_pair() -> tuple[SecretKey, PublicKey]:
    """A fresh key pair with a random key id."""
    secret_key = SecretKey(os.urandom(8), os.urandom(32))
    return secret_key, secret_key.public_key()


def load_public_key(path_or_text: str | Path) -> PublicKey:
    """A public key from a .pub file, or from the base64 string itself.

    Raises:
        SignatureError: no such file, or not a minisign public key.
    """
    if isinstance(path_or_text, str) and _is_public_key_text(path_or_text):
        return _parse_public_key(path_or_text.encode(), "the public key")
    path = Path(path_or_text)
    what = f"{path}: the public key"
    try:
        lines = io.BytesIO(read_bytes(path, "the public key"))
    except SignatureError as error:
        if path.exists():
            raise
        raise SignatureError(
            error.message, hint="give the path of a .pub file, or the base64 string on its second line"
        ) from error
    read_c_line(lines, COMMENT_LIMIT, what)
    encoded, _ = read_c_line(lines, base64_line_limit(42), what)
    return _parse_public_key(encoded, what)


def load_secret_key(path: Path, password: str | None = None) -> SecretKey:
    """A secret key from a .key file. A password that is not needed is ignored, as minisign does.

    Raises:
        SignatureError: unreadable, malformed, damaged, or the password is missing or wrong.
    """
    what = f"{path}: the secret key"
    lines = io.BytesIO(read_bytes(path, "the secret key"))
    read_c_line(lines, COMMENT_LIMIT, what)
    encoded, _ = read_c_line(lines, base64_line_limit(158), what)
    raw = from_base64(encoded, 158, what)
    if raw[:2] != ED25519 or raw[4:6] != _CHECKSUM_BLAKE2B:
        raise SignatureError(f"{what} is of a kind that is not known")
    kdf, salt, body = raw[2:4], raw[6:38], raw[54:]
    encrypted = kdf == _KDF_SCRYPT
    if encrypted:
        if password is None:
            raise SignatureError(f"{what} is encrypted", hint="pass its password, e.g. --password-file FILE")
        limits = KdfLimits(int.from_bytes(raw[38:46], "little"), int.from_bytes(raw[46:54], "little"))
        body = _xor(body, _derive(password, salt, limits, len(body)))
    elif kdf != _KDF_NONE:
        raise SignatureError(f"{what} is encrypted in a way that is not known: {kdf!r}")
    id_bytes, secret, checksum = body[:8], body[8:72], body[72:]
    intact = hmac.compare_digest(checksum, _checksum(id_bytes, secret))
    # `minisign -G -W` leaves the checksum of an unencrypted key empty.
    if not intact and (encrypted or any(checksum)):
        raise SignatureError(f"{path}: wrong password" if encrypted else f"{what} is damaged")
    secret_key = SecretKey(id_bytes, secret[:32])
    if secret_key.public_key().point != secret[32:]:
        raise SignatureError(f"{what} is damaged: its public half is not that of its secret half")
    return secret_key


def read_password(path: Path) -> str:
    """The first line of a password file. Bytes that are not UTF-8 are kept (surrogateescape).

    Raises:
        SignatureError: unreadable, or the first line is empty.
    """
    line = read_bytes(path, "the password file").split(b"\n", 1)[0].removesuffix(b"\r")
    if not line:
        raise SignatureError(f"{path}: the first line is empty", hint="write the password on the first line")
    return line.decode("utf-8", errors="surrogateescape")


def write_key_pair(
    secret_key: SecretKey, secret_path: Path, public_path: Path, *, password: str | None = None
) -> None:
    """Write both files, the secret one with mode 0600; a missing directory is made with mode 0700.

    Raises:
        SignatureError: one of the files is there already, or they cannot be written. Nothing is left then.
    """
    for path in (secret_path, public_path):
        if os.path.lexists(path):
            raise _exists(path)
    contents = (
        (secret_path, secret_key.to_text(password), 0o600),
        (public_path, secret_key.public_key().to_text(), 0o644),
    )
    written: list[Path] = []
    try:
        secret_path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        for path, content, mode in contents:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
            written.append(path)
            with open(descriptor, "w", encoding="ascii") as stream:  # noqa: PTH123 (a descriptor)
                stream.write(content)
                stream.flush()
                os.fsync(stream.fileno())
    except OSError as error:
        for path in written:
            path.unlink(missing_ok=True)
        if isinstance(error, FileExistsError) and error.filename is not None:
            raise _exists(Path(error.filename)) from error
        raise SignatureError(f"cannot write the key pair: {error}") from error


def _exists(path: Path) -> SignatureError:
    return SignatureError(
        f"{path} is there already, and a lost signing key cannot be made again",
        hint="choose another --out PREFIX, or move the old key pair away",
    )


def _is_public_key_text(text: str) -> bool:
    return re.fullmatch(r"RW[A-Za-z0-9+/]{54}", text) is not None


def _parse_public_key(encoded: bytes, what: str) -> PublicKey:
    raw = from_base64(encoded, 42, what)
    if raw[:2] != ED25519:
        raise SignatureError(f"{what} has the algorithm {raw[:2]!r}, which is not known")
    return PublicKey(raw[2:10], raw[10:])


def _checksum(id_bytes: bytes, secret: bytes) -> bytes:
    return hashlib.blake2b(ED25519 + id_bytes + secret, digest_size=32).digest()


def _power_of_two_above(value: int) -> int:
    # libsodium's search starts at 2**1 and ends at 2**63.
    return min(max(2, 1 << value.bit_length()), 2**63)


def _derive(password: str, salt: bytes, limits: KdfLimits, size: int) -> bytes:
    secret = password.encode("utf-8", errors="surrogateescape")
    if len(secret) >= _PASSWORD_LIMIT or re.search(rb"[\0\r\n]", secret):
        raise SignatureError(f"a password is one line of at most {_PASSWORD_LIMIT - 1} bytes")
    n, r, p = limits.scrypt_parameters()
    if p < 1 or 128 * r * (n + p + 2) > _SCRYPT_MEMORY_LIMIT:
        raise SignatureError(f"the key's password cost is out of bounds (scrypt N={n} r={r} p={p})")
    try:
        return hashlib.scrypt(secret, salt=salt, n=n, r=r, p=p, maxmem=_SCRYPT_MEMORY_LIMIT, dklen=size)
    except (MemoryError, ValueError) as error:
        raise SignatureError(
            f"deriving the key from the password failed: {error}",
            hint=f"it needs {128 * r * n // 2**20} MiB of memory",
        ) from error


def _xor(left: bytes, right: bytes) -> bytes:
    return bytes(a ^ b for a, b in zip(left, right, strict=True))
