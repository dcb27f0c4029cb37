"""How far an artifact may be from its student, by quantization.

The yardstick is llama.cpp's table for Llama 3 8B on Wikitext-2 (tools/perplexity/README.md, revision
f364eb6f), whose mean KL divergence is quoted with each entry. Students are smaller, and models differ: Q4_K_M
costs Llama 2 7B 0.013 and Llama 3 8B 0.031 (same file). The proof's texts are few, too. So the limits are
three to five times the published figure; damage, such as a zeroed matrix or swapped rows, costs far more.
Profiles override them.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import Annotated, Final

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat

from edgekit.profiles import ProofOverride

__all__ = ["DEFAULT_LIMITS", "ProofLimits", "limits_for"]


class ProofLimits(BaseModel):
    """Worst values that pass. Divergences in nats, KL(student || artifact)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    mean_kl: PositiveFloat
    kl_p99: PositiveFloat
    """99th percentile over positions."""
    top1_agreement: Annotated[float, Field(ge=0, le=1)]
    """Least share of positions at which both find the same token likeliest."""
    perplexity_ratio: Annotated[float, Field(ge=1)]
    """The artifact's perplexity over the student's."""


def _limits(mean_kl: float, kl_p99: float, top1_agreement: float, perplexity_ratio: float) -> ProofLimits:
    return ProofLimits(
        mean_kl=mean_kl,
        kl_p99=kl_p99,
        top1_agreement=top1_agreement,
        perplexity_ratio=perplexity_ratio,
    )


# 99 % KL lies at about ten times the mean in llama.cpp's own runs.
_F32 = _limits(0.001, 0.01, 0.98, 1.005)  # nothing but the order of sums, and an F16 KV cache
_F16 = _limits(0.005, 0.05, 0.97, 1.01)  # 0.0006
_8_BIT = _limits(0.01, 0.1, 0.94, 1.02)  # Q8_0: 0.0014
_6_BIT = _limits(0.025, 0.25, 0.91, 1.03)  # Q6_K: 0.0055
_5_BIT = _limits(0.08, 0.8, 0.86, 1.08)  # Q5_K_M: 0.011, Q5_0: 0.022
_4_BIT = _limits(0.15, 1.5, 0.80, 1.15)  # Q4_K_M: 0.031, Q4_K_S: 0.043, IQ4_NL: 0.036
_4_BIT_ROUND = _limits(0.30, 3.0, 0.72, 1.35)  # Q4_0 and Q4_1: 0.072
_3_BIT = _limits(0.50, 4.0, 0.65, 1.7)  # Q3_K_L: 0.087, Q3_K_M: 0.102, Q3_K_S: 0.228, IQ3_XXS: 0.184
_2_BIT = _limits(1.5, 8.0, 0.45, 3.5)  # Q2_K: 0.445, IQ2_XXS: 0.812
_1_BIT = _limits(4.0, 12.0, 0.20, 20.0)  # IQ1_M: 1.39, IQ1_S: 2.21

DEFAULT_LIMITS: Final = MappingProxyType(
    {
        "F32": _F32,
        **dict.fromkeys(("F16", "BF16"), _F16),
        **dict.fromkeys(("Q8_0", "INT8", "W8A16", "W8A8", "FP8"), _8_BIT),
        "Q6_K": _6_BIT,
        **dict.fromkeys(("Q5_K_M", "Q5_K_S", "Q5_1", "Q5_0"), _5_BIT),
        **dict.fromkeys(("Q4_K_M", "Q4_K_S", "IQ4_NL", "IQ4_XS"), _4_BIT),
        **dict.fromkeys(("Q4_0", "Q4_1", "INT4", "GPTQ", "AWQ", "NF4", "FP4", "MXFP4_MOE"), _4_BIT_ROUND),
        **dict.fromkeys(("W4A16", "W4A8", "W4AFP8"), _4_BIT_ROUND),
        **dict.fromkeys(
            ("W3A16", "Q3_K_L", "Q3_K_M", "Q3_K_S", "IQ3_M", "IQ3_S", "IQ3_XS", "IQ3_XXS"), _3_BIT
        ),
        **dict.fromkeys(("W2A16", "Q2_K", "Q2_K_S", "IQ2_M", "IQ2_S", "IQ2_XS", "IQ2_XXS", "TQ2_0"), _2_BIT),
        **dict.fromkeys(("IQ1_M", "IQ1_S", "TQ1_0"), _1_BIT),
    }
)  # fmt: skip
"""By quantization, as profiles spell it."""


def limits_for(quantization: str, override: ProofOverride | None = None) -> ProofLimits:
    """The limits of a quantization. One that the table does not know gets those of 4 bits.

    Args:
        override: replaces single limits, e.g. from a profile.
    """
    limits = DEFAULT_LIMITS.get(quantization, _4_BIT_ROUND)
    changes = {} if override is None else override.model_dump(exclude_none=True)
    return ProofLimits.model_validate({**limits.model_dump(), **changes})
