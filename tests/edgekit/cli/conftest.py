from __future__ import annotations

import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from serving import SETTINGS, Serve, Serving, wait_until

from edgekit.bundle.bundle import seal
from edgekit.bundle.keys import SecretKey, generate_key_pair
from edgekit.bundle.manifest import ManifestFields, PlanRecord, ProfileRef, SourceRecord
from edgekit.gguf_header import model_facts, read_gguf_header


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    started: list[Serving] = []

    def start(*arguments: str | Path, **environ: str) -> Serving:
        started.append(Serving(tmp_path / f"serve-{len(started)}.log", *arguments, **environ))
        return started[-1]

    yield start
    for serving in started:
        if serving.process.poll() is None:
            serving.process.kill()
            serving.process.wait()


@pytest.fixture(scope="session")
def secret_key() -> SecretKey:
    return generate_key_pair()[0]


@pytest.fixture(scope="session")
def public_key(secret_key: SecretKey) -> str:
    return secret_key.public_key().to_base64()


@pytest.fixture(scope="session")
def bundle(student: Path, secret_key: SecretKey, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("serve") / "bundle"
    directory.mkdir()
    shutil.copyfile(student, directory / "model.gguf")
    facts = model_facts(read_gguf_header(student), name="student")
    fields = ManifestFields(
        name="student",
        release=7,
        created_utc="2026-03-31T08:05:00Z",
        runtime="llama.cpp",
        format="gguf",
        entry="model.gguf",
        model=facts,
        profile=ProfileRef(name="host", sha256="ab" * 32),
        plan=PlanRecord(quantization="Q4_1", conversion="copied", serve=SETTINGS, forecast=None),
        source=SourceRecord(
            name="student.gguf", kind="gguf", sha256=None, revision=None, license=None, base_model=None
        ),
        tools={},
    )
    seal(directory, fields, secret_key)
    return directory


@pytest.fixture
def mosquitto_port(tmp_path: Path) -> Iterator[int]:
    program = shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin")
    assert program, "this test needs mosquitto: apt-get install mosquitto"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    config = tmp_path / "mosquitto.conf"
    config.write_text(f"listener {port} 127.0.0.1\nallow_anonymous true\n")
    broker = subprocess.Popen([program, "-c", config], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:

        def accepts() -> bool:
            with socket.socket() as probe:
                return probe.connect_ex(("127.0.0.1", port)) == 0

        wait_until(accepts, 10)
        yield port
    finally:
        broker.terminate()
        broker.wait(10)
