"""Ed25519 keys and signatures in minisign's file formats, and where a device's trusted key is found.

Format: https://jedisct1.github.io/minisign/#signature-format and src/minisign.c of releases 0.11 and 0.12.
A verdict here is the verdict of `minisign -V`, quirks included: lines are read as its C code reads them
(cut at a NUL or a carriage return), and what follows the fourth line is not looked at. Secret keys are
held to more: a key whose two halves disagree, or whose checksum is wrong, is refused also when it is not
encrypted.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from edgekit.bundle.keys import (
    PublicKey,
    SecretKey,
    generate_key_pair,
    load_public_key,
    load_secret_key,
    read_password,
    write_key_pair,
)
from edgekit.bundle.minisign_format import (
    COMMENT_LIMIT,
    ED25519,
    ED25519_PREHASHED,
    base64_line_limit,
    format_key_id,
    from_base64,
    read_bytes,
    read_c_line,
    to_base64,
)
from edgekit.errors import SignatureError

__all__ = [
    "PUBLIC_KEY_VARIABLE",
    "PublicKey",
    "SecretKey",
    "Signature",
    "find_public_key",
    "generate_key_pair",
    "load_public_key",
    "load_secret_key",
    "parse_signature",
    "read_password",
    "sign",
    "verify_signature",
    "write_key_pair",
]

PUBLIC_KEY_VARIABLE: Final = "EDGEKIT_PUBLIC_KEY"
PUBLIC_KEY_PATH: Final = "etc/edgekit/edgekit.pub"
"""Below the root directory."""

_UNTRUSTED: Final = b"untrusted comment: "
_TRUSTED: Final = b"trusted comment: "
_TRUSTED_COMMENT_LIMIT: Final = 8192
_CHUNK: Final = 1024 * 1024

# Points that libsodium refuses, as a public key and as a signature's first half: with one of them a
# signature says nothing about its message. OpenSSL takes them. By y coordinate; the sign of x is masked.
_FIELD: Final = 2**255 - 19
_SMALL_ORDER: Final = frozenset(
    {
        0,
        1,
        _FIELD - 1,
        int.from_bytes(
            bytes.fromhex("26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05"), "little"
        ),
        int.from_bytes(
            bytes.fromhex("c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a"), "little"
        ),
    }
)


@dataclass(frozen=True, slots=True)
class Signature:
    """What a .minisig file says. Nothing in it is to be believed before `verify_signature` returned it."""

    id_bytes: bytes
    prehashed: bool
    signature: bytes
    trusted_comment_bytes: bytes
    global_signature: bytes

    @property
    def key_id(self) -> str:
        """The key that it says it was made with: 16 upper-case hex digits."""
        return format_key_id(self.id_bytes)

    @property
    def trusted_comment(self) -> str:
        """For reading: bytes that are not UTF-8 and control characters are escaped, tabs are kept."""
        text = self.trusted_comment_bytes.decode("utf-8", errors="backslashreplace")
        return "".join(c if c.isprintable() or c == "\t" else ascii(c)[1:-1] for c in text)


def sign(
    message: bytes | Path,
    secret_key: SecretKey,
    *,
    trusted_comment: str,
    untrusted_comment: str = "signature from edgekit secret key",
) -> str:
    """Content of the .minisig file for `message`, which is prehashed (BLAKE2b-512), a file in pieces.

    The same message, key and comments give the same signature.

    Raises:
        SignatureError: a comment has a line break or is too long for minisign.
    """
    trusted = _one_line(trusted_comment, "trusted comment", _TRUSTED_COMMENT_LIMIT - len(_TRUSTED) - 2)
    untrusted = _one_line(untrusted_comment, "untrusted comment", COMMENT_LIMIT - len(_UNTRUSTED) - 2)
    signature = secret_key.sign_bytes(_prehash(message))
    global_signature = secret_key.sign_bytes(signature + trusted)
    first = to_base64(ED25519_PREHASHED + secret_key.id_bytes + signature)
    return (
        f"untrusted comment: {untrusted.decode()}\n{first}\n"
        f"trusted comment: {trusted.decode()}\n{to_base64(global_signature)}\n"
    )


def verify_signature(message: bytes | Path, signature: bytes | str, public_key: PublicKey) -> Signature:
    """Check the content of a .minisig file against `message` and `public_key`; legacy ones are taken too.

    Raises:
        SignatureError: malformed, made with another key, or not for this message or comment.
    """
    parsed = parse_signature(
        signature.encode(errors="surrogateescape") if isinstance(signature, str) else signature
    )
    if parsed.id_bytes != public_key.id_bytes:
        raise SignatureError(
            f"the signature was made with key {parsed.key_id}, the public key is {public_key.key_id}",
            hint="pass the public key of whoever sealed the bundle",
        )
    if parsed.prehashed:
        signed = _prehash(message)
    else:
        signed = read_bytes(message, "the signed file", limit=None) if isinstance(message, Path) else message
    if not _ed25519_verifies(public_key.point, parsed.signature, signed):
        raise SignatureError(f"the signature of key {public_key.key_id} is not for this content")
    if not _ed25519_verifies(
        public_key.point, parsed.global_signature, parsed.signature + parsed.trusted_comment_bytes
    ):
        raise SignatureError("the signature's trusted comment was changed after signing")
    return parsed


def parse_signature(content: bytes) -> Signature:
    """Read the content of a .minisig file without checking it.

    Raises:
        SignatureError: it is malformed.
    """
    lines = io.BytesIO(content)
    untrusted, complete = read_c_line(lines, COMMENT_LIMIT, "the signature")
    if not complete or not untrusted.startswith(_UNTRUSTED):
        raise SignatureError("the signature does not start with a line 'untrusted comment: …'")
    encoded, complete = read_c_line(lines, base64_line_limit(74), "the signature")
    if not complete:
        raise SignatureError("the signature's second line is missing or too long")
    trusted, complete = read_c_line(lines, _TRUSTED_COMMENT_LIMIT, "the signature")
    if not complete or not trusted.startswith(_TRUSTED):
        raise SignatureError("the signature's third line is not 'trusted comment: …'")
    encoded_global, _ = read_c_line(lines, base64_line_limit(64), "the signature")
    first = from_base64(encoded, 74, "the signature")
    algorithm = first[:2]
    if algorithm not in (ED25519, ED25519_PREHASHED):
        raise SignatureError(f"the signature's algorithm {algorithm!r} is not known")
    return Signature(
        id_bytes=first[2:10],
        prehashed=algorithm == ED25519_PREHASHED,
        signature=first[10:],
        trusted_comment_bytes=trusted[len(_TRUSTED) :],
        global_signature=from_base64(encoded_global, 64, "the signature of the trusted comment"),
    )


def find_public_key(
    option: str | None, environ: Mapping[str, str], root: Path = Path("/")
) -> PublicKey | None:
    """The key to trust: `option`, else $EDGEKIT_PUBLIC_KEY, else etc/edgekit/edgekit.pub below `root`.

    The first two are a path or the base64 string itself. None when there is none of the three; one that
    is there but cannot be read is an error, never skipped.

    Raises:
        SignatureError: as `load_public_key`.
    """
    if option is not None:
        return load_public_key(option)
    if environ.get(PUBLIC_KEY_VARIABLE):
        return load_public_key(environ[PUBLIC_KEY_VARIABLE])
    path = root / PUBLIC_KEY_PATH
    return load_public_key(path) if os.path.lexists(path) else None


def _ed25519_verifies(point: bytes, signature: bytes, data: bytes) -> bool:
    if _is_degenerate(point) or _is_degenerate(signature[:32]):
        return False
    try:
        Ed25519PublicKey.from_public_bytes(point).verify(signature, data)
    except (InvalidSignature, ValueError):
        return False
    return True


def _is_degenerate(point: bytes) -> bool:
    y = int.from_bytes(point, "little") & (2**255 - 1)
    return y >= _FIELD or y in _SMALL_ORDER


def _prehash(message: bytes | Path) -> bytes:
    digest = hashlib.blake2b()
    if isinstance(message, Path):
        try:
            with message.open("rb") as stream:
                while chunk := stream.read(_CHUNK):
                    digest.update(chunk)
        except OSError as error:
            raise SignatureError(f"{message}: cannot read it: {error.strerror}") from error
    else:
        digest.update(message)
    return digest.digest()


def _one_line(text: str, what: str, limit: int) -> bytes:
    if not all(c.isprintable() or c == "\t" for c in text):
        raise SignatureError(f"the {what} has a line break or a control character")
    if len(text.encode()) > limit:
        raise SignatureError(f"the {what} is longer than {limit} bytes")
    return text.encode()
