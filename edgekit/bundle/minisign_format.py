"""The shapes that minisign's key and signature files share: lines as its C code reads them, and base64.

Source: src/minisign.c, src/helpers.c and src/base64.c of minisign 0.11 and 0.12.
"""

from __future__ import annotations

import binascii
import io
import re
from pathlib import Path
from typing import Final

from edgekit.errors import SignatureError

__all__ = [
    "COMMENT_LIMIT",
    "ED25519",
    "ED25519_PREHASHED",
    "base64_line_limit",
    "format_key_id",
    "from_base64",
    "read_bytes",
    "read_c_line",
    "to_base64",
]

ED25519: Final = b"Ed"
ED25519_PREHASHED: Final = b"ED"
COMMENT_LIMIT: Final = 1024
"""Size of the buffer that minisign reads an untrusted comment into, in bytes."""
_FILE_LIMIT: Final = 64 * 1024
_BASE64: Final = re.compile(rb"[A-Za-z0-9+/]+={0,2}")


def read_c_line(stream: io.BytesIO, size: int, what: str) -> tuple[bytes, bool]:
    """The next line as minisign sees it, and whether its line feed was seen.

    fgets() into a buffer of `size` bytes, then minisign's trim(): the text ends at a NUL, CR or LF; a line
    feed behind a NUL, or beyond the buffer, is not seen. `what` names the file in the error.

    Raises:
        SignatureError: the file has ended.
    """
    line = stream.readline(size - 1)
    if not line:
        raise SignatureError(f"{what} ends too early")
    line = line.split(b"\0", 1)[0]
    return re.split(rb"[\r\n]", line, maxsplit=1)[0], line.endswith(b"\n")


def base64_line_limit(size: int) -> int:
    """Size of the buffer for a line with the base64 of `size` bytes."""
    return (size + 2) // 3 * 4 + 3


def from_base64(encoded: bytes, size: int, what: str) -> bytes:
    """Decode `encoded`, which must hold exactly `size` bytes. `what` names it in the error.

    Raises:
        SignatureError: malformed, or of another length.
    """
    if len(encoded) % 4 == 0 and _BASE64.fullmatch(encoded):
        decoded = binascii.a2b_base64(encoded)
        if len(decoded) == size:
            return decoded
    raise SignatureError(f"{what} is not the base64 of {size} bytes")


def to_base64(data: bytes) -> str:
    """Base64 with padding and without line breaks."""
    return binascii.b2a_base64(data, newline=False).decode()


def format_key_id(id_bytes: bytes) -> str:
    """A key id of 8 bytes as minisign prints it: 16 upper-case hex digits of the little-endian number."""
    return f"{int.from_bytes(id_bytes, 'little'):016X}"


def read_bytes(path: Path, what: str, *, limit: int | None = _FILE_LIMIT) -> bytes:
    """The first `limit` bytes of a file; a key or signature is far shorter.

    Raises:
        SignatureError: it cannot be read. The message has the path and `what`.
    """
    try:
        with path.open("rb") as stream:
            return stream.read(-1 if limit is None else limit)
    except OSError as error:
        raise SignatureError(f"{path}: cannot read {what}: {error.strerror}") from error
