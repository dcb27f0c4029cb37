"""`edgekit keygen` and `edgekit verify` as a user runs them: processes, exit codes, both streams."""

from __future__ import annotations

import json
import os
import pty
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgekit.bundle.bundle import Bundle, seal
from edgekit.bundle.keys import SecretKey, generate_key_pair, load_public_key, load_secret_key
from edgekit.bundle.manifest import ManifestFields, PlanRecord, ProfileRef, SourceRecord
from edgekit.facts import ModelFacts
from edgekit.profiles import ServeSettings

Run = Callable[..., "subprocess.CompletedProcess[str]"]

COMMAND = [sys.executable, "-c", "from edgekit.cli.main import main; main()"]

no_key_installed = pytest.mark.skipif(
    Path("/etc/edgekit/edgekit.pub").exists(), reason="this machine trusts a key of its own"
)


@pytest.fixture
def edgekit(tmp_path: Path) -> Run:
    """Runs the command in an empty directory, with no key in the environment but those of `keys`."""

    def run(*arguments: str | Path, **keys: str) -> subprocess.CompletedProcess[str]:
        environ = {name: value for name, value in os.environ.items() if not name.startswith("EDGEKIT_")}
        return subprocess.run(
            [*COMMAND, *(str(argument) for argument in arguments)],
            env={**environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), **keys},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    return run


@pytest.fixture
def secret_key() -> SecretKey:
    return generate_key_pair()[0]


@pytest.fixture
def bundle(tmp_path: Path, secret_key: SecretKey) -> Bundle:
    directory = tmp_path / "bundle"
    directory.mkdir()
    (directory / "model.gguf").write_bytes(b"GGUF" + bytes(2**20))
    (directory / "LICENSE").write_text("Apache-2.0\n")
    fields = ManifestFields(
        name="student",
        release=7,
        created_utc="2026-03-31T08:05:00Z",
        runtime="llama.cpp",
        format="gguf",
        entry="model.gguf",
        model=ModelFacts(
            name="student",
            architecture="llama",
            parameters=1000,
            weight_bytes=1000,
            bytes_per_token=1000,
            quantization="Q4_1",
            layers=1,
            embedding_length=8,
            feed_forward_length=8,
            attention_heads=1,
            attention_kv_heads=1,
            head_length=8,
            vocabulary=10,
            context_train_tokens=128,
            tied_embeddings=True,
        ),
        profile=ProfileRef(name="host", sha256="ab" * 32),
        plan=PlanRecord(
            quantization="Q4_1",
            conversion="copied",
            serve=ServeSettings(threads=None, context_tokens=128, slots=1),
            forecast=None,
        ),
        source=SourceRecord(
            name="student.gguf", kind="gguf", sha256=None, revision=None, license=None, base_model=None
        ),
        tools={},
    )
    return seal(directory, fields, secret_key)


def _document(result: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    assert result.stderr == ""
    assert result.stdout.count("\n") == 1
    document = json.loads(result.stdout)
    assert isinstance(document, dict)
    return document


def _minisign() -> str:
    program = shutil.which("minisign")
    assert program, "these tests compare with the stock minisign: apt-get install minisign"
    return program


def test_keygen__pair_signs_with_minisign_and_verifies(edgekit: Run, tmp_path: Path) -> None:
    result = edgekit("keygen", "--out", "keys/team")
    assert result.returncode == 0, result.stderr
    secret, public = tmp_path / "keys/team.key", tmp_path / "keys/team.pub"
    assert stat.S_IMODE(secret.stat().st_mode) == 0o600
    assert load_secret_key(secret).public_key() == load_public_key(public)
    assert load_public_key(public).to_base64() in result.stdout
    assert "not encrypted" in result.stderr
    (tmp_path / "m").write_text("content")
    sign = [_minisign(), "-S", "-s", str(secret), "-p", str(public), "-m", str(tmp_path / "m")]
    assert subprocess.run(sign, capture_output=True, check=False).returncode == 0
    verify = [_minisign(), "-V", "-p", str(public), "-m", str(tmp_path / "m")]
    assert subprocess.run(verify, capture_output=True, check=False).returncode == 0


@pytest.mark.slow
def test_keygen__encrypted_key_opens_in_minisign(edgekit: Run, tmp_path: Path) -> None:
    (tmp_path / "password").write_text("correct horse\n")
    result = edgekit("keygen", "--out", "team", "--password-file", "password")
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    (tmp_path / "m").write_text("content")
    sign = [_minisign(), "-S", "-s", str(tmp_path / "team.key"), "-m", str(tmp_path / "m")]
    signed = subprocess.run(sign, input=b"correct horse\n", capture_output=True, check=False)
    assert signed.returncode == 0, signed.stderr
    verify = [_minisign(), "-V", "-p", str(tmp_path / "team.pub"), "-m", str(tmp_path / "m")]
    assert subprocess.run(verify, capture_output=True, check=False).returncode == 0


def test_keygen__keeps_the_dots_of_its_prefix(edgekit: Run, tmp_path: Path) -> None:
    assert edgekit("keygen", "--out", "team.2026").returncode == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["team.2026.key", "team.2026.pub"]


def test_keygen__refuses_to_overwrite(edgekit: Run, tmp_path: Path) -> None:
    assert edgekit("keygen", "--out", "team").returncode == 0
    before = (tmp_path / "team.key").read_bytes(), (tmp_path / "team.pub").read_bytes()
    result = edgekit("keygen", "--out", "team")
    assert result.returncode == 1
    assert "team.key is there already" in result.stderr
    assert "choose another --out PREFIX" in result.stderr
    assert ((tmp_path / "team.key").read_bytes(), (tmp_path / "team.pub").read_bytes()) == before


def test_keygen__missing_password_file_leaves_nothing(edgekit: Run, tmp_path: Path) -> None:
    result = edgekit("keygen", "--out", "team", "--password-file", "absent")
    assert result.returncode == 1
    assert "absent: cannot read the password file" in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_keygen__prefix_is_required(edgekit: Run) -> None:
    assert edgekit("keygen").returncode == 2


def test_verify__good_bundle(edgekit: Run, bundle: Bundle, secret_key: SecretKey) -> None:
    result = edgekit("verify", "bundle", "--public-key", secret_key.public_key().to_base64())
    assert (result.returncode, result.stderr) == (0, "")
    assert "student release 7: 2 files, 1.0 MiB intact" in result.stdout
    assert f"signed by {secret_key.key_id}" in result.stdout


def test_verify__json_of_a_good_bundle(edgekit: Run, bundle: Bundle, secret_key: SecretKey) -> None:
    result = edgekit("verify", "bundle", "--json", EDGEKIT_PUBLIC_KEY=secret_key.public_key().to_base64())
    assert result.returncode == 0
    assert _document(result) == {
        "ok": True,
        "bundle": "bundle",
        "name": "student",
        "release": 7,
        "created_utc": "2026-03-31T08:05:00Z",
        "digest": bundle.digest,
        "entry": "model.gguf",
        "files": 2,
        "size_bytes": bundle.manifest.size_bytes,
        "signature_checked": True,
        "signed_by": secret_key.key_id,
    }


@no_key_installed
def test_verify__without_a_key_checks_the_files_and_fails(edgekit: Run, bundle: Bundle) -> None:
    result = edgekit("verify", "bundle")
    assert result.returncode == 1
    assert "2 files, 1.0 MiB intact; signature not checked" in result.stdout
    assert "the files are intact, but the signature was not checked" in result.stderr
    for way in ("--public-key", "EDGEKIT_PUBLIC_KEY", "/etc/edgekit/edgekit.pub", "--integrity-only"):
        assert way in result.stderr


@no_key_installed
def test_verify__without_a_key_still_finds_a_changed_file(edgekit: Run, bundle: Bundle) -> None:
    (bundle.path / "LICENSE").write_text("apache-2.0\n")
    result = edgekit("verify", "bundle")
    assert result.returncode == 1
    assert "LICENSE was changed" in result.stderr
    assert result.stdout == ""


@no_key_installed
def test_verify__json_without_a_key_says_what_was_checked(edgekit: Run, bundle: Bundle) -> None:
    result = edgekit("verify", "bundle", "--json")
    document = _document(result)
    assert result.returncode == 1
    assert document["ok"] is False
    assert document["kind"] == "SignatureError"
    assert document["digest"] == bundle.digest
    assert document["signature_checked"] is False
    assert "--public-key" in document["hint"]


def test_verify__integrity_only_does_without_a_key(edgekit: Run, bundle: Bundle) -> None:
    result = edgekit("verify", "bundle", "--integrity-only")
    assert (result.returncode, result.stderr) == (0, "")
    assert "signature not checked" in result.stdout
    (bundle.path / "manifest.json.minisig").unlink()
    document = _document(edgekit("verify", "bundle", "--integrity-only", "--json"))
    assert document["ok"] is True
    assert document["signature_checked"] is False


def test_verify__integrity_only_with_a_key_is_wrong_usage(
    edgekit: Run, bundle: Bundle, secret_key: SecretKey
) -> None:
    key = secret_key.public_key().to_base64()
    result = edgekit("verify", "bundle", "--integrity-only", "--public-key", key)
    assert result.returncode == 2
    assert "--integrity-only" in result.stderr


def test_verify__json_of_a_changed_file(edgekit: Run, bundle: Bundle, secret_key: SecretKey) -> None:
    with bundle.entry_path.open("r+b") as stream:
        stream.seek(2**19)
        stream.write(b"\1")
    key = secret_key.public_key().to_base64()
    result = edgekit("verify", "bundle", "--public-key", key, "--json")
    document = _document(result)
    assert result.returncode == 1
    assert document["ok"] is False
    assert document["error"] == "bundle: model.gguf was changed: its SHA-256 is not the manifest's"
    assert document["kind"] == "IntegrityError"


def test_verify__other_key_is_refused(edgekit: Run, bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "other.pub").write_text(generate_key_pair()[1].to_text())
    result = edgekit("verify", "bundle", "--public-key", "other.pub")
    assert result.returncode == 1
    assert "the signature was made with key" in result.stderr
    assert "Traceback" not in result.stderr


def test_verify__key_that_is_missing_is_not_skipped(edgekit: Run, bundle: Bundle) -> None:
    result = edgekit("verify", "bundle", "--json", EDGEKIT_PUBLIC_KEY="absent.pub")
    assert result.returncode == 1
    assert "absent.pub" in _document(result)["error"]


def test_verify__what_is_no_bundle_is_explained(edgekit: Run, tmp_path: Path) -> None:
    result = edgekit("verify", ".", "--integrity-only")
    assert result.returncode == 1
    assert "no manifest.json in it" in result.stderr


def test_verify__bar_is_drawn_on_a_terminal_and_stdout_stays_clean(
    edgekit: Run, bundle: Bundle, tmp_path: Path
) -> None:
    plain = edgekit("verify", "bundle", "--integrity-only").stdout
    main, terminal = pty.openpty()
    with subprocess.Popen(
        [*COMMAND, "verify", "bundle", "--integrity-only"],
        env={**os.environ, "TERM": "xterm", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=terminal,
    ) as process:
        os.close(terminal)
        drawn = b""
        try:
            while piece := os.read(main, 65536):
                drawn += piece
        except OSError:
            pass  # Linux answers EIO when the last writer is gone.
        finally:
            os.close(main)
        assert process.stdout is not None
        assert process.stdout.read().decode() == plain
    assert process.returncode == 0
    assert b"checking" in drawn
    assert b"1.0/1.0 MiB" in drawn
