"""`edgekit bench BUNDLE`: verifies, measures, prints rows as they come."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from edgekit.errors import SignatureError

if TYPE_CHECKING:
    from edgekit.bench.bundle_bench import BundleReport, Row

__all__ = ["BundleOptions", "bench_bundle"]


@dataclass(frozen=True, slots=True)
class BundleOptions:
    """What the command line says."""

    prompt_tokens: tuple[int, ...]
    answer_tokens: tuple[int, ...]
    depths: tuple[int, ...]
    streams: tuple[int, ...]
    repetitions: int
    threads: int | None
    public_key: str | None
    integrity_only: bool


def bench_bundle(
    path: Path, options: BundleOptions, *, plot: Path | None, document: dict[str, Any], quiet: bool
) -> None:
    """Measure a bundle, print a table unless `quiet`, and fill the document."""
    from edgekit.bench.bundle_bench import Cases, measure_bundle
    from edgekit.bench.opening import open_runner
    from edgekit.bundle.bundle import verify_bundle
    from edgekit.cli.trusted_key import choose_key
    from edgekit.device import open_sensors

    key = choose_key(options.public_key, integrity_only=options.integrity_only)
    if key is None and not options.integrity_only:
        raise SignatureError(
            f"{path}: the signature cannot be checked: no public key is known",
            hint="give --public-key KEY.pub, or measure it anyway with --integrity-only",
        )
    bundle = verify_bundle(path, key)
    cases = Cases(
        prompt_tokens=tuple(tokens for tokens in options.prompt_tokens if tokens),
        answer_tokens=tuple(tokens for tokens in options.answer_tokens if tokens),
        depths=options.depths,
        streams=options.streams,
        repetitions=options.repetitions,
    )
    if not quiet:
        typer.echo(f"{'':9} {'test':16} {'streams':>7} {'tok/s':>18} {'bandwidth':>10} {'tok/J':>7}")
    report = measure_bundle(
        bundle,
        cases,
        open_runner=open_runner,
        threads=options.threads,
        sensors=open_sensors(),
        on_row=(lambda row: None) if quiet else _print_row,
    )
    document.update(_document(report))
    if not quiet:
        for line in _notes(report):
            typer.echo(line)
    if plot is not None:
        from edgekit.bench.plots import plot_bundle, write_plot

        title = f"{report.name} {report.quantization}"
        write_plot(plot, plot_bundle(title, _notes(report)[:2], report))


def _print_row(row: Row) -> None:
    speed = row.tokens_per_s
    spread = f"± {speed.stddev:6.2f}" if speed.stddev is not None else " " * 8
    share = f"{row.bandwidth_share:9.0%}" if row.bandwidth_share is not None else f"{'-':>9}"
    joule = f"{row.tokens_per_joule:7.2f}" if row.tokens_per_joule is not None else f"{'-':>7}"
    typer.echo(
        f"{row.case.layer:9} {row.case.name:16} {row.case.streams:7d} {speed.mean:9.2f} {spread}  "
        f"{share} {joule}"
    )


def _notes(report: BundleReport) -> list[str]:
    settings, bandwidth = report.settings, report.bandwidth
    cache = bandwidth.cache_bytes
    lines = [
        f"{report.runtime}, {report.threads} threads, KV cache {settings.kv_type} of {settings.cells} cells, "
        f"batches of {settings.batch_tokens}/{settings.ubatch_tokens} tokens",
        f"memory: {bandwidth.gb_per_s:.1f} GB/s read with {bandwidth.threads} threads from "
        f"{bandwidth.buffer_bytes / 2**20:.0f} MiB; a token reads "
        f"{report.weight_bytes_per_step / 2**20:.0f} MiB of weights, and its KV cache",
        "engine: nothing drawn, as in llama-bench; scheduler: through it, and with sampling",
    ]
    if cache is not None and bandwidth.buffer_bytes < cache:
        lines.append(
            f"the last cache ({cache / 2**20:.0f} MiB) may hold all of it: "
            "the bandwidth is not that of memory alone"
        )
    return lines


def _document(report: BundleReport) -> dict[str, Any]:
    return {
        "bundle": report.name,
        "release": report.release,
        "runtime": report.runtime,
        "quantization": report.quantization,
        "threads": report.threads,
        "settings": report.settings.model_dump(),
        "bandwidth": asdict(report.bandwidth),
        "weight_bytes_per_step": report.weight_bytes_per_step,
        "rows": [
            {
                **asdict(row.case),
                "tokens_per_s": row.tokens_per_s.mean,
                "stddev": row.tokens_per_s.stddev,
                "samples": list(row.tokens_per_s.samples),
                "bytes_per_step": row.bytes_per_step,
                "bandwidth_share": row.bandwidth_share,
                "power_w": row.power_w,
                "tokens_per_joule": row.tokens_per_joule,
            }
            for row in report.rows
        ],
    }
