"""What was measured, as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from edgekit.bench.bundle_bench import BundleReport
from edgekit.bench.svg import Bar, bars, distributions, figure
from edgekit.errors import EdgekitError, UsageError
from edgekit.http_load import Measurement

__all__ = ["LoadPlot", "check_plot_path", "plot_bundle", "plot_loads", "write_plot"]


@dataclass(frozen=True, slots=True)
class LoadPlot:
    """One load, and what each server made of it, round by round."""

    label: str
    """E.g. "8 streams"."""
    measured: dict[str, list[Measurement]] = field(default_factory=dict)
    """By the server's name."""


def check_plot_path(path: Path) -> None:
    """See that a plot can be written there, before anything is measured for it.

    Raises:
        UsageError: it is to be something else than SVG, or there is no such directory.
    """
    if path.suffix.lower() != ".svg":
        raise UsageError(
            f"{path}: plots are written as SVG",
            hint=f"name it {path.with_suffix('.svg')}; any browser shows it, and turns it into other formats",
        )
    if not path.parent.is_dir():
        raise UsageError(f"{path}: {path.parent} is no directory")


def write_plot(path: Path, drawing: str) -> None:
    """Write a plot, in place of one that is there.

    Raises:
        EdgekitError: the disk does not take it.
    """
    try:
        path.write_text(drawing, encoding="utf-8")
    except OSError as error:
        raise EdgekitError(f"{path}: cannot write the plot: {error.strerror or error}") from error


def plot_loads(title: str, subtitle: Sequence[str], loads: Sequence[LoadPlot]) -> str:
    """Throughput of all loads as bars; below, for each load, times to first token and between events."""
    names = list(dict.fromkeys(name for load in loads for name in load.measured))
    throughput = []
    for load in loads:
        for name, rounds in load.measured.items():
            speeds = sorted(one.figures.tokens_per_s for one in rounds)
            middle = (speeds[(len(speeds) - 1) // 2] + speeds[len(speeds) // 2]) / 2
            throughput.append(Bar(load.label, name, middle, speeds[0], speeds[-1]))
    rows = [[bars("Throughput, all streams together", "tokens/s", throughput, names)]]
    for load in loads:
        first = {name: _first_ms(rounds) for name, rounds in load.measured.items()}
        gaps = {name: _gaps_ms(rounds) for name, rounds in load.measured.items()}
        row = [
            distributions(f"{load.label}: time to first token", "ms, share of requests", first, names),
            distributions(f"{load.label}: between events of a stream", "ms, share of gaps", gaps, names),
        ]
        rows.append(row)
        background = {name: _gaps_ms(rounds, background=True) for name, rounds in load.measured.items()}
        if any(background.values()):
            title_text = f"{load.label}: between events of the streams that ran meanwhile"
            rows.append([distributions(title_text, "ms, share of gaps", background, names, columns=1)])
    return figure(title, subtitle, names, rows)


def plot_bundle(title: str, subtitle: Sequence[str], report: BundleReport) -> str:
    """Prompt processing and decoding, the engine alone and through the scheduler."""
    names = ["engine alone", "through scheduler and sampling"]
    prompts: list[Bar] = []
    decoding: list[Bar] = []
    rows = sorted(
        report.rows, key=lambda row: (row.case.tokens, row.case.depth, row.case.streams, row.case.layer)
    )
    for row in rows:
        low, high = min(row.tokens_per_s.samples), max(row.tokens_per_s.samples)
        name = names[row.case.layer == "scheduler"]
        label = row.case.name
        if row.case.test == "tg":
            label += f", {row.case.streams} stream{'s' if row.case.streams > 1 else ''}"
        target = prompts if row.case.test == "pp" else decoding
        target.append(Bar(label, name, row.tokens_per_s.mean, low, high))
    panels = []
    if prompts:
        panels.append([bars("Prompt processing", "tokens/s", prompts, names)])
    if decoding:
        panels.append([bars("Decoding, all streams together", "tokens/s", decoding, names)])
    return figure(title, subtitle, names if decoding else names[:1], panels)


def _first_ms(rounds: Sequence[Measurement]) -> list[float]:
    answers = [answer for one in rounds for answer in one.answers if answer.error is None]
    return [answer.ttft_s * 1e3 for answer in answers if answer.ttft_s is not None]


def _gaps_ms(rounds: Sequence[Measurement], *, background: bool = False) -> list[float]:
    answers = [
        answer
        for one in rounds
        for answer in (one.background if background else one.answers)
        if background or answer.error is None
    ]
    return [(later - earlier) * 1e3 for answer in answers for earlier, later in pairwise(answer.event_s)]
