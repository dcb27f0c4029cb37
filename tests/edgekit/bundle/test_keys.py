from __future__ import annotations

import base64
import os
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from edgekit.bundle.keys import (
    KDF_INTERACTIVE,
    KDF_SENSITIVE,
    KdfLimits,
    SecretKey,
    generate_key_pair,
    load_public_key,
    load_secret_key,
    read_password,
    write_key_pair,
)
from edgekit.bundle.signing import sign, verify_signature
from edgekit.errors import SignatureError

Run = Callable[..., "subprocess.CompletedProcess[bytes]"]


def _write(path: Path, secret_key: SecretKey, password: str | None = None) -> Path:
    # The cheap cost: minisign reads it from the file, and these tests derive keys often.
    path.write_text(secret_key.to_text(password, limits=KDF_INTERACTIVE), encoding="ascii")
    return path


def _edit(path: Path, position: int, replacement: bytes) -> None:
    comment, encoded = path.read_bytes().splitlines()
    raw = bytearray(base64.b64decode(encoded))
    raw[position : position + len(replacement)] = replacement
    path.write_bytes(comment + b"\n" + base64.b64encode(raw) + b"\n")


def _minisign_signs(minisign: Run, key: Path, stdin: bytes = b"") -> bool:
    message = key.with_name("signed")
    message.write_bytes(b"content")
    result = minisign("-S", "-s", key, "-m", message, stdin=stdin)
    return result.returncode == 0


@pytest.mark.parametrize("password", [None, "correct horse", "", "ключ ü", "x" * 1022])
def test_secret_key__minisign_signs_with_ours(password: str | None, minisign: Run, tmp_path: Path) -> None:
    secret_key, public_key = generate_key_pair()
    key = _write(tmp_path / "k.key", secret_key, password)
    assert _minisign_signs(minisign, key, stdin=f"{password or ''}\n".encode())
    signature = (tmp_path / "signed.minisig").read_bytes()
    assert verify_signature(b"content", signature, public_key).key_id == secret_key.key_id
    assert load_secret_key(key, password) == secret_key


def test_secret_key__minisign_refuses_our_key_with_a_wrong_password(minisign: Run, tmp_path: Path) -> None:
    key = _write(tmp_path / "k.key", generate_key_pair()[0], "right")
    assert not _minisign_signs(minisign, key, stdin=b"wrong\n")
    with pytest.raises(SignatureError, match="wrong password"):
        load_secret_key(key, "wrong")


def test_secret_key__minisign_makes_the_same_public_key(minisign: Run, tmp_path: Path) -> None:
    secret_key, public_key = generate_key_pair()
    key = _write(tmp_path / "k.key", secret_key)
    assert minisign("-R", "-s", key, "-p", tmp_path / "again.pub").returncode == 0
    assert load_public_key(tmp_path / "again.pub") == public_key
    assert (tmp_path / "again.pub").read_text().splitlines()[1] == public_key.to_text().splitlines()[1]


def test_load_secret_key__unencrypted_key_of_minisign(minisign: Run, tmp_path: Path) -> None:
    assert minisign("-G", "-W", "-p", tmp_path / "k.pub", "-s", tmp_path / "k.key").returncode == 0
    secret_key = load_secret_key(tmp_path / "k.key")
    assert secret_key.public_key() == load_public_key(tmp_path / "k.pub")
    assert load_secret_key(tmp_path / "k.key", "not needed") == secret_key


@pytest.mark.slow
def test_load_secret_key__encrypted_key_of_minisign(minisign: Run, tmp_path: Path) -> None:
    options = ("-p", tmp_path / "k.pub", "-s", tmp_path / "k.key")
    assert minisign("-G", *options, stdin=b"pass word\npass word\n").returncode == 0
    secret_key = load_secret_key(tmp_path / "k.key", "pass word")
    assert secret_key.public_key() == load_public_key(tmp_path / "k.pub")
    (tmp_path / "m").write_bytes(b"content")
    (tmp_path / "m.minisig").write_text(sign(b"content", secret_key, trusted_comment="by edgekit"))
    assert minisign("-V", "-p", tmp_path / "k.pub", "-m", tmp_path / "m").returncode == 0


@pytest.mark.slow
def test_load_secret_key__password_changed_and_removed_by_minisign(minisign: Run, tmp_path: Path) -> None:
    secret_key, _ = generate_key_pair()
    key = _write(tmp_path / "k.key", secret_key, "old")
    assert minisign("-C", "-s", key, stdin=b"old\nnew\nnew\n").returncode == 0
    assert load_secret_key(key, "new") == secret_key
    assert minisign("-C", "-W", "-s", key, stdin=b"new\n").returncode == 0
    assert load_secret_key(key) == secret_key


def test_load_secret_key__encrypted_key_needs_a_password(tmp_path: Path) -> None:
    key = _write(tmp_path / "k.key", generate_key_pair()[0], "secret")
    with pytest.raises(SignatureError, match="is encrypted") as caught:
        load_secret_key(key)
    assert "--password-file" in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("position", "replacement"),
    [(0, b"ED"), (2, b"Xx"), (4, b"B3")],
    ids=["signature algorithm", "key derivation", "checksum algorithm"],
)
def test_load_secret_key__unknown_kind_is_refused_as_by_minisign(
    position: int, replacement: bytes, minisign: Run, tmp_path: Path
) -> None:
    key = _write(tmp_path / "k.key", generate_key_pair()[0])
    _edit(key, position, replacement)
    assert not _minisign_signs(minisign, key)
    with pytest.raises(SignatureError, match="not known"):
        load_secret_key(key)


@pytest.mark.parametrize("position", [6, 54, 62, 94, 126], ids=["salt", "id", "seed", "point", "checksum"])
def test_load_secret_key__damaged_encrypted_key_is_refused_as_by_minisign(
    position: int, minisign: Run, tmp_path: Path
) -> None:
    key = _write(tmp_path / "k.key", generate_key_pair()[0], "secret")
    raw = base64.b64decode(key.read_bytes().splitlines()[1])
    _edit(key, position, bytes([raw[position] ^ 1]))
    assert not _minisign_signs(minisign, key, stdin=b"secret\n")
    with pytest.raises(SignatureError, match="wrong password"):
        load_secret_key(key, "secret")


@pytest.mark.parametrize("position", [54, 62, 94, 126], ids=["id", "seed", "point", "checksum"])
def test_load_secret_key__damaged_unencrypted_key_is_refused(position: int, tmp_path: Path) -> None:
    # minisign does not look; it would go on and sign what no public key verifies.
    key = _write(tmp_path / "k.key", generate_key_pair()[0])
    raw = base64.b64decode(key.read_bytes().splitlines()[1])
    _edit(key, position, bytes([raw[position] ^ 1]))
    with pytest.raises(SignatureError, match="damaged"):
        load_secret_key(key)


def test_load_secret_key__halves_that_disagree_are_refused_without_a_checksum(tmp_path: Path) -> None:
    key = _write(tmp_path / "k.key", generate_key_pair()[0])
    _edit(key, 126, bytes(32))
    load_secret_key(key)
    _edit(key, 94, bytes(32))
    with pytest.raises(SignatureError, match="its public half is not that of its secret half"):
        load_secret_key(key)


@pytest.mark.parametrize(
    "mutate",
    [
        lambda content: b"",
        lambda content: content.splitlines()[0],
        lambda content: content[:-5] + b"\n",
        lambda content: content[:-1] + b"AAAA\n",
        lambda content: content.replace(b"RW", b"R*", 1),
        lambda content: content.splitlines()[0] + b"\n\n" + content.splitlines()[1],
    ],
    ids=["empty", "comment only", "cut", "longer", "not base64", "blank line"],
)
def test_load_secret_key__malformed_file_is_refused_as_by_minisign(
    mutate: Callable[[bytes], bytes], minisign: Run, tmp_path: Path
) -> None:
    key = _write(tmp_path / "k.key", generate_key_pair()[0])
    key.write_bytes(mutate(key.read_bytes()))
    assert not _minisign_signs(minisign, key)
    with pytest.raises(SignatureError, match=r"k\.key: the secret key"):
        load_secret_key(key)


def test_load_secret_key__public_key_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "k.pub").write_text(generate_key_pair()[1].to_text())
    with pytest.raises(SignatureError, match="not the base64 of 158 bytes"):
        load_secret_key(tmp_path / "k.pub")


def test_load_secret_key__cost_beyond_all_bounds_is_refused(tmp_path: Path) -> None:
    key = _write(tmp_path / "k.key", generate_key_pair()[0], "secret")
    _edit(key, 38, (2**63).to_bytes(8, "little") + (2**62).to_bytes(8, "little"))
    with pytest.raises(SignatureError, match="out of bounds"):
        load_secret_key(key, "secret")


@pytest.mark.parametrize(
    ("limits", "parameters"),
    [
        # crypto_pwhash_scryptsalsa208sha256_{OPSLIMIT,MEMLIMIT}_{SENSITIVE,INTERACTIVE,MIN}
        (KDF_SENSITIVE, (2**20, 8, 1)),
        (KDF_INTERACTIVE, (2**14, 8, 1)),
        (KdfLimits(32768, 16777216), (2**10, 8, 1)),
        (KdfLimits(0, 16777216), (2**10, 8, 1)),
        (KdfLimits(33554432, 16777216), (2**14, 8, 64)),
    ],
)
def test_kdf_limits__are_turned_into_libsodiums_parameters(
    limits: KdfLimits, parameters: tuple[int, int, int]
) -> None:
    assert limits.scrypt_parameters() == parameters


@pytest.mark.parametrize(
    "limits", [KdfLimits(32768, 16777216), KdfLimits(2_000_000, 3_000_000), KdfLimits(1_000_000, 2**24)]
)
def test_kdf_limits__minisign_derives_the_same_key(limits: KdfLimits, minisign: Run, tmp_path: Path) -> None:
    secret_key, _ = generate_key_pair()
    (tmp_path / "k.key").write_text(secret_key.to_text("secret", limits=limits))
    assert _minisign_signs(minisign, tmp_path / "k.key", stdin=b"secret\n")
    assert load_secret_key(tmp_path / "k.key", "secret") == secret_key


@pytest.mark.parametrize("password", ["two\nlines", "nul\0", "x" * 1024])
def test_secret_key__password_that_minisign_cannot_read_is_refused(password: str) -> None:
    with pytest.raises(SignatureError, match="one line of at most 1023 bytes"):
        generate_key_pair()[0].to_text(password, limits=KDF_INTERACTIVE)


def test_secret_key__repr_keeps_the_seed_to_itself() -> None:
    secret_key = SecretKey(bytes(8), b"\xabSEED" * 6 + b"xx")
    assert "SEED" not in repr(secret_key)


def test_load_public_key__text_and_file_are_the_same(tmp_path: Path) -> None:
    _, public_key = generate_key_pair()
    path = tmp_path / "k.pub"
    path.write_text(public_key.to_text())
    assert load_public_key(public_key.to_base64()) == load_public_key(path) == load_public_key(str(path))


def test_load_public_key__neither_file_nor_key_says_what_to_give() -> None:
    with pytest.raises(SignatureError, match=r"RWshort: cannot read the public key: No such file") as caught:
        load_public_key("RWshort")
    assert "base64" in (caught.value.hint or "")


def test_load_public_key__secret_key_file_is_refused(tmp_path: Path) -> None:
    key = _write(tmp_path / "k.key", generate_key_pair()[0])
    with pytest.raises(SignatureError, match="not the base64 of 42 bytes"):
        load_public_key(key)


def test_write_key_pair__secret_key_is_for_its_owner_only(tmp_path: Path) -> None:
    secret_key, public_key = generate_key_pair()
    before = os.umask(0)
    try:
        write_key_pair(secret_key, tmp_path / "new/k.key", tmp_path / "new/k.pub")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "new/k.key").stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o700
    assert load_secret_key(tmp_path / "new/k.key") == secret_key
    assert load_public_key(tmp_path / "new/k.pub") == public_key


@pytest.mark.parametrize("existing", ["k.key", "k.pub"])
def test_write_key_pair__existing_file_is_kept(existing: str, tmp_path: Path) -> None:
    (tmp_path / existing).write_text("precious")
    with pytest.raises(SignatureError, match=f"{existing} is there already"):
        write_key_pair(generate_key_pair()[0], tmp_path / "k.key", tmp_path / "k.pub")
    assert [path.name for path in tmp_path.iterdir()] == [existing]
    assert (tmp_path / existing).read_text() == "precious"


def test_write_key_pair__half_a_pair_is_not_left(tmp_path: Path) -> None:
    with pytest.raises(SignatureError, match="cannot write the key pair"):
        write_key_pair(generate_key_pair()[0], tmp_path / "k.key", tmp_path / "absent" / "k.pub")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("content", "password"),
    [
        (b"secret", "secret"),
        (b"secret\n", "secret"),
        (b"se cret \r\nmore\n", "se cret "),
        (b"\xff\n", "\udcff"),
    ],
)
def test_read_password__is_the_first_line(content: bytes, password: str, tmp_path: Path) -> None:
    (tmp_path / "password").write_bytes(content)
    assert read_password(tmp_path / "password") == password


@pytest.mark.parametrize("content", [b"", b"\n", b"\nsecret\n"])
def test_read_password__empty_first_line_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "password").write_bytes(content)
    with pytest.raises(SignatureError, match="the first line is empty"):
        read_password(tmp_path / "password")


def test_secret_key__password_in_any_encoding_goes_through_minisign(minisign: Run, tmp_path: Path) -> None:
    (tmp_path / "password").write_bytes(b"caf\xe9\n")
    secret_key, _ = generate_key_pair()
    key = _write(tmp_path / "k.key", secret_key, read_password(tmp_path / "password"))
    assert _minisign_signs(minisign, key, stdin=b"caf\xe9\n")
