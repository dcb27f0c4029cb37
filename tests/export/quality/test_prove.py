"""The proof on real runs: it passes what is right, and misses and names what is not."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from edgekit.errors import ExportError
from edgekit.profiles import QUANTIZATIONS, ProofOverride
from export.calibration.imatrix import compute_imatrix
from export.prompts import Dialogue, golden_prompts, proof_texts
from export.quality.limits import DEFAULT_LIMITS, limits_for
from export.quality.prove import compare_logits, prove
from export.quality.record import Proof
from export.quality.reference import Reference
from export.quality.tensors import gguf_pairs, worst_tensors
from export.quantize import quantize_gguf
from export.runtimes.llama_session import LlamaSession
from export.student import as_checkpoint, open_gguf
from export.student.base import DecoderStudent
from export.student.safetensors_dir import CheckpointStudent, open_checkpoint
from export.targets.gguf import write_float_gguf

Change = Callable[[np.ndarray], np.ndarray]


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, Path(__file__).parents[1] / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


damage = load("gguf_damage")


@pytest.fixture(scope="module")
def tiny_student(tiny: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> CheckpointStudent:
    directory = tmp_path_factory.mktemp("proof") / "student"
    return open_checkpoint(load("proof_student").write_student(tiny, directory))


@pytest.fixture(scope="module")
def artifacts(tiny_student: CheckpointStudent, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The student as GGUF, by quantization. Do not change them."""
    directory = tmp_path_factory.mktemp("artifacts")
    found = {name: directory / f"{name}.gguf" for name in ("F32", "Q8_0", "Q4_0")}
    write_float_gguf(tiny_student, found["F32"], storage="F32")
    for name in ("Q8_0", "Q4_0"):
        quantize_gguf(found["F32"], found[name], name)
    return found


def proof_of(student: DecoderStudent, path: Path, quantization: str, **options: Any) -> Proof:
    with LlamaSession(path, threads=1) as session:
        return prove(
            student,
            session.logits,
            runtime="llama.cpp",
            quantization=quantization,
            greedy=lambda prompt, most: session.answers([prompt], answer_tokens=most)[0],
            **options,
        )


@pytest.mark.parametrize("quantization", ["F32", "Q8_0"])
def test_prove__an_honest_artifact_passes(
    tiny_student: CheckpointStudent, artifacts: dict[str, Path], quantization: str
) -> None:
    proof = proof_of(tiny_student, artifacts[quantization], quantization)
    assert proof.passed, proof.misses
    assert proof.mean_kl < 2e-4
    assert proof.kl_quantiles[-1] == proof.kl_max >= proof.kl_p99 >= proof.mean_kl > 0
    assert proof.perplexity_ratio == pytest.approx(1, abs=0.01)
    assert [text.name for text in proof.texts] == [text.name for text in proof_texts()]
    assert proof.positions == sum(text.positions for text in proof.texts) > 2000
    assert [answer.name for answer in proof.golden] == [prompt.name for prompt in golden_prompts()]
    assert proof.golden_agreement is not None and proof.golden_agreement > 0.9
    assert Proof.model_validate_json(proof.model_dump_json()) == proof


@pytest.mark.parametrize(
    ("quantization", "tensor", "change", "hugging_face"),
    [
        ("F32", "blk.1.ffn_down.weight", damage.zeroed, "model.layers.1.mlp.down_proj.weight"),
        ("Q8_0", "blk.1.ffn_down.weight", damage.zeroed, "model.layers.1.mlp.down_proj.weight"),
        ("F32", "blk.0.attn_q.weight", damage.halves_first(16), "model.layers.0.self_attn.q_proj.weight"),
        ("Q8_0", "blk.0.attn_q.weight", damage.halves_first(16), "model.layers.0.self_attn.q_proj.weight"),
        ("F32", "output.weight", damage.scaled, "lm_head.weight"),
    ],
)
def test_prove__a_damaged_tensor_is_missed_and_named(
    tiny_student: CheckpointStudent,
    artifacts: dict[str, Path],
    tmp_path: Path,
    quantization: str,
    tensor: str,
    change: Change,
    hugging_face: str,
) -> None:
    """Random weights make for even distributions, which damage moves little: the limits are F32's."""
    path = tmp_path / "damaged.gguf"
    shutil.copy(artifacts[quantization], path)
    limits = limits_for("F32", ProofOverride(top1_agreement=0.95))
    options = {"limits": limits, "texts": proof_texts()[:2], "questions": []}
    assert proof_of(tiny_student, path, quantization, **options).passed
    damage.change_tensor(path, tensor, change)
    assert proof_of(tiny_student, path, quantization, **options).misses
    worst = worst_tensors(gguf_pairs(tiny_student, [path]))
    assert worst[0].name == hugging_face
    assert worst[0].times_typical > 5 * worst[1].times_typical


@pytest.mark.parametrize("quantization", ["F32", "Q8_0", "Q4_0"])
def test_worst_tensors__a_tensor_that_was_scaled_shows_by_its_gain(
    tiny_student: CheckpointStudent, artifacts: dict[str, Path], tmp_path: Path, quantization: str
) -> None:
    """Also where the rounding of the type is as large as what the scale does."""
    path = tmp_path / "damaged.gguf"
    shutil.copy(artifacts[quantization], path)

    def scaled(rows: np.ndarray) -> np.ndarray:
        if quantization != "Q4_0":
            return damage.scaled(rows)
        blocks = rows.reshape(rows.shape[0], -1, 18)
        scales = np.ascontiguousarray(blocks[..., :2]).view(np.float16)
        blocks[..., :2] = (scales.astype(np.float32) * 1.05).astype(np.float16).view(np.uint8)
        return blocks.reshape(rows.shape)

    damage.change_tensor(path, "blk.1.ffn_up.weight", scaled)
    worst = worst_tensors(gguf_pairs(tiny_student, [path]))
    assert worst[0].name == "model.layers.1.mlp.up_proj.weight"
    assert worst[0].gain == pytest.approx(1.05, abs=0.02)


def test_worst_tensors__all_of_a_sound_artifact_are_usual(
    tiny_student: CheckpointStudent, artifacts: dict[str, Path]
) -> None:
    importance = compute_imatrix(tiny_student, [[1, 2, 3]]).importance()
    worst = worst_tensors(gguf_pairs(tiny_student, [artifacts["Q4_0"]]), importance=importance, most=100)
    assert len(worst) == len(list(tiny_student.tensors()))
    packed = [error for error in worst if error.storage == "Q4_0"]
    assert all(0.03 < error.relative_error < 0.2 for error in packed)
    for error in packed:
        assert (error.weighted_error is not None) == error.name.startswith("model.layers")
    assert all(error.relative_error == 0 for error in worst if error.storage == "F32")


def test_worst_tensors__a_missing_tensor_comes_first(
    tiny_student: CheckpointStudent, artifacts: dict[str, Path]
) -> None:
    pairs = gguf_pairs(tiny_student, [artifacts["Q8_0"]])
    lost = [pair if "norm" in pair.student.name else type(pair)(pair.student, None) for pair in pairs[:3]]
    assert worst_tensors(lost)[0].storage is None


def test_prove__finds_the_same_with_answers_by_logits(
    tiny_student: CheckpointStudent, artifacts: dict[str, Path]
) -> None:
    """A runtime that only gives logits, for all positions at once."""
    path, questions = artifacts["F32"], [Dialogue(name="one", user="heat", text="")]
    with LlamaSession(path, threads=1) as session:

        def whole(tokens: Sequence[int]) -> Iterator[np.ndarray]:
            yield np.concatenate(list(session.logits(tokens)))

        by_logits = prove(
            tiny_student, whole, runtime="llama.cpp", quantization="F32", texts=TEXTS, questions=questions
        )
    usual = proof_of(tiny_student, path, "F32", texts=TEXTS, questions=questions)
    assert by_logits.mean_kl == pytest.approx(usual.mean_kl, rel=1e-3)
    assert by_logits.golden[0].answer_tokens[:4] == usual.golden[0].answer_tokens[:4]


TEXTS = [Dialogue(name="short", text="the thin inch in the heat")]


def test_prove__golden_answers_are_scored_by_the_student(tiny_student: CheckpointStudent) -> None:
    """An answer that the student would give but for its third token."""
    reference = Reference(tiny_student)

    def own(tokens: Sequence[int]) -> Iterator[np.ndarray]:
        yield reference.logits(reference.hidden_states([tokens])[0])

    def answer(prompt: Sequence[int], most: int) -> list[int]:
        tokens: list[int] = []
        for index in range(5):
            best = int(next(own([*prompt, *tokens]))[-1].argmax())
            tokens.append((best + 1) % 272 if index == 2 else best)
        return tokens

    questions = [Dialogue(name="q", user="heat", text="")]
    proof = prove(
        tiny_student, own, runtime="none", quantization="F32", greedy=answer, texts=TEXTS, questions=questions
    )
    golden = proof.golden[0]
    assert (golden.agreement, golden.first_divergence) == (0.8, 2)
    assert len(golden.answer_tokens) == 5 and golden.text
    assert proof.mean_kl < 1e-6 and proof.top1_agreement == 1


def test_prove__an_empty_answer_has_no_agreement(tiny_student: CheckpointStudent) -> None:
    reference = Reference(tiny_student)

    def own(tokens: Sequence[int]) -> Iterator[np.ndarray]:
        yield reference.logits(reference.hidden_states([tokens])[0])

    proof = prove(
        tiny_student,
        own,
        runtime="none",
        quantization="F32",
        greedy=lambda prompt, most: [],
        texts=TEXTS,
        questions=[Dialogue(name="q", user="heat", text="")],
    )
    assert proof.golden[0].agreement is None and proof.golden_agreement is None


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (lambda rows: np.full_like(rows, np.nan), "NaN or infinity"),
        (lambda rows: rows[:, :-1], "the artifact's logits are"),
        (lambda rows: rows[:3], "logits for 3 positions"),
    ],
)
def test_prove__logits_that_are_none_are_an_error(
    tiny_student: CheckpointStudent, broken: Change, message: str
) -> None:
    reference = Reference(tiny_student)

    def logits(tokens: Sequence[int]) -> Iterator[np.ndarray]:
        yield broken(reference.logits(reference.hidden_states([tokens])[0]))

    with pytest.raises(ExportError, match=message):
        prove(tiny_student, logits, runtime="none", quantization="F32", texts=TEXTS, questions=[])


def test_compare_logits__is_the_divergence_by_its_definition() -> None:
    generator = np.random.Generator(np.random.PCG64(5))
    student = generator.standard_normal((7, 300)).astype(np.float32) * 4 + 11
    artifact = student + generator.standard_normal((7, 300)).astype(np.float32) - 5
    following = [0, 5, 299, 17, 3, 3, 8]
    found = compare_logits(student, artifact, following)

    def softmax(logits: np.ndarray) -> np.ndarray:
        weights = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
        return weights / weights.sum(axis=1, keepdims=True)

    p, q = softmax(student), softmax(artifact)
    np.testing.assert_allclose(found.kl, (p * np.log(p / q)).sum(axis=1), rtol=1e-5)
    np.testing.assert_allclose(found.student_nll, -np.log(p[range(7), following]), rtol=1e-5)
    np.testing.assert_allclose(found.artifact_nll, -np.log(q[range(7), following]), rtol=1e-5)
    np.testing.assert_array_equal(found.agrees, p.argmax(axis=1) == q.argmax(axis=1))


def test_limits__every_quantization_a_profile_may_name_has_its_own() -> None:
    assert set(QUANTIZATIONS) <= set(DEFAULT_LIMITS)


def test_limits__fewer_bits_may_lose_more() -> None:
    order = ["F32", "F16", "Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q4_0", "Q3_K_M", "Q2_K", "IQ1_S"]
    for better, worse in pairwise(order):
        one, other = DEFAULT_LIMITS[better], DEFAULT_LIMITS[worse]
        assert one.mean_kl < other.mean_kl and one.kl_p99 < other.kl_p99
        assert one.top1_agreement > other.top1_agreement
        assert one.perplexity_ratio < other.perplexity_ratio


def test_limits_for__a_profile_replaces_single_ones() -> None:
    limits = limits_for("Q4_0", ProofOverride(mean_kl=0.5))
    assert limits.mean_kl == 0.5
    assert limits.kl_p99 == DEFAULT_LIMITS["Q4_0"].kl_p99
    assert limits_for("SOMETHING_NEW") == DEFAULT_LIMITS["Q4_0"]


def test_prove__a_real_student_passes_and_with_one_zeroed_matrix_it_does_not(
    student: Path, tmp_path: Path
) -> None:
    """SmolLM2 in llama.cpp against the same weights in float32, on one of the texts."""
    checkpoint = as_checkpoint(open_gguf(student))
    texts = [text for text in proof_texts() if text.name == "maths-en"]
    options = {"texts": texts, "questions": golden_prompts()[:1], "limits": limits_for("Q8_0")}
    sound = proof_of(checkpoint, student, "Q4_1", **options)
    assert sound.passed, sound.misses
    assert sound.golden[0].text.strip()
    assert 2 < sound.student_perplexity < 30
    broken = tmp_path / "broken.gguf"
    shutil.copy(student, broken)
    damage.change_tensor(broken, "blk.12.ffn_down.weight", damage.zeroed)
    proof = proof_of(checkpoint, broken, "Q4_1", **options)
    assert not proof.passed
    assert worst_tensors(gguf_pairs(checkpoint, [broken]))[0].name == "model.layers.12.mlp.down_proj.weight"
