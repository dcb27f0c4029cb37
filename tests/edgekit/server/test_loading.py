"""ONNX bundles from disk to HTTP: `load_bundle`, and `edgekit serve` as a process."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from live_server import http, running_server, wait_until_ready

from edgekit.bundle.bundle import Bundle, seal, verify_bundle
from edgekit.bundle.manifest import ManifestFields, PlanRecord, ProfileRef, SourceRecord
from edgekit.errors import BundleError, ModelFileError
from edgekit.gguf_header import model_facts, read_gguf_header
from edgekit.profiles import ServeSettings
from edgekit.server.loading import load_bundle
from export.student import GgufStudent, open_student
from export.student.gguf_checkpoint import as_checkpoint
from export.targets.onnx import write_onnx

SETTINGS = ServeSettings(threads=2, context_tokens=512, slots=8, kv_cells=4096, batch_tokens=256)
MAIN = "from edgekit.cli.main import main; main()"

SealedAs = Callable[..., Bundle]


@pytest.fixture(scope="module")
def files(student: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    gguf = open_student(student)
    assert isinstance(gguf, GgufStudent)
    directory = tmp_path_factory.mktemp("onnx-files")
    write_onnx(as_checkpoint(gguf), directory, precision="int4", block_size=32, context_tokens=512)
    return directory


@pytest.fixture(scope="module")
def sealed_as(files: Path, student: Path, tmp_path_factory: pytest.TempPathFactory) -> SealedAs:
    facts = model_facts(read_gguf_header(student), name="student")

    def make(runtime: str = "onnxruntime", damage: Callable[[Path], object] = lambda path: None) -> Bundle:
        directory = tmp_path_factory.mktemp("sealed") / "bundle"
        shutil.copytree(files, directory)
        damage(directory)
        fields = ManifestFields(
            name="student-onnx",
            release=7,
            created_utc="2026-03-31T08:05:00Z",
            runtime=runtime,  # type: ignore[arg-type]
            format="onnx",
            entry="model.onnx",
            model=facts,
            profile=ProfileRef(name="host", sha256="ab" * 32),
            plan=PlanRecord(quantization="INT4", conversion="quantized", serve=SETTINGS, forecast=None),
            source=SourceRecord(
                name="student.gguf", kind="gguf", sha256=None, revision=None, license=None, base_model=None
            ),
            tools={},
        )
        seal(directory, fields, None)
        return verify_bundle(directory, None)

    return make


@pytest.fixture(scope="module")
def url(sealed_as: SealedAs) -> Iterator[str]:
    with running_server(lambda: load_bundle(sealed_as(), SETTINGS)) as address:
        wait_until_ready(address)
        yield address


def ask(url: str, question: str, **fields: object) -> dict[str, object]:
    body = {"messages": [{"role": "user", "content": question}], "temperature": 0, "max_tokens": 20, **fields}
    response = http.post(f"{url}/v1/chat/completions", json=body)
    assert response.status_code == 200, response.text
    answer: dict[str, object] = response.json()
    return answer


def content(answer: dict[str, object]) -> str:
    return str(answer["choices"][0]["message"]["content"])  # type: ignore[index]


def test_onnx_bundle__answers_chats(url: str) -> None:
    answer = ask(url, "What is the capital of France?")
    assert "Paris" in content(answer)
    assert answer["model"] == "student-onnx"


def test_onnx_bundle__eight_at_once_say_what_each_says_alone(url: str) -> None:
    questions = [f"What is {number} plus {number + 2}?" for number in range(8)]
    alone = [content(ask(url, question)) for question in questions]
    with ThreadPoolExecutor(8) as pool:
        together = [content(answer) for answer in pool.map(lambda question: ask(url, question), questions)]
    assert together == alone


def test_onnx_bundle__streams_tokens(url: str) -> None:
    body = {"messages": [{"role": "user", "content": "Count to five."}], "max_tokens": 12, "stream": True}
    with http.stream("POST", f"{url}/v1/chat/completions", json=body) as response:
        lines = [line for line in response.iter_lines() if line.startswith("data: ")]
    assert lines[-1] == "data: [DONE]"
    text = "".join(
        choice["delta"].get("content") or ""
        for line in lines[:-1]
        for choice in json.loads(line.removeprefix("data: "))["choices"]
    )
    assert text


def test_onnx_bundle__answers_have_the_schema_asked_for(url: str) -> None:
    schema = {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 20}, "people": {"type": "integer"}},
        "required": ["city", "people"],
        "additionalProperties": False,
    }
    form = {"type": "json_schema", "json_schema": {"name": "city", "schema": schema}}
    answer = ask(url, "Tell me of Paris as JSON.", response_format=form, max_tokens=60)
    found = json.loads(content(answer))
    assert set(found) == {"city", "people"}


def test_onnx_bundle__embeddings_are_refused_and_the_server_goes_on(url: str) -> None:
    response = http.post(f"{url}/v1/embeddings", json={"input": "a text"})
    assert response.status_code >= 400
    assert "cannot embed" in response.text
    assert http.get(f"{url}/health").status_code == 200


def test_load_bundle__damaged_graph_is_a_clear_error(sealed_as: SealedAs) -> None:
    bundle = sealed_as(damage=lambda path: (path / "model.onnx").write_bytes(b"\x08\x0a" * 500))
    with pytest.raises(ModelFileError, match=r"model\.onnx"):
        load_bundle(bundle, SETTINGS)


def test_load_bundle__template_that_is_none_is_a_clear_error(sealed_as: SealedAs) -> None:
    def damage(path: Path) -> None:
        settings = json.loads((path / "tokenizer_config.json").read_text())
        settings["chat_template"] = "{% if %}"
        (path / "tokenizer_config.json").write_text(json.dumps(settings))

    with pytest.raises(ModelFileError, match="chat template"):
        load_bundle(sealed_as(damage=damage), SETTINGS)


def test_load_bundle__other_runtimes_are_refused(sealed_as: SealedAs) -> None:
    with pytest.raises(BundleError, match=r"llama\.cpp and onnxruntime"):
        load_bundle(sealed_as(runtime="vllm"), SETTINGS)


def test_serve__onnx_bundle_as_a_process(sealed_as: SealedAs, tmp_path: Path) -> None:
    log = tmp_path / "serve.log"
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("EDGEKIT_")}
    with log.open("wb") as output:
        server = subprocess.Popen(
            [sys.executable, "-c", MAIN, "serve", str(sealed_as().path), "--integrity-only", "--port", "0"],
            env={**inherited, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=tmp_path,
        )
    try:
        deadline = time.monotonic() + 60
        while not (found := re.search(r"listening on (http://\S+)", log.read_text())):
            assert server.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)
        wait_until_ready(found[1])
        assert "Paris" in content(ask(found[1], "What is the capital of France?"))
        server.send_signal(signal.SIGTERM)
        assert server.wait(60) == 0, log.read_text()
    finally:
        server.kill()
        server.wait()
