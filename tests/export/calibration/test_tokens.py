"""Calibration: from a text, or from the student's own answers; cached by content."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from full_disk import file_size_limited

from edgekit.errors import ExportError, UsageError
from export.calibration.imatrix import Imatrix
from export.calibration.tokens import Calibration, calibrate, calibration_tokens, text_sequences
from export.prompts import (
    calibration_prompts,
    golden_prompts,
    proof_texts,
    student_tokenizer,
    tokenize_dialogue,
)
from export.student.safetensors_dir import CheckpointStudent, open_checkpoint
from export.targets.gguf import write_float_gguf


@pytest.fixture(scope="module")
def tiny_student(tiny: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> CheckpointStudent:
    spec = importlib.util.spec_from_file_location(
        "proof_student", Path(__file__).parents[1] / "proof_student.py"
    )
    assert spec is not None and spec.loader is not None
    maker = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(maker)
    return open_checkpoint(maker.write_student(tiny, tmp_path_factory.mktemp("calibrate") / "student"))


@pytest.fixture(scope="module")
def model(tiny_student: CheckpointStudent, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "student.gguf"
    write_float_gguf(tiny_student, path, storage="F32")
    return path


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("the thin inch in the heat; 热 " * 200, encoding="utf-8")
    return path


def test_text_sequences__are_pieces_that_begin_as_llama_imatrix_has_them(
    tiny_student: CheckpointStudent, text: Path
) -> None:
    found = text_sequences(tiny_student, text, tokens=1100)
    assert [len(sequence) for sequence in found.sequences] == [512, 512, 76]
    assert {sequence[0] for sequence in found.sequences} == {263}  # BOS, in the place of a token
    assert found.tokens == 1100
    ids = student_tokenizer(tiny_student).encode(text.read_text(encoding="utf-8"), add_special=True)
    assert list(found.sequences[1][1:]) == ids[513:1024]
    assert found.dataset == "text.txt"


def test_text_sequences__a_short_end_is_left_out(tiny_student: CheckpointStudent, text: Path) -> None:
    found = text_sequences(tiny_student, text, tokens=512 + 31)
    assert [len(sequence) for sequence in found.sequences] == [512]


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"too short", "too few"), (b"\xff\xfe" * 100, "not UTF-8"), (None, "cannot be read")],
)
def test_text_sequences__what_is_no_text_is_refused(
    tiny_student: CheckpointStudent, tmp_path: Path, content: bytes | None, message: str
) -> None:
    path = tmp_path / "text.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UsageError, match=message):
        text_sequences(tiny_student, path)


def test_text_sequences__a_long_text_may_be_cut_within_a_character(
    tiny_student: CheckpointStudent, tmp_path: Path
) -> None:
    path = tmp_path / "text.txt"
    path.write_bytes("热".encode() * 1000)  # 3 bytes each; 64 * 16 bytes are read
    assert text_sequences(tiny_student, path, tokens=64).tokens == 64


def test_calibration_tokens__answers_are_the_same_again(tiny_student: CheckpointStudent, model: Path) -> None:
    found = calibration_tokens(tiny_student, model=model, tokens=24 * 180)
    tokenizer = student_tokenizer(tiny_student)
    for sequence, prompt in zip(found.sequences, calibration_prompts(), strict=True):
        asked = tokenize_dialogue(tokenizer, prompt).tokens
        assert sequence[: len(asked)] == asked[: len(sequence)]
        assert len(sequence) <= 512
    assert found.tokens > sum(len(tokenize_dialogue(tokenizer, p).tokens) for p in calibration_prompts())
    assert calibration_tokens(tiny_student, model=model, tokens=24 * 180) == found


def test_calibration_tokens__answers_are_asked_for_once(
    tiny_student: CheckpointStudent, model: Path, tmp_path: Path
) -> None:
    options = {"tokens": 768, "student_sha256": "ab" * 32, "cache": tmp_path}
    found = calibration_tokens(tiny_student, model=model, **options)  # type: ignore[arg-type]
    gone = tmp_path / "gone.gguf"
    assert calibration_tokens(tiny_student, model=gone, **options) == found  # type: ignore[arg-type]
    kept = next(tmp_path.rglob("*.json"))
    kept.write_text("damaged")
    assert calibration_tokens(tiny_student, model=model, **options) == found  # type: ignore[arg-type]


def test_calibration_tokens__without_text_or_model_is_refused(tiny_student: CheckpointStudent) -> None:
    with pytest.raises(UsageError, match="no text to calibrate on"):
        calibration_tokens(tiny_student)
    with pytest.raises(UsageError, match="too few"):
        calibration_tokens(tiny_student, tokens=31)


def test_calibrate__is_computed_once_for_the_same_content(
    tiny_student: CheckpointStudent, tmp_path: Path
) -> None:
    one = Calibration(((1, 2, 3), (4, 5)), "some")
    steps: list[str] = []

    def run(calibration: Calibration, sha256: str) -> Imatrix:
        return calibrate(
            tiny_student,
            calibration,
            student_sha256=sha256,
            cache=tmp_path,
            progress=lambda what, done, total: steps.append(what),
        )

    found = run(one, "ab" * 32)
    assert steps
    steps.clear()
    again = run(one, "ab" * 32)
    assert not steps
    for name, values in found.importance().items():
        np.testing.assert_array_equal(again.importance()[name], values)
    for calibration, sha256 in ((Calibration(((1, 2, 3),), "some"), "ab" * 32), (one, "cd" * 32)):
        run(calibration, sha256)
        assert steps
        steps.clear()
    for file in tmp_path.rglob("*.gguf"):
        file.write_bytes(file.read_bytes()[:100])
    run(one, "ab" * 32)
    assert steps


def test_calibrate__a_full_cache_costs_nothing_but_the_next_time(
    tiny_student: CheckpointStudent, tmp_path: Path
) -> None:
    one = Calibration(((1, 2, 3), (4, 5)), "some")
    with file_size_limited(500):
        found = calibrate(tiny_student, one, student_sha256="ab" * 32, cache=tmp_path)
    assert found.tokens == 5
    assert [path.suffix for path in (tmp_path / "imatrix").iterdir()] == [".lock"]


def test_calibrate__a_cache_that_cannot_be_is_named(tiny_student: CheckpointStudent) -> None:
    with pytest.raises(ExportError, match=r"^/proc/none/imatrix: the cache cannot be written") as no:
        calibrate(
            tiny_student, Calibration(((1,),), "some"), student_sha256="ab" * 32, cache=Path("/proc/none")
        )
    assert "XDG_CACHE_HOME" in (no.value.hint or "")


def test_prompts__cover_languages_and_kinds_and_none_is_used_twice() -> None:
    prompts = calibration_prompts()
    assert {(p.kind, p.language) for p in prompts} == {
        (kind, language) for kind in ("reasoning", "code", "chat") for language in ("en", "zh")
    }
    asked = [prompt.user for prompt in (*prompts, *golden_prompts(), *proof_texts()) if prompt.user]
    assert len(set(asked)) == len(asked) > 35
