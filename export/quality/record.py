"""What a proof found, as it is kept: in the manifest, in golden.json, in the report."""

from __future__ import annotations

from typing import Final

from pydantic import BaseModel, ConfigDict

from export.quality.limits import ProofLimits

__all__ = ["KL_QUANTILES", "ExactProof", "GoldenAnswer", "Proof", "TensorError", "TextProof"]

KL_QUANTILES: Final = (0, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.98, 0.99, 0.995, 0.999, 1)
"""Shares of positions; `Proof.kl_quantiles` has the divergence that each stays below."""


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class TextProof(_Record):
    """One of the texts."""

    name: str
    positions: int
    mean_kl: float
    top1_agreement: float
    student_perplexity: float
    artifact_perplexity: float


class GoldenAnswer(_Record):
    """What the artifact answers greedily, to be asked again on the device, and what the student thinks."""

    name: str
    prompt_tokens: tuple[int, ...]
    answer_tokens: tuple[int, ...]
    text: str
    agreement: float | None
    """Share of the answer's tokens that the student would have chosen. None: the answer is empty."""
    first_divergence: int | None
    """The first token of the answer that the student would not have chosen. None: there is none."""


class TensorError(_Record):
    """How far an artifact's tensor is from the student's."""

    name: str
    """Hugging Face's."""
    storage: str | None
    """What the artifact stores it as. None: the artifact lacks it."""
    relative_error: float
    """||W - W'|| / ||W||, Frobenius."""
    weighted_error: float | None
    """The same with columns weighed by the importance matrix. None: there was none."""
    gain: float
    """<W, W'> / <W, W>: 1 but for rounding, unless a tensor was scaled."""
    times_typical: float
    """Error, or the gain's distance from 1, in multiples of the median of the same storage."""


class ExactProof(_Record):
    """Tensors that were moved, not computed anew: how many carry the very same values."""

    tensors: int
    exact: int
    max_error_steps: float
    """Largest difference of integer matrices, in steps of the student's own grid."""
    worst_tensor: str | None
    """None: all are exact."""


class Proof(_Record):
    """How an artifact compares with its student. Divergences are KL(student || artifact) in nats."""

    runtime: str
    quantization: str
    positions: int
    mean_kl: float
    kl_p99: float
    kl_max: float
    kl_quantiles: tuple[float, ...]
    """At `KL_QUANTILES`."""
    top1_agreement: float
    student_perplexity: float
    artifact_perplexity: float
    perplexity_ratio: float
    golden_agreement: float | None
    texts: tuple[TextProof, ...]
    golden: tuple[GoldenAnswer, ...]
    limits: ProofLimits
    seconds: float
    misses: tuple[str, ...] = ()
    """What the limits say, a sentence for each that is missed."""
    worst_tensors: tuple[TensorError, ...] = ()
    """Looked for where a limit was missed."""
    exact: ExactProof | None = None

    @property
    def passed(self) -> bool:
        return not self.misses
