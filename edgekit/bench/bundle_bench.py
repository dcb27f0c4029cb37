"""All rows of a bundle: what the memory gives, what the engine makes of it, what the scheduler leaves."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from edgekit.bench.bandwidth import Bandwidth, measure_bandwidth
from edgekit.bench.energy import metering
from edgekit.bench.engine_rows import Case, EngineBench, Spread
from edgekit.bench.scheduler_rows import GROWTH_CELLS, measure_scheduler, without_end
from edgekit.bench.step_bytes import step_bytes, weight_bytes_read
from edgekit.bundle.bundle import Bundle
from edgekit.device import Sensors
from edgekit.engine.llama_library import built_isa, default_threads
from edgekit.engine.runner import Runner
from edgekit.engine.scheduler import Scheduler
from edgekit.errors import UsageError
from edgekit.gguf_header import read_gguf_header
from edgekit.profiles import ServeSettings

__all__ = ["BundleReport", "Cases", "Row", "measure_bundle"]


@dataclass(frozen=True, slots=True)
class Cases:
    """What is to be measured; every combination of it."""

    prompt_tokens: tuple[int, ...] = (512,)
    answer_tokens: tuple[int, ...] = (128,)
    depths: tuple[int, ...] = (0,)
    streams: tuple[int, ...] = (1, 4, 8)
    repetitions: int = 5

    def engine(self) -> Iterator[Case]:
        """Rows of the engine: depths rise, so that each is filled up from the one before."""
        for depth in sorted(self.depths):
            for tokens in self.prompt_tokens:
                yield Case("pp", tokens, depth)
            for tokens in self.answer_tokens:
                for streams in self.streams:
                    yield Case("tg", tokens, depth, streams)

    def scheduler(self) -> Iterator[Case]:
        """Rows through the scheduler: those of `tg` again."""
        for case in self.engine():
            if case.test == "tg":
                yield replace(case, layer="scheduler")


@dataclass(frozen=True, slots=True)
class Row:
    """A case and how fast it was. Unknown is None."""

    case: Case
    tokens_per_s: Spread
    bytes_per_step: int | None = None
    """Read from memory in the mean step; decoding only."""
    bandwidth_share: float | None = None
    """Of the measured bandwidth; None on an accelerator, which reads faster than a CPU can measure."""
    power_w: float | None = None
    """All that the board's meters cover, idle or not."""
    tokens_per_joule: float | None = None


@dataclass(frozen=True, slots=True)
class BundleReport:
    """What was measured, and with which settings."""

    name: str
    release: int
    runtime: str
    quantization: str
    threads: int
    settings: ServeSettings
    bandwidth: Bandwidth
    weight_bytes_per_step: int
    rows: list[Row]


def measure_bundle(
    bundle: Bundle,
    cases: Cases,
    *,
    open_runner: Callable[[Bundle, ServeSettings], Runner],
    threads: int | None = None,
    sensors: Sensors | None = None,
    on_row: Callable[[Row], None] = lambda row: None,
) -> BundleReport:
    """Measure a bundle on this machine. Takes the time that it takes: minutes on a slow one.

    Args:
        bundle: a verified bundle.
        open_runner: loads its model.
        threads: None takes the bundle's, or the cores of this machine.
        sensors: tell what the machine draws. None: not asked.
        on_row: called with each row when it is there.

    Raises:
        UsageError: the cases do not fit the model, or the batch.
        ModelFileError, EngineError, MissingExtraError: the model cannot be loaded or run.
    """
    settings = fitting_settings(bundle, cases, threads)
    count = settings.threads or default_threads()
    weights = _weights_read(bundle, settings)
    bandwidth = measure_bandwidth(weights, count)
    rows: list[Row] = []

    def add(case: Case, measure: Callable[[], Spread]) -> None:
        with metering(sensors) as energy:
            speed = measure()
        steps_per_s = speed.mean / case.streams
        read = None
        if case.test != "pp":
            read = step_bytes(
                weights,
                bundle.manifest.model,
                settings,
                streams=case.streams,
                depth=case.depth,
                tokens=case.tokens,
            )
        on_cpu = settings.gpu_layers == 0
        share = read * steps_per_s / (bandwidth.gb_per_s * 1e9) if read is not None and on_cpu else None
        rows.append(Row(case, speed, read, share, energy.power_w, energy.per_joule(speed.mean)))
        on_row(rows[-1])

    runner = open_runner(bundle, settings)
    owned = True
    try:
        engine = EngineBench(runner)
        for case in cases.engine():
            add(case, lambda case=case: engine.measure(case, cases.repetitions))  # type: ignore[misc]
        engine.clear()
        bias, vocabulary = without_end(runner), runner.vocabulary
        scheduler = Scheduler(
            runner, context_tokens=settings.context_tokens, prefill_tokens=settings.ubatch_tokens
        )
        owned = False
        try:
            for case in cases.scheduler():
                add(
                    case,
                    lambda case=case: measure_scheduler(  # type: ignore[misc]
                        scheduler, case, cases.repetitions, vocabulary=vocabulary, bias=bias
                    ),
                )
        finally:
            scheduler.close()  # frees the runner as well
    finally:
        if owned:
            runner.close()
    manifest = bundle.manifest
    return BundleReport(
        manifest.name,
        manifest.release,
        manifest.runtime,
        manifest.model.quantization,
        count,
        settings,
        bandwidth,
        weights,
        rows,
    )


def fitting_settings(bundle: Bundle, cases: Cases, threads: int | None) -> ServeSettings:
    """The bundle's settings, with room for all cases and no more.

    Raises:
        UsageError: the model was not trained for so long a context, or a batch does not hold the streams.
    """
    settings = bundle.manifest.plan.serve
    everything = [*cases.engine(), *cases.scheduler()]
    if not everything:
        raise UsageError("nothing to measure", hint="give -p or -n a number above 0")
    context = max(case.depth + case.tokens for case in everything) + 2
    streams = max(case.streams for case in everything)
    trained = bundle.manifest.model.context_train_tokens
    if trained and context > trained:
        raise UsageError(
            f"{context} tokens are more than the {trained} that {bundle.manifest.name} was trained for",
            hint="ask for a smaller depth",
        )
    if streams > settings.batch_tokens:
        raise UsageError(f"{streams} streams do not fit the bundle's batch of {settings.batch_tokens} tokens")
    cells = max(case.cells + case.streams * GROWTH_CELLS for case in everything)
    values = settings.model_dump(exclude_unset=True)
    values |= {"context_tokens": context, "slots": streams, "kv_cells": max(cells, context)}
    if threads is not None:
        values["threads"] = threads
    return ServeSettings.model_validate(values)


def _weights_read(bundle: Bundle, settings: ServeSettings) -> int:
    if bundle.manifest.runtime != "llama.cpp":
        return bundle.manifest.model.bytes_per_token
    isa = frozenset(built_isa() or ()) if settings.gpu_layers == 0 else frozenset[str]()
    return weight_bytes_read(read_gguf_header(bundle.entry_path).tensors, isa)
