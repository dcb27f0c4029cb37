"""A bundle's ingredients, small but real: files on disk, an ed25519 key pair, the stock minisign tool."""

from __future__ import annotations

import random
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from edgekit.bundle.bundle import Bundle, seal
from edgekit.bundle.keys import PublicKey, SecretKey, generate_key_pair
from edgekit.bundle.manifest import ManifestFields, PlanRecord, ProfileRef, SourceRecord
from edgekit.facts import ModelFacts
from edgekit.profiles import ServeSettings

Run = Callable[..., "subprocess.CompletedProcess[bytes]"]


@pytest.fixture
def fields() -> ManifestFields:
    return ManifestFields(
        name="SmolLM2-135M-Instruct",
        release=20260331080500,
        created_utc="2026-03-31T08:05:00Z",
        runtime="llama.cpp",
        format="gguf",
        entry="model.gguf",
        model=ModelFacts(
            name="SmolLM2 135M Instruct",
            architecture="llama",
            parameters=134_515_008,
            weight_bytes=98_000_000,
            bytes_per_token=98_000_000,
            quantization="Q4_1",
            layers=30,
            embedding_length=576,
            feed_forward_length=1536,
            attention_heads=9,
            attention_kv_heads=3,
            head_length=64,
            vocabulary=49152,
            context_train_tokens=8192,
            tied_embeddings=True,
            license="apache-2.0",
        ),
        profile=ProfileRef(name="host", sha256="ab" * 32),
        plan=PlanRecord(
            quantization="Q4_1",
            conversion="copied",
            serve=ServeSettings(threads=None, context_tokens=2048, slots=8),
            forecast=None,
            notes=("größer ist nicht besser",),
        ),
        source=SourceRecord(
            name="SmolLM2-135M-Instruct.Q4_1.gguf",
            kind="gguf",
            sha256="cd" * 32,
            revision=None,
            license="apache-2.0",
            base_model=None,
        ),
        tools={"edgekit": "0.1.0", "llama-cpp-python": "0.3.36"},
    )


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Files to seal: one longer than a hashing chunk, one empty, one hidden, one in a directory."""
    directory = tmp_path / "bundle"
    (directory / "tokenizer").mkdir(parents=True)
    (directory / "model.gguf").write_bytes(b"GGUF" + random.Random(1).randbytes(2_500_000))
    (directory / "tokenizer" / "tokenizer.json").write_text('{"version": "1.0"}\n', encoding="utf-8")
    (directory / "LICENSE").write_bytes(b"")
    (directory / ".notes").write_text("hidden, and listed\n", encoding="utf-8")
    return directory


@pytest.fixture(scope="session")
def secret_key() -> SecretKey:
    return generate_key_pair()[0]


@pytest.fixture(scope="session")
def public_key(secret_key: SecretKey) -> PublicKey:
    return secret_key.public_key()


@pytest.fixture
def bundle(directory: Path, fields: ManifestFields, secret_key: SecretKey) -> Bundle:
    return seal(directory, fields, secret_key)


@pytest.fixture(scope="session")
def minisign() -> Run:
    """Runs the stock tool. `stdin` answers its questions for a password."""
    program = shutil.which("minisign")
    assert program, "these tests compare with the stock minisign: apt-get install minisign"

    def run(*arguments: str | Path, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        command = [program, *(str(argument) for argument in arguments)]
        return subprocess.run(command, input=stdin, capture_output=True, timeout=120, check=False)

    return run


@pytest.fixture
def minisign_accepts(minisign: Run, tmp_path: Path) -> Callable[[bytes, bytes, bytes], bool]:
    """Verdict of `minisign -V`, from the contents of a .pub file, a message and its .minisig file."""

    def accepts(public_key: bytes, message: bytes, signature: bytes) -> bool:
        (tmp_path / "oracle.pub").write_bytes(public_key)
        (tmp_path / "oracle").write_bytes(message)
        (tmp_path / "oracle.minisig").write_bytes(signature)
        result = minisign("-V", "-q", "-p", tmp_path / "oracle.pub", "-m", tmp_path / "oracle")
        assert result.returncode in (0, 1, 2), result
        return result.returncode == 0

    return accepts
