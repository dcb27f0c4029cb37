"""Two servers in turn: ratios of the same figures, round by round.

A machine that slows down does so for both.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from edgekit.http_load.figures import Figures, Percentiles

__all__ = ["RATIOS", "Ratio", "median_of", "ratios"]


def _of(values: Percentiles | None, name: str) -> float | None:
    return None if values is None else float(getattr(values, name))


RATIOS: Final[Mapping[str, Callable[[Figures], float | None]]] = MappingProxyType(
    {
        "tokens_per_s": lambda figures: figures.tokens_per_s,
        "decode_tokens_per_s": lambda figures: figures.decode_tokens_per_s,
        "ttft_p50": lambda figures: _of(figures.ttft_ms, "p50"),
        "ttft_p95": lambda figures: _of(figures.ttft_ms, "p95"),
        "event_gap_p50": lambda figures: _of(figures.event_gap_ms, "p50"),
        "event_gap_p95": lambda figures: _of(figures.event_gap_ms, "p95"),
        "event_gap_p99": lambda figures: _of(figures.event_gap_ms, "p99"),
        "tpot_p50": lambda figures: _of(figures.tpot_ms, "p50"),
        "tpot_p95": lambda figures: _of(figures.tpot_ms, "p95"),
        "background_gap_p95": lambda figures: _of(figures.background_streams_gap_ms, "p95"),
        "tokens_per_joule": lambda figures: figures.tokens_per_joule,
    }
)
"""What is compared, and where it is found."""


@dataclass(frozen=True, slots=True)
class Ratio:
    """Ours over theirs, over the rounds."""

    median: float
    min: float
    max: float


def ratios(ours: Sequence[Figures], theirs: Sequence[Figures]) -> dict[str, Ratio]:
    """By figure. One that a round lacks, or where theirs is 0, is left out."""
    found = {}
    for name, of in RATIOS.items():
        pairs = [(of(our), of(their)) for our, their in zip(ours, theirs, strict=True)]
        values = [our / their for our, their in pairs if our is not None and their]
        if values and len(values) == len(pairs):
            found[name] = Ratio(statistics.median(values), min(values), max(values))
    return found


def median_of(rounds: Sequence[Figures], name: str) -> float | None:
    """The median over the rounds of a figure of `RATIOS`; None when a round lacks it."""
    values = [RATIOS[name](figures) for figures in rounds]
    known = [value for value in values if value is not None]
    return statistics.median(known) if known and len(known) == len(values) else None
