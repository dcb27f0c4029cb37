"""Every verdict on a signature is held against the stock minisign's."""

from __future__ import annotations

import base64
import hashlib
import itertools
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from edgekit.bundle.signing import (
    PublicKey,
    SecretKey,
    find_public_key,
    generate_key_pair,
    load_public_key,
    parse_signature,
    sign,
    verify_signature,
)
from edgekit.errors import SignatureError

Run = Callable[..., "subprocess.CompletedProcess[bytes]"]
Oracle = Callable[[bytes, bytes, bytes], bool]
Mutation = Callable[[list[bytes]], bytes]

MESSAGE = b'{"name": "student"}\n'
GROUP_ORDER = 2**252 + 27742317777372353535851937790883648493


def _accepts(public_key: bytes, message: bytes, signature: bytes, scratch: Path) -> bool:
    path = scratch / "ours.pub"
    path.write_bytes(public_key)
    try:
        verify_signature(message, signature, load_public_key(path))
    except SignatureError:
        return False
    return True


def _join(*lines: bytes) -> bytes:
    return b"".join(line + b"\n" for line in lines)


def _edit(line: bytes, position: int, change: Callable[[bytes], bytes]) -> bytes:
    """Change bytes of what a base64 line holds, from `position` on."""
    raw = base64.b64decode(line)
    return base64.b64encode(raw[:position] + change(raw[position:]))


def _flip(raw: bytes) -> bytes:
    return bytes([raw[0] ^ 1]) + raw[1:]


def _add_group_order(raw: bytes) -> bytes:
    # The second half of a signature is a number below the group's order; one above it is the same number.
    s = int.from_bytes(raw[:32], "little") + GROUP_ORDER
    return s.to_bytes(32, "little") + raw[32:]


def _noncanonical(line: bytes) -> bytes:
    # Other bits in the last character that base64 decoders drop.
    alphabet = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    body = line.rstrip(b"=")
    return body[:-1] + bytes([alphabet[alphabet.index(body[-1]) ^ 1]]) + line[len(body) :]


MUTATIONS: dict[str, Mutation] = {
    "untouched": lambda x: _join(*x),
    "other untrusted comment": lambda x: _join(b"untrusted comment: anything", *x[1:]),
    "empty untrusted comment": lambda x: _join(b"untrusted comment: ", *x[1:]),
    "untrusted comment without its space": lambda x: _join(b"untrusted comment:", *x[1:]),
    "no untrusted prefix": lambda x: _join(b"comment", *x[1:]),
    "untrusted comment just fits": lambda x: _join(b"untrusted comment: ".ljust(1022, b"x"), *x[1:]),
    "untrusted comment just too long": lambda x: _join(b"untrusted comment: ".ljust(1023, b"x"), *x[1:]),
    "untrusted comment far too long": lambda x: _join(b"untrusted comment: ".ljust(3000, b"x"), *x[1:]),
    "untrusted comment not UTF-8": lambda x: _join(x[0] + b"\xff\xfe", *x[1:]),
    "NUL in the untrusted comment": lambda x: _join(x[0] + b"\0more", *x[1:]),
    "byte order mark": lambda x: b"\xef\xbb\xbf" + _join(*x),
    "CRLF line ends": lambda x: b"".join(line + b"\r\n" for line in x),
    "CR line ends": lambda x: b"\r".join(x),
    "no final line feed": lambda x: _join(*x)[:-1],
    "more lines": lambda x: _join(*x, b"", b"anything", b"\0\xff"),
    "blank line first": lambda x: _join(b"", *x),
    "blank line between": lambda x: _join(x[0], b"", *x[1:]),
    "empty": lambda x: b"",
    "first line only": lambda x: _join(*x[:1]),
    "first line unended": lambda x: x[0],
    "two lines": lambda x: _join(*x[:2]),
    "three lines": lambda x: _join(*x[:3]),
    "three lines and an empty one": lambda x: _join(*x[:3], b""),
    "signatures swapped": lambda x: _join(x[0], x[3], x[2], x[1]),
    "space after the signature": lambda x: _join(x[0], x[1] + b" ", *x[2:]),
    "space before the signature": lambda x: _join(x[0], b" " + x[1], *x[2:]),
    "CR and more after the signature": lambda x: _join(x[0], x[1] + b"\rX", *x[2:]),
    "NUL after the signature": lambda x: _join(x[0], x[1] + b"\0", *x[2:]),
    "signature cut": lambda x: _join(x[0], x[1][:-4], *x[2:]),
    "signature cut to no multiple of four": lambda x: _join(x[0], x[1][:-1], *x[2:]),
    "signature with four more characters": lambda x: _join(x[0], x[1] + b"AAAA", *x[2:]),
    "signature of 73 bytes": lambda x: _join(x[0], _edit(x[1], 73, lambda _: b""), *x[2:]),
    "signature of 75 bytes": lambda x: _join(x[0], _edit(x[1], 74, lambda _: b"\0"), *x[2:]),
    "character outside base64": lambda x: _join(x[0], b"R*" + x[1][2:], *x[2:]),
    "URL-safe base64": lambda x: _join(x[0], x[1][:8] + b"-_" + x[1][10:], *x[2:]),
    "padding in the middle": lambda x: _join(x[0], x[1][:7] + b"=" + x[1][8:], *x[2:]),
    "padding only": lambda x: _join(x[0], b"====", *x[2:]),
    "dropped bits set in the signature": lambda x: _join(x[0], _noncanonical(x[1]), *x[2:]),
    "unknown algorithm": lambda x: _join(x[0], _edit(x[1], 0, lambda r: b"EX" + r[2:]), *x[2:]),
    "prehashed named legacy": lambda x: _join(x[0], _edit(x[1], 0, lambda r: b"Ed" + r[2:]), *x[2:]),
    "legacy named prehashed": lambda x: _join(x[0], _edit(x[1], 0, lambda r: b"ED" + r[2:]), *x[2:]),
    "other key id": lambda x: _join(x[0], _edit(x[1], 2, _flip), *x[2:]),
    "signature's point changed": lambda x: _join(x[0], _edit(x[1], 10, _flip), *x[2:]),
    "signature's number changed": lambda x: _join(x[0], _edit(x[1], 42, _flip), *x[2:]),
    "signature's number plus the order": lambda x: _join(x[0], _edit(x[1], 42, _add_group_order), *x[2:]),
    "signature all zero": lambda x: _join(x[0], _edit(x[1], 10, lambda r: bytes(64)), *x[2:]),
    "trusted comment changed": lambda x: _join(*x[:2], x[2].replace(b"release", b"Release"), x[3]),
    "trusted comment longer": lambda x: _join(*x[:2], x[2] + b"!", x[3]),
    "trusted comment with a space at its end": lambda x: _join(*x[:2], x[2] + b" ", x[3]),
    "trusted comment empty": lambda x: _join(*x[:2], b"trusted comment: ", x[3]),
    "trusted comment without its prefix": lambda x: _join(*x[:2], x[2][17:], x[3]),
    "trusted comment without its space": lambda x: _join(*x[:2], b"trusted comment:" + x[2][17:], x[3]),
    "CR and more after the trusted comment": lambda x: _join(*x[:2], x[2] + b"\rmore", x[3]),
    "NUL and more after the trusted comment": lambda x: _join(*x[:2], x[2] + b"\0more", x[3]),
    "trusted comment too long": lambda x: _join(*x[:2], x[2].ljust(9000, b"x"), x[3]),
    "comment's signature changed": lambda x: _join(*x[:3], _edit(x[3], 0, _flip)),
    "comment's signature plus the order": lambda x: _join(*x[:3], _edit(x[3], 32, _add_group_order)),
    "comment's signature is the first": lambda x: _join(
        *x[:3], base64.b64encode(base64.b64decode(x[1])[10:])
    ),
    "comment's signature cut": lambda x: _join(*x[:3], x[3][:-4]),
    "comment's signature and one character": lambda x: _join(*x[:3], x[3] + b"A"),
    "comment's signature and two characters": lambda x: _join(*x[:3], x[3] + b"AA"),
    "comment's signature and a long tail": lambda x: _join(*x[:3], x[3] + b"A" * 40),
    "CR and more after the comment's signature": lambda x: _join(*x[:3], x[3] + b"\rX"),
    "NUL and more after the comment's signature": lambda x: _join(*x[:3], x[3] + b"\0X"),
    "dropped bits set in the comment's signature": lambda x: _join(*x[:3], _noncanonical(x[3])),
    "comment's signature without padding": lambda x: _join(*x[:3], x[3].rstrip(b"=")),
    "comment's signature with one padding": lambda x: _join(*x[:3], x[3][:-1]),
}


@pytest.fixture(scope="module", params=["ours", "minisign", "minisign, legacy"])
def signed(
    request: pytest.FixtureRequest,
    minisign: Run,
    secret_key: SecretKey,
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[bytes, list[bytes]]:
    """A .pub file's content, and the lines of a signature of MESSAGE, by each maker."""
    if request.param == "ours":
        text = sign(MESSAGE, secret_key, trusted_comment="name:student\trelease:7")
        return secret_key.public_key().to_text().encode(), text.encode().splitlines()
    folder = tmp_path_factory.mktemp("minisign")
    assert minisign("-G", "-W", "-p", folder / "k.pub", "-s", folder / "k.key").returncode == 0
    (folder / "m").write_bytes(MESSAGE)
    legacy = ["-l"] if "legacy" in request.param else []
    options = ["-s", folder / "k.key", "-t", "name:student\trelease:7", *legacy]
    assert minisign("-S", *options, "-m", folder / "m").returncode == 0
    return (folder / "k.pub").read_bytes(), (folder / "m.minisig").read_bytes().splitlines()


@pytest.mark.parametrize("name", MUTATIONS)
def test_verify_signature__mutated_signature_gets_minisigns_verdict(
    name: str, signed: tuple[bytes, list[bytes]], minisign_accepts: Oracle, tmp_path: Path
) -> None:
    public_key, lines = signed
    signature = MUTATIONS[name](list(lines))
    verdict = minisign_accepts(public_key, MESSAGE, signature)
    assert _accepts(public_key, MESSAGE, signature, tmp_path) == verdict
    if name == "untouched":
        assert verdict


def test_verify_signature__any_changed_bit_gets_minisigns_verdict(
    signed: tuple[bytes, list[bytes]], minisign_accepts: Oracle, tmp_path: Path
) -> None:
    public_key, lines = signed
    signature = _join(*lines)
    accepted = []
    for position in range(len(signature)):
        changed = bytearray(signature)
        changed[position] ^= 1 << position % 8
        verdict = minisign_accepts(public_key, MESSAGE, bytes(changed))
        assert _accepts(public_key, MESSAGE, bytes(changed), tmp_path) == verdict, position
        if verdict:
            accepted.append(position)
    # What nothing signs: the untrusted comment, its line's end aside, and the very last line feed.
    untrusted = set(range(len("untrusted comment: "), len(lines[0])))
    assert set(accepted) <= untrusted | {len(signature) - 1} | _dropped_bits(lines)


def _dropped_bits(lines: list[bytes]) -> set[int]:
    ends = list(itertools.accumulate(len(line) + 1 for line in lines))
    return {ends[i] - 2 - (len(lines[i]) - len(lines[i].rstrip(b"="))) for i in (1, 3)}


@pytest.mark.parametrize(
    "message", [b"", MESSAGE[:-1], MESSAGE + b"\n", _flip(MESSAGE), MESSAGE.replace(b"\n", b"\r\n")]
)
def test_verify_signature__other_message_is_refused_as_by_minisign(
    message: bytes, signed: tuple[bytes, list[bytes]], minisign_accepts: Oracle, tmp_path: Path
) -> None:
    public_key, lines = signed
    assert not minisign_accepts(public_key, message, _join(*lines))
    assert not _accepts(public_key, message, _join(*lines), tmp_path)


PUBLIC_KEY_MUTATIONS: dict[str, Mutation] = {
    "untouched": lambda x: _join(*x),
    "other comment": lambda x: _join(b"anything", x[1]),
    "empty comment": lambda x: _join(b"", x[1]),
    "no comment": lambda x: _join(x[1]),
    "long comment": lambda x: _join(b"x" * 1022, x[1]),
    "comment too long": lambda x: _join(b"x" * 1023, x[1]),
    "comment far too long": lambda x: _join(b"x" * 5000, x[1]),
    "the key where a comment's buffer ends": lambda x: b"x" * 1023 + _join(x[1]),
    "CRLF": lambda x: b"".join(line + b"\r\n" for line in x),
    "no final line feed": lambda x: b"\n".join(x),
    "more lines": lambda x: _join(*x, b"anything"),
    "space after the key": lambda x: _join(x[0], x[1] + b" "),
    "two characters after the key": lambda x: _join(x[0], x[1] + b"AA"),
    "four characters after the key": lambda x: _join(x[0], x[1] + b"AAAA"),
    "NUL after the key": lambda x: _join(x[0], x[1] + b"\0A"),
    "CR after the key": lambda x: _join(x[0], x[1] + b"\rA"),
    "key cut": lambda x: _join(x[0], x[1][:-4]),
    "unknown algorithm": lambda x: _join(x[0], _edit(x[1], 0, lambda r: b"ED" + r[2:])),
    "other key id": lambda x: _join(x[0], _edit(x[1], 2, _flip)),
    "other point": lambda x: _join(x[0], _edit(x[1], 10, _flip)),
    "character outside base64": lambda x: _join(x[0], x[1][:-1] + b"!"),
    "empty": lambda x: b"",
    "comment only": lambda x: _join(x[0]),
}


@pytest.mark.parametrize("name", PUBLIC_KEY_MUTATIONS)
def test_load_public_key__mutated_file_gets_minisigns_verdict(
    name: str, signed: tuple[bytes, list[bytes]], minisign_accepts: Oracle, tmp_path: Path
) -> None:
    public_key, lines = signed
    mutated = PUBLIC_KEY_MUTATIONS[name](public_key.splitlines())
    verdict = minisign_accepts(mutated, MESSAGE, _join(*lines))
    assert _accepts(mutated, MESSAGE, _join(*lines), tmp_path) == verdict


def _small_order_points() -> list[bytes]:
    prime = 2**255 - 19
    eighth = bytes.fromhex("26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05")
    other_eighth = bytes.fromhex("c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a")
    ys = [1, prime - 1, 0, *(int.from_bytes(e, "little") for e in (eighth, other_eighth))]
    return [(y | sign << 255).to_bytes(32, "little") for y in ys for sign in (0, 1)]


def _openssl_takes(point: bytes, signature: bytes, data: bytes) -> bool:
    try:
        Ed25519PublicKey.from_public_bytes(point).verify(signature, data)
    except InvalidSignature:
        return False
    return True


def _forge(point: bytes) -> tuple[bytes, bytes]:
    """A message, and a signature of it that OpenSSL takes for a key of small order; nobody signed it."""
    halves = [r + bytes(32) for r in _small_order_points()]
    for number in range(100):
        message, comment = f"message {number}".encode(), f"comment {number}".encode()
        digest = hashlib.blake2b(message).digest()
        for first, second in itertools.product(halves, halves):
            if _openssl_takes(point, first, digest) and _openssl_takes(point, second, first + comment):
                lines = [b"untrusted comment: ", base64.b64encode(b"ED" + bytes(8) + first)]
                return message, _join(*lines, b"trusted comment: " + comment, base64.b64encode(second))
    pytest.fail("OpenSSL takes no such signature any more: the check that this tests can go")


@pytest.mark.parametrize("point", _small_order_points(), ids=bytes.hex)
def test_verify_signature__forgery_under_a_key_of_small_order_is_refused_as_by_minisign(
    point: bytes, minisign_accepts: Oracle, tmp_path: Path
) -> None:
    public_key = PublicKey(bytes(8), point).to_text().encode()
    message, signature = _forge(point)
    assert not minisign_accepts(public_key, message, signature)
    assert not _accepts(public_key, message, signature, tmp_path)


def test_sign__minisign_verifies_and_shows_the_comment(
    minisign: Run, secret_key: SecretKey, tmp_path: Path
) -> None:
    message = tmp_path / "m"
    message.write_bytes(b"x" * 3_000_000)
    comment = "name:Qwen · 千问\trelease:20260331080500"
    text = sign(message, secret_key, trusted_comment=comment)
    assert text == sign(message.read_bytes(), secret_key, trusted_comment=comment)
    (tmp_path / "m.minisig").write_text(text, encoding="utf-8")
    result = minisign("-V", "-P", secret_key.public_key().to_base64(), "-m", message)
    assert result.returncode == 0, result.stderr
    assert comment.encode() in result.stdout
    assert minisign("-V", "-H", "-P", secret_key.public_key().to_base64(), "-m", message).returncode == 0


def test_sign__longest_comments_are_within_minisigns_buffers(
    secret_key: SecretKey, minisign_accepts: Oracle
) -> None:
    longest = sign(MESSAGE, secret_key, trusted_comment="t" * 8173, untrusted_comment="u" * 1003)
    assert minisign_accepts(secret_key.public_key().to_text().encode(), MESSAGE, longest.encode())
    with pytest.raises(SignatureError, match="trusted comment is longer than 8173"):
        sign(MESSAGE, secret_key, trusted_comment="t" * 8174)
    with pytest.raises(SignatureError, match="untrusted comment is longer than 1003"):
        sign(MESSAGE, secret_key, trusted_comment="t", untrusted_comment="u" * 1004)


@pytest.mark.parametrize("comment", ["two\nlines", "carriage\rreturn", "nul\0", "escape\x1b[31m", "\u2028"])
def test_sign__comment_that_is_not_one_printable_line_is_refused(comment: str, secret_key: SecretKey) -> None:
    with pytest.raises(SignatureError, match="control character"):
        sign(MESSAGE, secret_key, trusted_comment=comment)


def test_signature__trusted_comment_is_safe_to_print(minisign: Run, tmp_path: Path) -> None:
    minisign("-G", "-W", "-p", tmp_path / "k.pub", "-s", tmp_path / "k.key")
    (tmp_path / "m").write_bytes(MESSAGE)
    minisign("-S", "-s", tmp_path / "k.key", "-t", "a\tb\x1b[31mc", "-m", tmp_path / "m")
    signature = parse_signature((tmp_path / "m.minisig").read_bytes())
    assert signature.trusted_comment == "a\tb\\x1b[31mc"


def test_verify_signature__other_key_is_named(secret_key: SecretKey) -> None:
    _, other = generate_key_pair()
    text = sign(MESSAGE, secret_key, trusted_comment="")
    with pytest.raises(SignatureError, match=rf"with key {secret_key.key_id}, .* is {other.key_id}"):
        verify_signature(MESSAGE, text, other)


def test_verify_signature__missing_file_is_an_edgekit_error(secret_key: SecretKey, tmp_path: Path) -> None:
    text = sign(MESSAGE, secret_key, trusted_comment="")
    with pytest.raises(SignatureError, match="absent: cannot read it"):
        verify_signature(tmp_path / "absent", text, secret_key.public_key())


@pytest.fixture
def keys() -> list[PublicKey]:
    return [generate_key_pair()[1] for _ in range(3)]


@pytest.fixture
def root(tmp_path: Path, keys: list[PublicKey]) -> Path:
    """A root directory with the third key installed."""
    (tmp_path / "root/etc/edgekit").mkdir(parents=True)
    (tmp_path / "root/etc/edgekit/edgekit.pub").write_text(keys[2].to_text(), encoding="ascii")
    return tmp_path / "root"


def test_find_public_key__option_then_environment_then_installed(keys: list[PublicKey], root: Path) -> None:
    environ = {"EDGEKIT_PUBLIC_KEY": keys[1].to_base64()}
    assert find_public_key(keys[0].to_base64(), environ, root) == keys[0]
    assert find_public_key(None, environ, root) == keys[1]
    assert find_public_key(None, {}, root) == keys[2]
    assert find_public_key(None, {"EDGEKIT_PUBLIC_KEY": ""}, root) == keys[2]


def test_find_public_key__option_and_environment_take_paths(
    keys: list[PublicKey], root: Path, tmp_path: Path
) -> None:
    path = tmp_path / "team.pub"
    path.write_text(keys[0].to_text(), encoding="ascii")
    assert find_public_key(str(path), {}, root) == keys[0]
    assert find_public_key(None, {"EDGEKIT_PUBLIC_KEY": str(path)}, root) == keys[0]


def test_find_public_key__none_anywhere_is_none(tmp_path: Path) -> None:
    assert find_public_key(None, {}, tmp_path) is None


def test_find_public_key__bad_key_is_never_skipped(root: Path, keys: list[PublicKey]) -> None:
    with pytest.raises(SignatureError, match="no-such"):
        find_public_key("no-such.pub", {}, root)
    with pytest.raises(SignatureError, match="no-such"):
        find_public_key(None, {"EDGEKIT_PUBLIC_KEY": "no-such.pub"}, root)
    installed = root / "etc/edgekit/edgekit.pub"
    installed.unlink()
    installed.symlink_to("nowhere.pub")
    with pytest.raises(SignatureError, match=r"edgekit\.pub: cannot read the public key"):
        find_public_key(None, {}, root)
