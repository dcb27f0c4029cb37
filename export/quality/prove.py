"""The proof: an artifact runs in its real runtime and is compared with its student in float32.

On texts that ship and that nothing was calibrated on, the distributions of the next token are compared
position by position: KL(student || artifact), as `llama-perplexity --kl-divergence` defines it; whether both
find the same token likeliest; the perplexity of both. Then the artifact answers a few questions greedily,
and the student says of each token whether it would have chosen it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence, Set
from functools import partial
from typing import Final

import numpy as np
from numpy.typing import NDArray

from edgekit.errors import ExportError
from export.progress import Progress, silent
from export.prompts import (
    SEQUENCE_TOKENS,
    Dialogue,
    golden_prompts,
    proof_texts,
    student_tokenizer,
    tokenize_dialogue,
)
from export.quality.divergence import Comparison, compare_logits, join_comparisons
from export.quality.limits import ProofLimits, limits_for
from export.quality.record import KL_QUANTILES, GoldenAnswer, Proof, TextProof
from export.quality.reference import Reference
from export.student.base import DecoderStudent
from export.tokenizer_guard.reference import TokenizerReference

__all__ = [
    "Greedy",
    "LogitsAt",
    "LogitsOf",
    "StudentLogits",
    "compare_logits",
    "misses",
    "prove",
    "prove_against",
]

Floats = NDArray[np.float32]
LogitsOf = Callable[[Sequence[int]], Iterator[Floats]]
"""Runs the artifact over a sequence from position 0: chunks of float32 [positions, vocabulary], in order."""
Greedy = Callable[[Sequence[int], int], Sequence[int]]
"""Answers a prompt with at most so many tokens, the likeliest each time, without the one that ends it."""
LogitsAt = Callable[[slice], Floats]
"""Logits after some positions of one sequence, float32 [positions, vocabulary]; asked for in order."""
StudentLogits = Callable[[Sequence[Sequence[int]]], Sequence[LogitsAt]]
"""Runs the student in float32 over sequences, each from position 0."""

ANSWER_TOKENS: Final = 32
_CHUNK: Final = 64
_LABEL: Final = "comparing with the student"


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
    return prove_against(
        _by_reference(Reference(student)),
        student_tokenizer(student),
        logits_of,
        runtime=runtime,
        quantization=quantization,
        limits=limits,
        greedy=greedy or _greedy_by_logits(logits_of, set(student.tokenizer.special.ids.values())),
        texts=texts,
        questions=questions,
        progress=progress,
        clock=clock,
    )


def prove_against(
    student: StudentLogits,
    tokenizer: TokenizerReference,
    logits_of: LogitsOf,
    *,
    runtime: str,
    quantization: str,
    greedy: Greedy,
    limits: ProofLimits | None = None,
    context_tokens: int | None = None,
    texts: Sequence[Dialogue] | None = None,
    questions: Sequence[Dialogue] | None = None,
    progress: Progress = silent,
    clock: Callable[[], float] = time.monotonic,
) -> Proof:
    """`prove`, with any runtime for the student in float32.

    Args:
        student: is called once, with all sequences.
        tokenizer: the student's.
        context_tokens: longest sequence that both take; None: as long as those of `prove`.

    Raises:
        ExportError: as `prove`.
    """
    began = clock()
    limits = limits_for(quantization) if limits is None else limits
    most = SEQUENCE_TOKENS if context_tokens is None else min(context_tokens, SEQUENCE_TOKENS)
    answer_tokens = ANSWER_TOKENS if context_tokens is None else min(ANSWER_TOKENS, context_tokens // 2)
    most_asked = most if context_tokens is None else min(most, context_tokens - answer_tokens)
    pieces = [
        tokenize_dialogue(tokenizer, text, most=most) for text in (proof_texts() if texts is None else texts)
    ]
    prompts = [
        tokenize_dialogue(tokenizer, question, most=most_asked)
        for question in (golden_prompts() if questions is None else questions)
    ]
    steps = len(pieces) + len(prompts) + 1
    answers = []
    for done, prompt in enumerate(prompts):
        progress(_LABEL, done, steps)
        answers.append([int(token) for token in greedy(prompt.tokens, answer_tokens)])
    # One run of the student for all: its weights are read once.
    asked = [(*prompt.tokens, *tokens) for prompt, tokens in zip(prompts, answers, strict=True)]
    wanted = student([*(piece.tokens for piece in pieces), *asked])
    comparisons = []
    for done, (piece, logits_at) in enumerate(zip(pieces, wanted, strict=False), len(prompts) + 1):
        progress(_LABEL, done, steps)
        comparisons.append(_compare_sequence(logits_at, logits_of, piece.tokens))
    golden = tuple(
        _scored(logits_at, prompt.name, prompt.tokens, tokens, tokenizer.decode(tokens))
        for prompt, tokens, logits_at in zip(prompts, answers, wanted[len(pieces) :], strict=True)
    )
    progress(_LABEL, steps, steps)
    whole = join_comparisons(comparisons)
    measured = tuple(
        _text_proof(piece.name, comparison) for piece, comparison in zip(pieces, comparisons, strict=True)
    )
    return _proof(whole, measured, golden, runtime, quantization, limits, clock() - began)


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


def _by_reference(reference: Reference) -> StudentLogits:
    def run(sequences: Sequence[Sequence[int]]) -> Sequence[LogitsAt]:
        # Of all sequences only what goes into the head is kept: logits are many times larger.
        return [partial(_head, reference, state) for state in reference.hidden_states(sequences)]

    return run


def _head(reference: Reference, state: Floats, positions: slice) -> Floats:
    return reference.logits(state[positions])


def _compare_sequence(logits_at: LogitsAt, logits_of: LogitsOf, tokens: Sequence[int]) -> Comparison:
    """All positions of a sequence that have a successor."""
    parts, start, end = [], 0, len(tokens) - 1
    for chunk in logits_of(tokens):
        for first in range(0, len(chunk), _CHUNK):
            logits = chunk[first : first + min(_CHUNK, end - start)]
            if len(logits):
                stop = start + len(logits)
                student = logits_at(slice(start, stop))
                parts.append(compare_logits(student, logits, tokens[start + 1 : stop + 1]))
                start = stop
    if start != end:
        raise ExportError(f"the artifact gave logits for {start} positions of {end}")
    return join_comparisons(parts)


def _greedy_by_logits(logits_of: LogitsOf, ends: Set[int]) -> Greedy:
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
    logits_at: LogitsAt, name: str, prompt: Sequence[int], answer: Sequence[int], text: str
) -> GoldenAnswer:
    """What the student thinks of an artifact's answer, in one pass over both."""
    agrees: list[bool] = []
    if answer:
        chosen = logits_at(slice(len(prompt) - 1, len(prompt) + len(answer) - 1)).argmax(axis=1)
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
