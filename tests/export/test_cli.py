"""`edgekit export` and `edgekit plan` as users call them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest


def _edgekit(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from edgekit.cli.main import main; main()", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


def test_export__signed_bundle_is_verified_by_edgekit(small: Path, tmp_path: Path) -> None:
    assert _edgekit("keygen", "--out", tmp_path / "key").returncode == 0
    out = tmp_path / "bundle"
    done = _edgekit("export", small, "--profile", "host", "--out", out, "--sign-key", tmp_path / "key.key")
    assert done.returncode == 0, done.stderr
    assert "Small-Qwen2" in done.stdout and "signed    by key" in done.stdout
    assert "quantizing to Q4_K_M" in done.stderr
    assert _edgekit("verify", out, "--public-key", tmp_path / "key.pub").returncode == 0


def test_export__unsigned_bundle_says_so_and_what_to_do(small: Path, tmp_path: Path) -> None:
    done = _edgekit("export", small, "--profile", "host", "--out", tmp_path / "bundle")
    assert done.returncode == 0
    last_lines = done.stdout.strip().splitlines()[-2:]
    assert last_lines[0].startswith("signed    no")
    assert "edgekit keygen" in last_lines[1] and "--sign-key" in last_lines[1]


def test_export__json_is_one_document_and_nothing_else(small: Path, tmp_path: Path) -> None:
    arguments = ("export", small, "--profile", "host", "--out", tmp_path / "bundle", "--json")
    done = _edgekit(*arguments, "--quantization", "Q8_0", "--release", "3")
    document = json.loads(done.stdout)
    assert done.stderr == ""
    assert (document["ok"], document["release"], document["quantization"]) == (True, 3, "Q8_0")
    assert document["signed_by"] is None and document["plan"]["forecast"]["fits"]
    again = _edgekit(*arguments)
    assert again.returncode == 1
    assert json.loads(again.stdout)["kind"] == "ExportError"


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (("export", "org/name", "--profile", "host", "--out", "x"), 2, "hf download org/name"),
        (("plan", "absent.gguf", "--profile", "host"), 2, "absent.gguf: no such file"),
        (("plan", "{small}", "--profile", "hosd"), 1, "did you mean 'host'"),
        (("plan", "{small}", "--profile", "host", "--format", "zip"), 2, "no format 'zip'"),
        (("plan", "{small}", "--profile", "host", "--quantization", "Q9"), 1, "'Q9' cannot be exported"),
        (("export", "{small}", "--profile", "host"), 2, "--out"),
    ],
)
def test_cli__mistakes_are_explained(
    arguments: tuple[str, ...], status: int, message: str, small: Path
) -> None:
    done = _edgekit(*(argument.format(small=small) for argument in arguments))
    assert (done.returncode, done.stdout) == (status, "")
    assert message in done.stderr and "Traceback" not in done.stderr


def test_plan__shows_memory_and_speed(student: Path) -> None:
    done = _edgekit("plan", student, "--profile", "raspberry-pi-5-8gb")
    assert done.returncode == 0
    rows = {line.split()[0]: line for line in done.stdout.splitlines()}
    assert rows.keys() >= {"model", "device", "format", "service", "weights", "total", "available", "decode"}
    assert "Q4_1 (keep)" in rows["format"] and "7024 MiB" in rows["available"]


def test_plan__json(small: Path) -> None:
    document = json.loads(_edgekit("plan", small, "--profile", "host", "--json").stdout)
    assert (document["quantization"], document["conversion"]) == ("Q4_K_M", "quantize")
    assert document["forecast"]["available_bytes"] > 0  # read from this machine
    assert document["serve"]["threads"] is None


@pytest.mark.parametrize(
    ("module", "verb", "extra"),
    [("numpy", "plan", "export"), ("gguf", "export", "export"), ("llama_cpp", "export", "llama")],
)
def test_cli__missing_package_names_its_extra(
    module: str, verb: str, extra: str, small: Path, tmp_path: Path
) -> None:
    # What Python does for a package that is not there.
    code = (
        "import importlib.abc, sys\n"
        "class Absent(importlib.abc.MetaPathFinder):\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name == {module!r}: raise ModuleNotFoundError(name, name=name)\n"
        "sys.meta_path.insert(0, Absent())\n"
        "import importlib.util\n"
        "find = importlib.util.find_spec\n"
        f"absent = {module!r}\n"
        "def find_spec(name, package=None):\n"
        "    return None if name == absent else find(name, package)\n"
        "importlib.util.find_spec = find_spec\n"
        "from edgekit.cli.main import main; main()\n"
    )
    arguments = [verb, str(small), "--profile", "host"]
    arguments += ["--out", str(tmp_path / "out")] if verb == "export" else []
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert f"pip install 'edgekit[{extra}]'" in done.stderr, done.stderr
