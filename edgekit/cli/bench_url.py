"""`edgekit bench URL`: puts loads on one server, or on two in turn, and prints what their clients see."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import typer

from edgekit.errors import UsageError

if TYPE_CHECKING:
    from edgekit.http_load import Figures, Load, Measurement, Percentiles, Ratio, Target
    from edgekit.http_load.prompts import Prompts

__all__ = ["UrlOptions", "bench_url"]

_NUMBERS_PER_LOAD: Final = 100_000
"""Requests of a load and round are numbered from a multiple of this: none is asked twice, so no server
finds an answer's prompt cached that the other had to compute."""


@dataclass(frozen=True, slots=True)
class UrlOptions:
    """What the command line says."""

    streams: tuple[int, ...]
    rates_per_s: tuple[float, ...]
    """Empty: closed loops of `streams`."""
    requests_per_stream: int
    max_tokens: int
    duration_s: float
    background: int
    prompt_tokens: int | None
    shared_tokens: int
    forbidden_tokens: tuple[int, ...]
    seed: int
    timeout_s: float
    rounds: int
    model: str | None
    ca_file: Path | None


def bench_url(
    url: str,
    against: str | None,
    options: UrlOptions,
    *,
    key_files: tuple[Path | None, Path | None],
    plot: Path | None,
    document: dict[str, Any],
    quiet: bool,
) -> None:
    """Measure a server, print a table unless `quiet`, and fill the document."""
    from edgekit.http_load import measure, ratios

    ours = _target(url, key_files[0], "EDGEKIT_API_KEY", options)
    if against == url:
        raise UsageError("--against names the same server")
    if against is None and key_files[1] is not None:
        raise UsageError("--against-api-key-file needs --against")
    theirs = None if against is None else _target(against, key_files[1], "EDGEKIT_AGAINST_API_KEY", options)
    targets = [ours] if theirs is None else [ours, theirs]
    prompts = _prompts(ours, options)
    for target in targets:
        target.check()
        measure(target, _warm_up(options, prompts))
    document.update(
        {
            "url": url,
            "against": against,
            "rounds": options.rounds,
            "max_tokens": options.max_tokens,
            "prompt_tokens_wanted": options.prompt_tokens,
            "shared_prefix_tokens_wanted": options.shared_tokens or None,
            "seed": options.seed,
            "loads": [],
        }
    )
    if not quiet:
        _print_heading()
    seen: list[tuple[str, dict[str, list[Measurement]]]] = []
    for index, kind in enumerate(options.rates_per_s or options.streams):
        found: dict[str, list[Measurement]] = {target.url: [] for target in targets}
        label = f"{kind:g} req/s" if options.rates_per_s else f"{kind:g} stream{'s' if kind > 1 else ''}"
        for turn in range(options.rounds):
            load = _load(kind, options, prompts, _NUMBERS_PER_LOAD * (1 + turn + index * options.rounds))
            # The other one first every second turn: what comes first may find a cooler machine.
            for target in targets if turn % 2 == 0 else targets[::-1]:
                measured = _measure(target, load)
                found[target.url].append(measured)
                if not quiet:
                    _print_row(label, measured.figures, target.url)
        seen.append((label, found))
        compared = None
        if theirs is not None:
            compared = ratios(*([one.figures for one in found[target.url]] for target in targets))
            if not quiet:
                _print_ratios(compared)
        document["loads"].append(_load_document(kind, options, found, targets, compared))
    if not quiet:
        _print_notes(seen)
    if plot is not None:
        _write_plot(plot, url, options, seen)


def _target(url: str, key_file: Path | None, variable: str, options: UrlOptions) -> Target:
    from edgekit.http_load import Target
    from edgekit.http_load.target import read_api_key

    key = read_api_key(key_file) if key_file is not None else os.environ.get(variable) or None
    return Target.parse(url, api_key=key, ca_file=options.ca_file)


def _prompts(target: Target, options: UrlOptions) -> Prompts:
    from edgekit.http_load import Numbered, words_of_length

    if options.prompt_tokens is None:
        return Numbered()
    return words_of_length(
        target,
        options.prompt_tokens,
        shared_tokens=options.shared_tokens,
        model=options.model,
        seed=options.seed,
    )


def _load(kind: float, options: UrlOptions, prompts: Prompts, first_number: int) -> Load:
    from edgekit.http_load import Ask, ClosedLoop, OpenLoop

    ask = Ask(
        max_tokens=options.max_tokens,
        prompts=prompts,
        model=options.model,
        logit_bias={str(token): -100.0 for token in options.forbidden_tokens},
        first_number=first_number + options.seed,
        timeout_s=options.timeout_s,
    )
    if not options.rates_per_s:
        return ClosedLoop(int(kind), options.requests_per_stream, ask)
    return OpenLoop(
        kind, options.duration_s, seed=first_number + options.seed, background=options.background, ask=ask
    )


def _warm_up(options: UrlOptions, prompts: Prompts) -> Load:
    from edgekit.http_load import Ask, ClosedLoop

    return ClosedLoop(1, 1, Ask(max_tokens=8, prompts=prompts, model=options.model, first_number=0))


def _measure(target: Target, load: Load) -> Measurement:
    """Measure; where the server is on this machine, and the machine has meters, its power too."""
    from edgekit.bench.energy import metering
    from edgekit.device import open_sensors
    from edgekit.http_load import measure

    with metering(open_sensors() if target.is_local else None) as energy:
        measured = measure(target, load)
    figures = replace(
        measured.figures,
        tokens_per_joule=energy.per_joule(measured.figures.tokens_per_s),
        power_w=energy.power_w,
    )
    return replace(measured, figures=figures)


def _load_document(
    kind: float,
    options: UrlOptions,
    found: dict[str, list[Measurement]],
    targets: list[Target],
    compared: dict[str, Ratio] | None,
) -> dict[str, Any]:
    rounds = [[asdict(one.figures) for one in found[target.url]] for target in targets]
    return {
        "streams": None if options.rates_per_s else kind,
        "rate_per_s": kind if options.rates_per_s else None,
        "duration_s": options.duration_s if options.rates_per_s else None,
        "requests_per_stream": None if options.rates_per_s else options.requests_per_stream,
        "background_streams": options.background,
        "measured": rounds[0],
        "against": rounds[1] if len(rounds) > 1 else None,
        "ratios": None if compared is None else {name: asdict(ratio) for name, ratio in compared.items()},
    }


def _print_heading() -> None:
    typer.echo(
        f"{'':12} {'tok/s':>7} {'a stream':>8} {'TTFT p50':>9} {'p95':>7} "
        f"{'gap p50':>8} {'p95':>7} {'p99':>7} {'TPOT p50':>9} {'p95':>7} {'tok/event':>9}  server"
    )


def _print_row(label: str, figures: Figures, name: str) -> None:
    def ms(values: Percentiles | None, *names: str) -> str:
        widths = (9, 7) if len(names) == 2 else (8, 7, 7)
        shown = ("-" if values is None else f"{getattr(values, name):.1f}" for name in names)
        return " ".join(f"{text:>{width}}" for text, width in zip(shown, widths, strict=True))

    def number(value: float | None, width: int, digits: int) -> str:
        return f"{'-' if value is None else format(value, f'.{digits}f'):>{width}}"

    typer.echo(
        f"{label:12} {figures.tokens_per_s:7.1f} {number(figures.decode_tokens_per_s, 8, 1)} "
        f"{ms(figures.ttft_ms, 'p50', 'p95')} {ms(figures.event_gap_ms, 'p50', 'p95', 'p99')} "
        f"{ms(figures.tpot_ms, 'p50', 'p95')} {number(figures.tokens_per_event, 9, 2)}  {name}"
    )
    details = []
    if figures.load == "open":
        details.append(f"{figures.answered} of {figures.requests} answered in {figures.seconds:.1f} s")
    if figures.errors:
        details.append("errors: " + ", ".join(f"{count} x {name}" for name, count in figures.errors.items()))
    if figures.late_starts:
        details.append(f"{figures.late_starts} sent late, by {figures.latest_ms:.0f} ms at most")
    if figures.background_streams_gap_ms is not None:
        gaps = figures.background_streams_gap_ms
        details.append(
            f"streams meanwhile: gap p50 {gaps.p50:.1f}, p95 {gaps.p95:.1f}, p99 {gaps.p99:.1f} ms"
        )
    if figures.tokens_per_joule is not None:
        details.append(f"{figures.tokens_per_joule:.2f} tokens/J at {figures.power_w:.1f} W")
    if details:
        typer.echo(f"{'':12} {'; '.join(details)}")


def _print_ratios(compared: dict[str, Ratio]) -> None:
    typer.echo(f"{'ratio':12} median of the rounds (lowest to highest)")
    for name, ratio in compared.items():
        typer.echo(f"{'':12} {name:20} {ratio.median:6.3f}  ({ratio.min:.3f} to {ratio.max:.3f})")


def _print_notes(seen: list[tuple[str, dict[str, list[Measurement]]]]) -> None:
    typer.echo(
        "times in ms; gap: between events of a stream, which may carry several tokens; "
        "TPOT: per token after the first"
    )
    rounds = [one.figures for _, found in seen for measured in found.values() for one in measured]
    busiest = max(figures.client_cpu_percent for figures in rounds)
    if busiest > 10:
        typer.echo(f"this client took up to {busiest:.0f} % of a core")


def _write_plot(
    plot: Path, url: str, options: UrlOptions, seen: list[tuple[str, dict[str, list[Measurement]]]]
) -> None:
    from edgekit.bench.plots import LoadPlot, plot_loads, write_plot

    prompt = "" if options.prompt_tokens is None else f"prompts of {options.prompt_tokens} tokens, "
    times = f"{options.rounds} round{'s' if options.rounds > 1 else ''}"
    what = (
        f"{prompt}answers of {options.max_tokens} tokens at most, {times}; whiskers: lowest to highest round"
    )
    write_plot(
        plot,
        plot_loads(f"Load on {url}", [what], [LoadPlot(label, found) for label, found in seen]),
    )
