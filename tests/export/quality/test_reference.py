"""The student in float32 against transformers."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from edgekit.errors import ModelFileError, UsageError
from export.quality.reference import Reference
from export.student.safetensors_dir import CheckpointStudent, open_checkpoint

FIXTURES = Path(__file__).parents[2] / "fixtures" / "reference"
CASES = ["qwen2-default", "llama-llama3", "llama-linear", "llama-biases", "qwen3-yarn"]


@pytest.fixture(scope="module")
def maker() -> ModuleType:
    spec = importlib.util.spec_from_file_location("reference_golden", FIXTURES / "regenerate.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def small_student(small: Path) -> CheckpointStudent:
    return open_checkpoint(small)


@pytest.mark.parametrize("case", CASES)
def test_logits__are_those_of_transformers(
    case: str, tiny: ModuleType, maker: ModuleType, tmp_path: Path
) -> None:
    family, changes = maker.cases(tiny.FAMILIES)[case]
    student = open_checkpoint(maker.write_case(tiny, tmp_path / case, family, changes))
    reference = Reference(student)
    sequences = [maker.tokens(length, 272) for length in maker.SEQUENCES]
    states = reference.hidden_states(sequences)
    with np.load(FIXTURES / "logits.npz") as golden:
        for index, state in enumerate(states):
            expected = golden[f"{case}/{index}"]
            found = reference.logits(state)[:: 5 if len(state) > 8 else 1]
            assert found.shape == expected.shape
            assert np.abs(found - expected).max() < 2e-5 * max(1, np.abs(expected).max())


def test_golden_logits__tell_a_wrong_rotation_from_a_right_one(
    tiny: ModuleType, maker: ModuleType, tmp_path: Path
) -> None:
    """The comparison above would notice: yarn left out moves the logits by far more than its tolerance."""
    family, changes = maker.cases(tiny.FAMILIES)["qwen3-yarn"]
    student = open_checkpoint(
        maker.write_case(tiny, tmp_path / "plain", family, {**changes, "rope_scaling": None})
    )
    reference = Reference(student)
    state = reference.hidden_states([maker.tokens(maker.SEQUENCES[0], 272)])[0]
    with np.load(FIXTURES / "logits.npz") as golden:
        assert np.abs(reference.logits(state)[::5] - golden["qwen3-yarn/0"]).max() > 1e-2


def test_hidden_states__sequences_do_not_see_each_other(small_student: CheckpointStudent) -> None:
    reference = Reference(small_student)
    together = reference.hidden_states([[1, 2, 3, 4], [9, 8], [5]])
    for sequence, state in zip([[1, 2, 3, 4], [9, 8], [5]], together, strict=True):
        np.testing.assert_allclose(reference.hidden_states([sequence])[0], state, atol=1e-5)


def test_hidden_states__groups_and_row_blocks_change_nothing(
    small_student: CheckpointStudent, monkeypatch: pytest.MonkeyPatch
) -> None:
    sequences = [[1, 2, 3, 4, 5], [9, 8, 7], [5, 6]]
    whole = Reference(small_student)
    expected = whole.hidden_states(sequences)
    logits = whole.logits(expected[0])
    monkeypatch.setattr("export.quality.reference._BLOCK_BYTES", 4 * 64 * 7)
    monkeypatch.setattr("export.quality.reference._ACTIVATION_BYTES", 4096)
    steps: list[tuple[float, float | None]] = []
    blocked = Reference(small_student)
    found = blocked.hidden_states(sequences, progress=lambda _, done, total: steps.append((done, total)))
    for one, other in zip(expected, found, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)
    np.testing.assert_allclose(blocked.logits(found[0]), logits, atol=1e-5)
    assert steps == [(1, 6), (2, 6), (3, 6), (4, 6), (5, 6), (6, 6)]


def test_hidden_states__shows_every_matrix_and_its_input(small_student: CheckpointStudent) -> None:
    seen: dict[str, tuple[int, ...]] = {}

    def observe(name: str, inputs: np.ndarray) -> None:
        assert name not in seen
        seen[name] = inputs.shape

    Reference(small_student).hidden_states([[1, 2, 3], [4, 5]], observe=observe)
    matrices = {tensor.name: tensor for tensor in small_student.tensors() if len(tensor.shape) == 2}
    assert seen == {name: (5, tensor.shape[1]) for name, tensor in matrices.items()}


@pytest.mark.parametrize("sequence", [[], [1, 272], [-1]])
def test_hidden_states__a_token_the_student_does_not_know_is_refused(
    small_student: CheckpointStudent, sequence: list[int]
) -> None:
    with pytest.raises(UsageError, match="vocabulary of 272"):
        Reference(small_student).hidden_states([sequence])


def test_hidden_states__an_infinite_weight_is_an_error(tiny: ModuleType, tmp_path: Path) -> None:
    config = tiny.make_config("R1-Tiny-Qwen2", vocab_size=272, bos_token_id=263, eos_token_id=260)
    tensors = tiny.make_tensors(config)
    tensors["model.layers.1.mlp.down_proj.weight"][3, 4] = 0x7F80  # BF16's infinity
    directory = tiny.write_checkpoint(
        tmp_path / "broken", config, tensors=tensors, tokenizer=tiny.small_tokenizer()
    )
    with pytest.raises(ModelFileError, match="NaN or infinity"), np.errstate(invalid="ignore"):
        Reference(open_checkpoint(directory)).hidden_states([[1, 2, 3]])
