from __future__ import annotations

import json
import signal
import threading
from pathlib import Path

import psutil
import pytest

from edgekit.engine.probe import diagnose, probe_model
from edgekit.errors import EngineError, EngineStoppedError, ModelFileError


def test_probe__real_model_passes(student: Path) -> None:
    probe_model(student)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (b"\x04\0\0\0\0\0\0\0gpt2", b"\x04\0\0\0\0\0\0\0xxxx", "unknown tokenizer: 'xxxx'"),
        (b"\x05\0\0\0\0\0\0\0llama", b"\x05\0\0\0\0\0\0\0lxama", "unknown model architecture: 'lxama'"),
    ],
)
def test_probe__refused_file_is_reported_with_llama_cpps_reason(
    student: Path, tmp_path: Path, old: bytes, new: bytes, said: str
) -> None:
    damaged = tmp_path / "model.gguf"
    damaged.write_bytes(student.read_bytes().replace(old, new, 1))
    with pytest.raises(ModelFileError, match=said):
        probe_model(damaged)


def test_probe__truncated_file(student: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "model.gguf"
    damaged.write_bytes(student.read_bytes()[: 40 * 2**20])
    with pytest.raises(ModelFileError, match="the file is cut off: tensor"):
        probe_model(damaged)


@pytest.mark.parametrize(
    ("died_of", "kind", "said"),
    [
        (signal.SIGILL, EngineError, "built for another CPU"),
        (signal.SIGKILL, EngineError, "lack of memory"),
        (signal.SIGABRT, ModelFileError, "SIGABRT while loading it: GGML_ASSERT"),
    ],
)
def test_diagnose__says_what_the_child_died_of(died_of: signal.Signals, kind: type, said: str) -> None:
    error = diagnose(Path("m.gguf"), -died_of, "", "loading\nGGML_ASSERT(n > 0) failed\n")
    assert isinstance(error, kind)
    assert said in error.message
    assert error.hint


def test_diagnose__error_of_the_child_keeps_its_kind_and_its_hint() -> None:
    report = json.dumps({"kind": "EngineError", "message": "no memory", "hint": "less context"})
    error = diagnose(Path("m.gguf"), 1, report, "")
    assert type(error) is EngineError
    assert (error.message, error.hint) == ("no memory", "less context")


def test_diagnose__last_words_cannot_steer_a_terminal() -> None:
    assert "\x1b" not in diagnose(Path("m.gguf"), 1, "", "Error: \x1b[2J").message


def test_probe__modules_in_the_working_directory_are_not_imported(
    student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "psutil.py").write_text("raise SystemExit('imported from the working directory')")
    monkeypatch.chdir(tmp_path)
    probe_model(student)


def test_probe__stop_kills_the_child(student: Path) -> None:
    stop = threading.Event()
    stop.set()
    before = {child.pid for child in psutil.Process().children()}
    with pytest.raises(EngineStoppedError):
        probe_model(student, stop=stop)
    assert {child.pid for child in psutil.Process().children()} == before


def test_probe__interrupt_kills_the_child(student: Path) -> None:
    class Interrupt(threading.Event):
        def is_set(self) -> bool:
            raise KeyboardInterrupt

    before = {child.pid for child in psutil.Process().children()}
    with pytest.raises(KeyboardInterrupt):
        probe_model(student, stop=Interrupt())
    assert {child.pid for child in psutil.Process().children()} == before
