from __future__ import annotations

import hashlib
import json
import os
import random
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from full_disk import file_size_limited

from edgekit.bundle.bundle import Bundle, open_bundle, seal, verify_bundle
from edgekit.bundle.keys import PublicKey, SecretKey, generate_key_pair, load_public_key
from edgekit.bundle.manifest import ManifestFields
from edgekit.bundle.signing import sign
from edgekit.errors import BundleError, IntegrityError, ManifestError, SignatureError

Run = Callable[..., "subprocess.CompletedProcess[bytes]"]


def _names(directory: Path) -> set[str]:
    return {str(path.relative_to(directory)) for path in directory.rglob("*") if not path.is_dir()}


def test_seal__bundle_verifies(bundle: Bundle, public_key: PublicKey) -> None:
    verified = verify_bundle(bundle.path, public_key)
    assert verified == bundle
    assert verified.signed_by == public_key.key_id
    assert verified.digest == hashlib.sha256((bundle.path / "manifest.json").read_bytes()).hexdigest()
    assert verified.entry_path == bundle.path / "model.gguf"
    assert open_bundle(bundle.path).manifest == bundle.manifest
    assert open_bundle(bundle.path).signed_by is None


def test_seal__lists_every_file_with_size_and_hash(bundle: Bundle) -> None:
    listed = {entry.path: entry for entry in bundle.manifest.files}
    assert list(listed) == [".notes", "LICENSE", "model.gguf", "tokenizer/tokenizer.json"]
    for path, entry in listed.items():
        content = (bundle.path / path).read_bytes()
        assert (entry.size_bytes, entry.sha256) == (len(content), hashlib.sha256(content).hexdigest())
    assert _names(bundle.path) == {*listed, "manifest.json", "manifest.json.minisig"}


def test_seal__minisign_verifies_the_manifest(bundle: Bundle, public_key: PublicKey, minisign: Run) -> None:
    result = minisign("-V", "-P", public_key.to_base64(), "-m", bundle.path / "manifest.json")
    assert result.returncode == 0, result.stderr
    assert b"name:SmolLM2-135M-Instruct\trelease:20260331080500" in result.stdout
    assert b"timestamp:1774944300\t" in result.stdout


@pytest.mark.parametrize("legacy", [False, True], ids=["prehashed", "legacy"])
def test_verify_bundle__manifest_signed_by_minisign(
    legacy: bool, directory: Path, fields: ManifestFields, minisign: Run, tmp_path: Path
) -> None:
    seal(directory, fields, None)
    assert minisign("-G", "-W", "-p", tmp_path / "k.pub", "-s", tmp_path / "k.key").returncode == 0
    options = ["-l"] if legacy else []
    minisign("-S", *options, "-s", tmp_path / "k.key", "-m", directory / "manifest.json")
    assert minisign("-V", "-p", tmp_path / "k.pub", "-m", directory / "manifest.json").returncode == 0
    public_key = load_public_key(tmp_path / "k.pub")
    assert verify_bundle(directory, public_key).signed_by == public_key.key_id


def test_seal__same_files_and_fields_give_the_same_bundle(
    bundle: Bundle, fields: ManifestFields, secret_key: SecretKey
) -> None:
    first = {name: (bundle.path / name).read_bytes() for name in ("manifest.json", "manifest.json.minisig")}
    for name in first:
        (bundle.path / name).unlink()
    again = seal(bundle.path, fields, secret_key)
    assert again.digest == bundle.digest
    assert {name: (bundle.path / name).read_bytes() for name in first} == first


@pytest.mark.parametrize("left", ["manifest.json", "manifest.json.minisig"])
def test_seal__sealed_directory_is_refused(
    left: str, bundle: Bundle, fields: ManifestFields, secret_key: SecretKey
) -> None:
    for name in {"manifest.json", "manifest.json.minisig"} - {left}:
        (bundle.path / name).unlink()
    before = (bundle.path / left).read_bytes()
    with pytest.raises(BundleError, match=f"is sealed already: it has a {left}"):
        seal(bundle.path, fields, secret_key)
    assert (bundle.path / left).read_bytes() == before


def test_seal__without_a_key_writes_no_signature(
    directory: Path, fields: ManifestFields, public_key: PublicKey
) -> None:
    bundle = seal(directory, fields, None)
    assert bundle.signed_by is None
    assert "manifest.json.minisig" not in _names(directory)
    assert verify_bundle(directory, None) == bundle
    with pytest.raises(SignatureError, match="is not signed") as caught:
        verify_bundle(directory, public_key)
    assert "--sign-key" in (caught.value.hint or "")


def test_seal__entry_must_be_there(directory: Path, fields: ManifestFields) -> None:
    before = _names(directory)
    with pytest.raises(ManifestError, match=r"the entry absent\.gguf is not in it"):
        seal(directory, fields.model_copy(update={"entry": "absent.gguf"}), None)
    assert _names(directory) == before


def test_seal__symbolic_link_is_refused(directory: Path, fields: ManifestFields) -> None:
    (directory / "config.json").symlink_to("tokenizer/tokenizer.json")
    with pytest.raises(IntegrityError, match=r"config\.json is a symbolic link"):
        seal(directory, fields, None)


@pytest.mark.parametrize("name", [b"MODEL.gguf", b"new\nline", b"latin-\xe9", b"Manifest.json"])
def test_seal__file_name_that_no_manifest_may_hold_is_refused(
    name: bytes, directory: Path, fields: ManifestFields
) -> None:
    Path(os.fsdecode(os.fsencode(directory) + b"/" + name)).write_bytes(b"")
    with pytest.raises((IntegrityError, ManifestError)):
        seal(directory, fields, None)
    assert "manifest.json" not in _names(directory)


def test_seal__missing_directory_is_an_edgekit_error(tmp_path: Path, fields: ManifestFields) -> None:
    with pytest.raises(BundleError, match="absent"):
        seal(tmp_path / "absent", fields, None)


def test_seal__interrupted_leaves_the_directory_as_it_was(
    directory: Path, fields: ManifestFields, secret_key: SecretKey
) -> None:
    before = _names(directory)

    def interrupt(done: int, total: int) -> None:
        if done == total:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        seal(directory, fields, secret_key, progress=interrupt)
    assert _names(directory) == before


@pytest.mark.parametrize("limit_bytes", [100, 1000], ids=["at the signature", "at the manifest"])
def test_seal__failed_write_leaves_the_directory_as_it_was(
    limit_bytes: int, directory: Path, fields: ManifestFields, secret_key: SecretKey
) -> None:
    before = _names(directory)
    refused = pytest.raises(BundleError, match="cannot write the manifest: File too large")
    with file_size_limited(limit_bytes), refused:
        seal(directory, fields, secret_key)
    assert _names(directory) == before


@pytest.mark.parametrize("path", ["model.gguf", "tokenizer/tokenizer.json", ".notes"])
def test_verify_bundle__flipped_bit_names_the_file(path: str, bundle: Bundle, public_key: PublicKey) -> None:
    file = bundle.path / path
    content = bytearray(file.read_bytes())
    generator = random.Random(path)
    for position in {0, len(content) - 1, generator.randrange(len(content))}:
        content[position] ^= 1 << generator.randrange(8)
        file.write_bytes(content)
        for key in (public_key, None):
            with pytest.raises(IntegrityError, match=f"{path} was changed"):
                verify_bundle(bundle.path, key)


@pytest.mark.parametrize("path", ["model.gguf", "tokenizer/tokenizer.json", ".notes", "LICENSE"])
def test_verify_bundle__longer_or_shorter_file_is_named(
    path: str, bundle: Bundle, public_key: PublicKey
) -> None:
    content = (bundle.path / path).read_bytes()
    (bundle.path / path).write_bytes(content + b"\0")
    with pytest.raises(IntegrityError, match=f"{path} has {len(content) + 1} bytes, the manifest says"):
        verify_bundle(bundle.path, public_key)
    if content:
        (bundle.path / path).write_bytes(content[:-1])
        with pytest.raises(IntegrityError, match=f"{path} has {len(content) - 1} bytes"):
            verify_bundle(bundle.path, public_key)


@pytest.mark.parametrize("path", ["model.gguf", "tokenizer/tokenizer.json", ".notes", "LICENSE"])
def test_verify_bundle__missing_file_is_named(path: str, bundle: Bundle, public_key: PublicKey) -> None:
    (bundle.path / path).unlink()
    with pytest.raises(IntegrityError, match=f"{path} is missing"):
        verify_bundle(bundle.path, public_key)


@pytest.mark.parametrize(
    "path",
    ["extra.bin", ".hidden", "tokenizer/extra", "new/deep/file", ".git/config", "sub/manifest.json",
     "manifest.json~", "MANIFEST.json", "manifest.json.minisig.bak"],
)  # fmt: skip
def test_verify_bundle__extra_file_is_named(path: str, bundle: Bundle, public_key: PublicKey) -> None:
    (bundle.path / path).parent.mkdir(parents=True, exist_ok=True)
    (bundle.path / path).write_bytes(b"")
    for key in (public_key, None):
        with pytest.raises(IntegrityError, match=f"{path} is not in the manifest"):
            verify_bundle(bundle.path, key)


def test_verify_bundle__extra_file_that_a_terminal_must_not_show_is_escaped(bundle: Bundle) -> None:
    (bundle.path / "a\x1b[2Jb").write_bytes(b"")
    with pytest.raises(IntegrityError) as caught:
        verify_bundle(bundle.path, None)
    assert "'a\\x1b[2Jb' is not in the manifest" in str(caught.value)


def test_verify_bundle__several_extra_files_are_counted(bundle: Bundle) -> None:
    for name in ("x1", "x2", "x3"):
        (bundle.path / name).write_bytes(b"")
    with pytest.raises(IntegrityError, match="x1 and 2 more are not in the manifest"):
        verify_bundle(bundle.path, None)


def test_verify_bundle__files_hidden_behind_the_signatures_name_are_found(
    directory: Path, fields: ManifestFields
) -> None:
    seal(directory, fields, None)
    (directory / "manifest.json.minisig").mkdir()
    (directory / "manifest.json.minisig" / "payload").write_bytes(b"x")
    with pytest.raises(IntegrityError, match=r"manifest\.json\.minisig/payload is not in the manifest"):
        verify_bundle(directory, None)


@pytest.mark.parametrize("path", ["model.gguf", "tokenizer", "manifest.json", "manifest.json.minisig"])
def test_verify_bundle__symbolic_link_in_place_of_the_same_content_is_refused(
    path: str, bundle: Bundle, public_key: PublicKey, tmp_path: Path
) -> None:
    (bundle.path / path).rename(tmp_path / "moved")
    (bundle.path / path).symlink_to(tmp_path / "moved")
    with pytest.raises(BundleError, match=rf"{path}.* is a symbolic link"):
        verify_bundle(bundle.path, public_key)
    with pytest.raises(BundleError, match=rf"{path}.* is a symbolic link"):
        verify_bundle(bundle.path, None)


@pytest.mark.parametrize("target", ["model.gguf", "tokenizer", "nowhere", "/etc/passwd"])
def test_verify_bundle__extra_symbolic_link_is_refused(target: str, bundle: Bundle) -> None:
    (bundle.path / "link").symlink_to(target)
    with pytest.raises(IntegrityError, match="link is a symbolic link"):
        verify_bundle(bundle.path, None)


@pytest.mark.parametrize("path", ["model.gguf", "extra", "manifest.json", "manifest.json.minisig"])
def test_verify_bundle__fifo_is_refused_without_waiting_for_it(
    path: str, bundle: Bundle, public_key: PublicKey
) -> None:
    (bundle.path / path).unlink(missing_ok=True)
    os.mkfifo(bundle.path / path)
    with pytest.raises(BundleError, match=f"{path}.*(neither a file nor a directory|not a regular file)"):
        verify_bundle(bundle.path, public_key)


def test_verify_bundle__socket_is_refused(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(bundle.path)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("s")
        with pytest.raises(IntegrityError, match="s is neither a file nor a directory"):
            verify_bundle(bundle.path, None)


def test_verify_bundle__directory_in_place_of_a_file_is_refused(bundle: Bundle) -> None:
    (bundle.path / "model.gguf").unlink()
    (bundle.path / "model.gguf").mkdir()
    with pytest.raises(IntegrityError, match=r"model\.gguf is missing"):
        verify_bundle(bundle.path, None)


def test_verify_bundle__empty_directory_does_not_matter(bundle: Bundle, public_key: PublicKey) -> None:
    (bundle.path / "lost+found").mkdir()
    verify_bundle(bundle.path, public_key)


def test_verify_bundle__through_a_link_to_the_bundle(
    bundle: Bundle, public_key: PublicKey, tmp_path: Path
) -> None:
    (tmp_path / "current").symlink_to(bundle.path)
    assert verify_bundle(tmp_path / "current", public_key).digest == bundle.digest


def test_verify_bundle__signature_is_checked_before_the_manifest_is_parsed(
    bundle: Bundle, public_key: PublicKey
) -> None:
    (bundle.path / "manifest.json").write_bytes(b"{ not JSON")
    (bundle.path / "model.gguf").unlink()
    with pytest.raises(SignatureError, match="is not for this content"):
        verify_bundle(bundle.path, public_key)
    with pytest.raises(ManifestError, match=r"manifest\.json: not valid JSON"):
        verify_bundle(bundle.path, None)


def test_verify_bundle__manifest_rewritten_for_a_changed_file_is_refused(
    bundle: Bundle, public_key: PublicKey
) -> None:
    (bundle.path / "LICENSE").write_bytes(b"mine now")
    document = json.loads((bundle.path / "manifest.json").read_bytes())
    for entry in document["files"]:
        if entry["path"] == "LICENSE":
            entry.update(size_bytes=8, sha256=hashlib.sha256(b"mine now").hexdigest())
    (bundle.path / "manifest.json").write_text(json.dumps(document))
    verify_bundle(bundle.path, None)
    with pytest.raises(SignatureError, match="is not for this content"):
        verify_bundle(bundle.path, public_key)


def test_verify_bundle__same_manifest_in_other_bytes_is_refused(
    bundle: Bundle, public_key: PublicKey
) -> None:
    path = bundle.path / "manifest.json"
    path.write_bytes(path.read_bytes() + b"\n")
    with pytest.raises(SignatureError, match="is not for this content"):
        verify_bundle(bundle.path, public_key)


def test_verify_bundle__signed_manifest_with_an_unsafe_path_is_refused(
    bundle: Bundle, secret_key: SecretKey, public_key: PublicKey
) -> None:
    # A signature says who made the bundle, not that it may reach out of its directory.
    document = json.loads((bundle.path / "manifest.json").read_bytes())
    document["files"][0]["path"] = "../../etc/shadow"
    data = json.dumps(document).encode()
    (bundle.path / "manifest.json").write_bytes(data)
    (bundle.path / "manifest.json.minisig").write_text(sign(data, secret_key, trusted_comment=""))
    with pytest.raises(ManifestError, match=r"files\.0\.path"):
        verify_bundle(bundle.path, public_key)


def test_verify_bundle__other_key_is_refused(bundle: Bundle) -> None:
    _, other = generate_key_pair()
    with pytest.raises(SignatureError, match=f"the public key is {other.key_id}"):
        verify_bundle(bundle.path, other)


def test_verify_bundle__huge_manifest_is_refused(bundle: Bundle) -> None:
    with (bundle.path / "manifest.json").open("r+b") as stream:
        stream.truncate(17 * 2**20)
    with pytest.raises(ManifestError, match="longer than 16777216 bytes"):
        verify_bundle(bundle.path, None)


@pytest.mark.parametrize("what", ["absent", "empty directory", "file"])
def test_open_bundle__what_is_no_bundle_is_explained(what: str, tmp_path: Path) -> None:
    path = tmp_path / "x"
    if what == "file":
        path.write_bytes(b"GGUF")
    elif what == "empty directory":
        path.mkdir()
    with pytest.raises(ManifestError, match=r"x: no manifest\.json in it") as caught:
        open_bundle(path)
    assert "edgekit export" in (caught.value.hint or "")


def test_verify_bundle__progress_reaches_the_total(bundle: Bundle, public_key: PublicKey) -> None:
    steps: list[tuple[int, int]] = []
    verify_bundle(bundle.path, public_key, progress=lambda done, total: steps.append((done, total)))
    total = bundle.manifest.size_bytes
    assert steps[-1] == (total, total)
    assert [done for done, _ in steps] == sorted(done for done, _ in steps)
    assert len(steps) >= total // 2**20
