"""The step of an export that proves it: what was written runs, and is compared with the float32 student."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from edgekit.bundle.manifest import SourceRecord
from edgekit.errors import ExportError
from edgekit.gguf_header import shard_paths
from edgekit.profiles import DeviceProfile
from export.emit import Emitted
from export.plan.decide import ExportPlan
from export.progress import Progress
from export.quality.limits import ProofLimits, limits_for
from export.quality.prove import Greedy, LogitsOf, prove
from export.quality.record import Proof
from export.quality.report import write_report
from export.quality.tensors import TensorPair, gguf_pairs, prove_exact, worst_tensors
from export.runtimes.llama_session import LlamaSession
from export.student.base import DecoderStudent

__all__ = ["GOLDEN_NAME", "REPORT_NAME", "prove_export", "refuse_misses", "write_records"]

GOLDEN_NAME: Final = "golden.json"
REPORT_NAME: Final = "proof.html"

_SMALL_MODEL_BYTES: Final = 64 << 20
"""A second thread costs such a model more time, at ggml's barriers, than it saves."""

Importance = Mapping[str, NDArray[np.float32]]


def prove_export(
    student: DecoderStudent,
    plan: ExportPlan,
    profile: DeviceProfile,
    directory: Path,
    emitted: Emitted,
    *,
    importance: Importance | None,
    progress: Progress,
) -> Proof:
    """Compare a written export with its student, tensor by tensor where weights were moved.

    Raises:
        ExportError, ModelFileError: it does not run, or computes something else altogether.
    """
    limits = _limits(plan, profile)
    with _runtime(plan, directory, emitted, student) as (logits_of, greedy):
        proof = prove(
            student,
            logits_of,
            runtime=plan.runtime,
            quantization=plan.quantization,
            limits=limits,
            greedy=greedy,
            progress=progress,
        )
    pairs, moved, promised = _moved(student, plan, directory / emitted.entry)
    if moved:
        exact = prove_exact(pairs, names=moved, progress=progress)
        if exact.exact < promised:
            raise ExportError(
                f"tensor '{exact.worst_tensor}' was to be moved bit for bit and is not: it differs by up to "
                f"{exact.max_error_steps:.3g} steps",
                hint="this is a defect of edgekit: please report it, with the checkpoint's name",
            )
        proof = proof.model_copy(update={"exact": exact})
    if proof.misses:
        worst = worst_tensors(pairs, importance=importance, progress=progress)
        proof = proof.model_copy(update={"worst_tensors": worst})
    return proof


def _moved(student: DecoderStudent, plan: ExportPlan, model: Path) -> tuple[list[TensorPair], set[str], int]:
    """Tensors beside the student's; names of those that were moved, not computed; how many must be equal."""
    if plan.format == "gguf":
        names = {item.name for item in plan.tensors if item.method in ("copy", "repack")}
        promised = sum(item.exact for item in plan.tensors if item.name in names)
        return gguf_pairs(student, shard_paths(model)), names, promised
    if plan.quantization == "F32":
        return [], set(), 0
    from export.quality.onnx_tensors import onnx_pairs
    from export.targets.onnx import BLOCK_SIZE
    from export.targets.onnx_weights import plan_blocks

    exact = {
        tensor.name: tensor.integers.layout.scales_fit_f16
        for tensor in student.tensors()
        if tensor.integers is not None and plan_blocks(tensor, bits=4, block_size=BLOCK_SIZE).exact
    }
    # Scales are float32 on CPUs and float16 on CUDA, which not all fit.
    return onnx_pairs(student, model), set(exact), sum(exact.values())


def refuse_misses(proof: Proof, *, allow_loss: bool, hint: str) -> None:
    """Raise ExportError if a limit is missed, unless the loss was allowed.

    Args:
        hint: what else there is to try; that the loss may be accepted is added.
    """
    if not proof.misses or allow_loss:
        return
    tensors = ", ".join(
        f"{error.name} (error {error.relative_error:.3f})" for error in proof.worst_tensors[:3]
    )
    raise ExportError(
        f"{proof.quantization} is too far from the student: {'; '.join(proof.misses)}"
        + (f"; the worst tensors: {tensors}" if tensors else ""),
        hint=f"{hint}, or accept the loss with --allow-loss",
    )


def write_records(
    proof: Proof, name: str, directory: Path, *, source: SourceRecord, profile: DeviceProfile, conversion: str
) -> None:
    """golden.json, which a device can replay, and the report as a page, which says what was compared."""
    golden = {
        "quantization": proof.quantization,
        "runtime": proof.runtime,
        "answers": [answer.model_dump(mode="json") for answer in proof.golden],
    }
    text = json.dumps(golden, indent=2, ensure_ascii=False)
    (directory / GOLDEN_NAME).write_text(f"{text}\n", encoding="utf-8")
    facts = (
        ("student", f"{source.name}, SHA-256 {source.sha256}"),
        ("artifact", f"{conversion}, for {profile.name}"),
    )
    write_report(proof, directory / REPORT_NAME, name=name, facts=facts)


def _limits(plan: ExportPlan, profile: DeviceProfile) -> ProofLimits:
    """By what the weights went through: integers that were moved must compute what the student does."""
    moved = plan.conversion == "repack" and not any(item.method == "requantize" for item in plan.tensors)
    quantization = "Q8_0" if moved else plan.quantization
    return limits_for(quantization, profile.proof.get(plan.quantization))


@contextmanager
def _runtime(
    plan: ExportPlan, directory: Path, emitted: Emitted, student: DecoderStudent
) -> Iterator[tuple[LogitsOf, Greedy | None]]:
    if plan.format == "gguf":
        serve = plan.serve
        with LlamaSession(
            directory / emitted.entry,
            kv_type=serve.kv_type,
            flash_attention=serve.flash_attention,
            threads=1 if plan.facts.weight_bytes < _SMALL_MODEL_BYTES else None,
        ) as session:

            def answer(prompt: Sequence[int], tokens: int) -> Sequence[int]:
                return session.answers([prompt], answer_tokens=tokens)[0]

            yield session.logits, answer
        return
    from export.runtimes.onnx_session import OnnxDecoder

    decoder = OnnxDecoder(directory, context_tokens=1024)
    ends = set(student.tokenizer.special.ids.values())
    yield _chunked(decoder.logits), _stepwise(decoder, ends)


def _chunked(logits: Callable[[Sequence[int]], NDArray[np.float32]]) -> LogitsOf:
    return lambda tokens: iter([logits(tokens)])


def _stepwise(decoder: object, ends: set[int]) -> Greedy:
    from export.runtimes.onnx_session import OnnxDecoder

    assert isinstance(decoder, OnnxDecoder)

    def answer(prompt: Sequence[int], most: int) -> list[int]:
        tokens: list[int] = []
        token = int(decoder.logits(prompt)[-1].argmax())
        while token not in ends and len(tokens) < most:
            tokens.append(token)
            token = int(decoder.append([token])[-1].argmax())
        return tokens

    return answer
