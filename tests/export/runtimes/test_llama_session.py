"""A GGUF in llama.cpp in a child process."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import numpy as np
import pytest

from edgekit.errors import EngineError, ExportError, ModelFileError
from export.quality.reference import Reference
from export.runtimes.llama_session import LlamaSession
from export.student.safetensors_dir import CheckpointStudent, open_checkpoint
from export.targets.gguf import write_float_gguf


@pytest.fixture
def small_student(small: Path) -> CheckpointStudent:
    return open_checkpoint(small)


@pytest.fixture
def model(small_student: CheckpointStudent, tmp_path: Path) -> Path:
    path = tmp_path / "model.gguf"
    write_float_gguf(small_student, path, storage="F32")
    return path


def test_logits__are_the_reference_s_for_every_position_in_chunks(
    small_student: CheckpointStudent, model: Path
) -> None:
    reference = Reference(small_student)
    tokens = [(7 * index) % 250 for index in range(130)]
    expected = reference.logits(reference.hidden_states([tokens])[0])
    with LlamaSession(model, threads=1, kv_type="f32", flash_attention=False) as session:
        for _ in range(2):  # what was asked before leaves no trace
            chunks = list(session.logits(tokens))
            assert [len(chunk) for chunk in chunks] == [64, 64, 2]
            np.testing.assert_allclose(np.concatenate(chunks), expected, atol=1e-4)


def test_answers__without_temperature_are_the_likeliest_tokens(
    small_student: CheckpointStudent, model: Path
) -> None:
    reference = Reference(small_student)
    prompts = [[1, 2, 3], [200, 100]]
    with LlamaSession(model, threads=1, kv_type="f32") as session:
        answers = session.answers(prompts, answer_tokens=5)
        alone = [session.answers([prompt], answer_tokens=5)[0] for prompt in prompts]
    assert answers == alone
    for prompt, answer in zip(prompts, answers, strict=True):
        state = reference.hidden_states([[*prompt, *answer]])[0]
        assert reference.logits(state[len(prompt) - 1 : -1]).argmax(axis=1).tolist() == answer


def test_answers__with_temperature_follow_the_seed(model: Path) -> None:
    prompts = [[1, 2, 3], [1, 2, 3]]
    with LlamaSession(model, threads=1) as session:
        one, again, other = (
            session.answers(prompts, answer_tokens=20, temperature=1.0, seed=seed) for seed in (5, 5, 6)
        )
    assert one == again != other
    assert one[0] != one[1]  # each prompt has a seed of its own


def test_session__a_file_that_llama_cpp_refuses_is_a_model_file_error(model: Path) -> None:
    model.write_bytes(model.read_bytes()[:-4096])
    with pytest.raises(ModelFileError, match=r"model\.gguf"):
        LlamaSession(model)


def test_session__a_child_that_dies_is_reported(model: Path) -> None:
    with LlamaSession(model, threads=1) as session:
        os.kill(session._child.pid, signal.SIGSEGV)
        with pytest.raises(ExportError, match=r"llama\.cpp died of SIGSEGV"):
            list(session.logits([1, 2, 3]))


def test_session__a_prompt_that_does_not_fit_is_an_error_and_the_session_goes_on(model: Path) -> None:
    with LlamaSession(model, threads=1, cells=256) as session:
        with pytest.raises(EngineError, match="do not fit a KV cache of 256"):
            list(session.logits([1] * 400))
        assert len(session.answers([[1, 2, 3]], answer_tokens=2)[0]) == 2
