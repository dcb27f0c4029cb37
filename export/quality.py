"""The proof: an artifact runs in its real runtime and is compared with its student in float32.

On texts that ship and that nothing was calibrated on, the distributions of the next token are compared
position by position: KL(student || artifact), as `llama-perplexity --kl-divergence` defines it; whether both
find the same token likeliest; the perplexity of both. Then the artifact answers a few questions greedily,
and the student says of each token whether it would have chosen it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from edgekit.errors import ExportError
from export.progress import Progress, silent
from export.prompts import Dialogue, golden_prompts, proof_texts, student_tokenizer, tokenize_dialogue
from export.proof_limits import ProofLimits, limits_for
from export.proof_record import KL_QUANTILES, GoldenAnswer, Proof, TextProof
from export.reference import Reference
from export.student.base import DecoderStudent

__all__ = ["Greedy", "LogitsOf", "compare_logits", "misses", "prove"]

Floats = NDArray[np.float32]
LogitsOf = Callable[[Sequence[int]], Iterator[Floats]]
"""Runs the artifact over a sequence from position 0: chunks of float32 [positions, vocabulary], in order."""
Greedy = Callable[[Sequence[int], int], Sequence[int]]
"""Answers a prompt with at most so many tokens, the likeliest each time, without the one that ends it."""

ANSWER_TOKENS: Final = 32
_CHUNK: Final = 64
_LABEL: Final = "comparing with the student"


@dataclass(frozen=True, slots=True)
class Comparison:
    """Position by position: float64 [positions], but `agrees`, which is bool."""

    kl: NDArray[np.float64]
    agrees: NDArray[np.bool_]
    student_nll: NDArray[np.float64]
    """-log of the student's probability of the token that follows."""
    artifact_nll: NDArray[np.float64]


def prove(
    student: DecoderStudent,
    logits_of: LogitsOf,
    *,
    runtime: str,
    quantization: str,
    limits: ProofLimits | None = None,
    greedy: Greedy | None = None,
    texts: Sequence[Dialogue] | None = None,
    questions: Sequence[Dialogue] | None = None,
    progress: Progress = silent,
    clock: Callable[[], float] = time.monotonic,
) -> Proof:
    """Compare an artifact with its student.

    Memory: the reference's (see `Reference`) and a few chunks of logits, 64 positions each.

    Args:
        logits_of: the artifact; for a GGUF `LlamaSession.logits`.
        runtime: what it runs in, for the record: "llama.cpp" or "onnxruntime".
        quantization: for the limits.
        limits: None takes the quantization's own.
        greedy: None finds the answers through `logits_of`, at a full run for each token.
        texts, questions: None takes those that ship.

    Raises:
        ExportError: the artifact's vocabulary is another, or it computes NaN or infinity.
        ModelFileError: the student computes NaN or infinity, or its tokenizer does not load.
    """
    began = clock()
    limits = limits_for(quantization) if limits is None else limits
    tokenizer = student_tokenizer(student)
    reference = Reference(student)
    pieces = [tokenize_dialogue(tokenizer, text) for text in (proof_texts() if texts is None else texts)]
    prompts = [
        tokenize_dialogue(tokenizer, question)
        for question in (golden_prompts() if questions is None else questions)
    ]
    answer = greedy or _greedy_by_logits(logits_of, set(student.tokenizer.special.ids.values()))
    steps = len(pieces) + len(prompts) + 1
    answers = []
    for done, prompt in enumerate(prompts):
        progress(_LABEL, done, steps)
        answers.append([int(token) for token in answer(prompt.tokens, ANSWER_TOKENS)])
    # One run of the student for all: its weights are read once.
    asked = [(*prompt.tokens, *tokens) for prompt, tokens in zip(prompts, answers, strict=True)]
    states = reference.hidden_states([*(piece.tokens for piece in pieces), *asked])
    comparisons = []
    for done, (piece, state) in enumerate(zip(pieces, states, strict=False), len(prompts) + 1):
        progress(_LABEL, done, steps)
        comparisons.append(_compare_sequence(reference, state, logits_of, piece.tokens))
    golden = tuple(
        _scored(reference, state, prompt.name, prompt.tokens, tokens, tokenizer.decode(tokens))
        for prompt, tokens, state in zip(prompts, answers, states[len(pieces) :], strict=True)
    )
    progress(_LABEL, steps, steps)
    whole = _joined(comparisons)
    measured = tuple(
        _text_proof(piece.name, comparison) for piece, comparison in zip(pieces, comparisons, strict=True)
    )
    return _proof(whole, measured, golden, runtime, quantization, limits, clock() - began)


def compare_logits(student: Floats, artifact: Floats, following: Sequence[int]) -> Comparison:
    """Compare the distributions after each position.

    Args:
        student, artifact: logits float32 [positions, vocabulary].
        following: the token that comes after each position.

    Raises:
        ExportError: the shapes differ, or the artifact's logits are not finite.
    """
    if student.shape != artifact.shape:
        raise ExportError(
            f"the artifact's logits are {list(artifact.shape)}, the student's {list(student.shape)}",
            hint="the artifact was made of another student, or its vocabulary was cut or padded",
        )
    rows, columns = np.arange(len(following)), np.asarray(following, dtype=np.int64)
    agrees = student.argmax(axis=1) == artifact.argmax(axis=1)
    student = student - student.max(axis=1, keepdims=True)
    artifact = artifact - artifact.max(axis=1, keepdims=True)
    if not np.isfinite(artifact).all():
        raise ExportError(
            "the artifact computes NaN or infinity",
            hint="its weights are damaged, or overflow the runtime's half precision",
        )
    probabilities = np.exp(student)
    # Sums in float64: what is left of the divergences of a good artifact is smaller than float32's error.
    weights = probabilities.sum(axis=1, dtype=np.float64)
    student_log = np.log(weights)
    artifact_log = np.log(np.exp(artifact).sum(axis=1, dtype=np.float64))
    nll = student_log - student[rows, columns], artifact_log - artifact[rows, columns]
    student -= artifact
    weighted = np.einsum("tv,tv->t", probabilities, student, dtype=np.float64)
    kl = weighted / weights - student_log + artifact_log
    # Rounding may leave a little less than nothing.
    return Comparison(np.maximum(kl, 0), agrees, *nll)


def misses(proof: Proof) -> tuple[str, ...]:
    """What an artifact misses of its limits, a sentence each."""
    limits, found = proof.limits, []
    if not proof.mean_kl <= limits.mean_kl:
        found.append(f"mean KL divergence {proof.mean_kl:.4f} nats, at most {limits.mean_kl:g}")
    if not proof.kl_p99 <= limits.kl_p99:
        found.append(f"99 % KL divergence {proof.kl_p99:.3f} nats, at most {limits.kl_p99:g}")
    if not proof.top1_agreement >= limits.top1_agreement:
        found.append(f"top-1 agreement {proof.top1_agreement:.1%}, at least {limits.top1_agreement:.0%}")
    if not proof.perplexity_ratio <= limits.perplexity_ratio:
        found.append(f"perplexity ratio {proof.perplexity_ratio:.3f}, at most {limits.perplexity_ratio:g}")
    return tuple(found)


def _compare_sequence(
    reference: Reference, state: Floats, logits_of: LogitsOf, tokens: Sequence[int]
) -> Comparison:
    """All positions of a sequence that have a successor."""
    parts, start, end = [], 0, len(tokens) - 1
    for chunk in logits_of(tokens):
        for first in range(0, len(chunk), _CHUNK):
            logits = chunk[first : first + min(_CHUNK, end - start)]
            if len(logits):
                stop = start + len(logits)
                student = reference.logits(state[start:stop])
                parts.append(compare_logits(student, logits, tokens[start + 1 : stop + 1]))
                start = stop
    if start != end:
        raise ExportError(f"the artifact gave logits for {start} positions of {end}")
    return _joined(parts)


def _joined(parts: Sequence[Comparison]) -> Comparison:
    return Comparison(
        np.concatenate([part.kl for part in parts]),
        np.concatenate([part.agrees for part in parts]),
        np.concatenate([part.student_nll for part in parts]),
        np.concatenate([part.artifact_nll for part in parts]),
    )


def _greedy_by_logits(logits_of: LogitsOf, ends: set[int]) -> Greedy:
    def answer(prompt: Sequence[int], most: int) -> list[int]:
        tokens: list[int] = []
        while len(tokens) < most:
            last = None
            for chunk in logits_of([*prompt, *tokens]):
                last = chunk[-1]
            assert last is not None
            token = int(last.argmax())
            if token in ends:
                break
            tokens.append(token)
        return tokens

    return answer


def _scored(
    reference: Reference, state: Floats, name: str, prompt: Sequence[int], answer: Sequence[int], text: str
) -> GoldenAnswer:
    """What the student thinks of an artifact's answer, in one pass over both."""
    agrees: list[bool] = []
    if answer:
        chosen = reference.logits(state[len(prompt) - 1 : -1]).argmax(axis=1)
        agrees = [bool(agreed) for agreed in chosen == np.asarray(answer)]
    return GoldenAnswer(
        name=name,
        prompt_tokens=tuple(prompt),
        answer_tokens=tuple(answer),
        text=text,
        agreement=sum(agrees) / len(agrees) if agrees else None,
        first_divergence=agrees.index(False) if False in agrees else None,
    )


def _text_proof(name: str, found: Comparison) -> TextProof:
    return TextProof(
        name=name,
        positions=found.kl.size,
        mean_kl=float(found.kl.mean()),
        top1_agreement=float(found.agrees.mean()),
        student_perplexity=_perplexity(found.student_nll),
        artifact_perplexity=_perplexity(found.artifact_nll),
    )


def _proof(
    whole: Comparison,
    texts: tuple[TextProof, ...],
    golden: tuple[GoldenAnswer, ...],
    runtime: str,
    quantization: str,
    limits: ProofLimits,
    seconds: float,
) -> Proof:
    agreements = [
        (answer.agreement, len(answer.answer_tokens)) for answer in golden if answer.agreement is not None
    ]
    answered = sum(count for _, count in agreements)
    proof = Proof(
        runtime=runtime,
        quantization=quantization,
        positions=whole.kl.size,
        mean_kl=float(whole.kl.mean()),
        kl_p99=float(np.quantile(whole.kl, 0.99)),
        kl_max=float(whole.kl.max()),
        kl_quantiles=tuple(float(value) for value in np.quantile(whole.kl, KL_QUANTILES)),
        top1_agreement=float(whole.agrees.mean()),
        student_perplexity=_perplexity(whole.student_nll),
        artifact_perplexity=_perplexity(whole.artifact_nll),
        perplexity_ratio=_perplexity(whole.artifact_nll - whole.student_nll),
        golden_agreement=sum(share * count for share, count in agreements) / answered if answered else None,
        texts=texts,
        golden=golden,
        limits=limits,
        seconds=round(seconds, 1),
    )
    return proof.model_copy(update={"misses": misses(proof)})


def _perplexity(nll: NDArray[np.float64]) -> float:
    # A broken artifact may give the right token no chance at all; JSON knows no infinity.
    return math.exp(min(float(nll.mean()), 700.0))
