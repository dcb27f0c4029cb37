"""Compares `edgekit serve` with llama.cpp's own programs on the same weights, threads and machine, in turn.

    make bench
    python tests/bench_peers.py --tools DIR [--part one,many,arrivals,onnx,stress] [--model q4_1,q4_0,qwen2]
                                [--rounds N] [--json FILE] [--work DIR]

DIR has llama-bench and llama-server, built from the llama.cpp that the engine uses. A quiet machine is a
must: compute threads wait for one another in short loops, and whoever takes a core from one stops them all.

    one       a stream alone, against llama-bench's decoding from the same depth on, and from none
    many      eight streams at once
    arrivals  four streams that run while others come at random: the gaps between their events
    onnx      the ONNX engine, against plain loops of onnxruntime and onnxruntime-genai
    stress    two thousand requests with random cancels: none lost, none mixed up

The servers' memory (RSS) is read after `many`. Every round measures all that is compared, one after the
other, in an order that alternates; figures are medians over the rounds, ratios are of each round.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil

sys.path.insert(0, str(Path(__file__).parent / "support"))
from peer_models import MODELS, PeerModel, make_bundle, make_onnx_bundle
from stress_streams import run as run_stress

from edgekit.bench.bundle_bench import Cases, measure_bundle
from edgekit.bench.opening import open_runner
from edgekit.bundle.bundle import Bundle
from edgekit.engine.llama_library import default_threads
from edgekit.errors import EdgekitError
from edgekit.http_load import Ask, ClosedLoop, Figures, OpenLoop, Target, measure, ratios, words_of_length
from edgekit.profiles import load_profile, resolve_host
from export.demo.broker import free_port
from export.demo.chat import wait_until_ready

PARTS = ("one", "many", "arrivals", "onnx", "stress")
STREAMS = 8
TOKENS = 128
REQUESTS = 2
RUNNING = 4
ARRIVALS_S = 30.0
ARRIVING_PROMPT_TOKENS = 200
ARRIVING_TOKENS = 16
STRESS_REQUESTS = 2000
ONNX_DEPTH, ONNX_TOKENS = 128, 64

Round = dict[str, Any]


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


@contextlib.contextmanager
def running(command: list[str], port: int) -> Iterator[psutil.Process]:
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            wait_until_ready(port, timeout_s=300, is_alive=lambda: process.poll() is None)
            yield psutil.Process(process.pid)
        except EdgekitError:
            log.seek(0)
            say(log.read().decode("utf-8", "replace")[-3000:])
            raise
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)


class Peers:
    """Both servers and llama-bench, on one bundle."""

    def __init__(self, name: str, bundle: Bundle, tools: Path, context: int | None) -> None:
        self.model: PeerModel = MODELS[name]
        self.bundle = bundle
        self.tools = tools
        self.settings = bundle.manifest.plan.serve
        self.threads = self.settings.threads or default_threads()
        self.context = context or max(4096, self.settings.context_tokens)

    def command(self, which: str, port: int) -> list[str]:
        if which == "edgekit":
            serve = [sys.executable, "-m", "edgekit", "serve", str(self.bundle.path), "--integrity-only"]
            limits = ["--threads", str(self.threads), "--context", str(self.context), "--slots", str(STREAMS)]
            return [*serve, *limits, "--port", str(port)]
        kinds = ["-ctk", self.settings.kv_type, "-ctv", self.settings.kv_type]
        serve = [str(self.tools / "llama-server"), "-m", str(self.bundle.entry_path), "-t", str(self.threads)]
        return [*serve, *kinds, "-np", str(STREAMS), "-kvu", "-c", str(self.context), "--port", str(port)]

    def llama_bench(self, depth: int) -> float:
        """Decode throughput of one stream in the engine alone, in tok/s."""
        kinds = ["-ctk", self.settings.kv_type, "-ctv", self.settings.kv_type]
        arguments = ["-m", str(self.bundle.entry_path), "-t", str(self.threads), *kinds, "-d", str(depth)]
        output = subprocess.run(
            [self.tools / "llama-bench", *arguments, "-p", "0", "-n", str(TOKENS), "-r", "3", "-o", "json"],
            check=True,
            capture_output=True,
            text=True,
        )
        return float(json.loads(output.stdout)[0]["avg_ts"])

    def ask(self, number: int, **more: Any) -> Ask:
        return Ask(
            **{"max_tokens": TOKENS, **more},
            logit_bias={str(self.model.end_token): -100.0},
            first_number=number * 100_000,
        )

    def serve(self, which: str, parts: list[str], number: int) -> dict[str, Figures | float]:
        """Start a server, put the loads on it, stop it."""
        port = free_port()
        found: dict[str, Figures | float] = {}
        with running(self.command(which, port), port) as process:
            target = Target.parse(f"http://127.0.0.1:{port}")
            measure(target, ClosedLoop(1, 1, self.ask(0)))  # warms up
            if "one" in parts:
                found["one"] = measure(target, ClosedLoop(1, REQUESTS, self.ask(number))).figures
            if "many" in parts:
                together = ClosedLoop(STREAMS, REQUESTS, self.ask(number + 1))
                found["many"] = measure(target, together).figures
                rss = process.memory_info().rss
                mapped = sum(
                    entry.rss for entry in process.memory_maps() if Path(entry.path) == self.bundle.entry_path
                )
                found |= {"rss_mb": rss / 1e6, "rss_besides_model_mb": (rss - mapped) / 1e6}
            if "arrivals" in parts:
                words = words_of_length(target, ARRIVING_PROMPT_TOKENS)
                load = OpenLoop(
                    self.model.arrivals_per_s,
                    ARRIVALS_S,
                    seed=number,
                    background=RUNNING,
                    ask=self.ask(number + 2, max_tokens=ARRIVING_TOKENS, prompts=words),
                )
                found["arrivals"] = measure(target, load).figures
        return found

    def round(self, parts: list[str], number: int) -> Round:
        order = ["edgekit", "llama_server"]
        served = {
            which: self.serve(which, parts, 1 + 10 * number) for which in order[:: 1 - 2 * (number % 2)]
        }
        bench = {}
        one = served["edgekit"].get("one")
        if isinstance(one, Figures):
            depth = round(one.prompt_tokens or 0)
            bench = {"depth": depth, "at_depth": self.llama_bench(depth), "at_0": self.llama_bench(0)}
        return {**served, "llama_bench": bench}


def compare(peers: Peers, rounds: list[Round]) -> None:
    """A line for each figure: ours, theirs, and the ratio with its lowest and highest round."""
    say(
        f"\n{peers.model.title}: {peers.threads} threads, context {peers.context}, "
        f"KV cache {peers.settings.kv_type}, median of {len(rounds)} rounds"
    )
    first = rounds[0]["edgekit"]
    if "one" in first:
        decoding = [one["edgekit"]["one"].decode_tokens_per_s for one in rounds]
        for name, key in (("at its depth", "at_depth"), ("at depth 0", "at_0")):
            theirs = [one["llama_bench"][key] for one in rounds]
            line("decode tok/s, llama-bench " + name, decoding, theirs)
    say(f"{'':34} {'edgekit':>9} {'llama-server':>13} {'ratio':>7}")
    for part in ("one", "many", "arrivals"):
        if part not in first:
            continue
        ours, theirs = ([one[which][part] for one in rounds] for which in ("edgekit", "llama_server"))
        for name in ratios(ours, theirs):
            line(f"{part}: {name}", *([value_of(figures, name) for figures in of] for of in (ours, theirs)))
    for name in ("rss_mb", "rss_besides_model_mb"):
        if name in first:
            line(name, *([one[which][name] for one in rounds] for which in ("edgekit", "llama_server")))


def value_of(figures: Figures, name: str) -> float:
    from edgekit.http_load.rounds import RATIOS

    value = RATIOS[name](figures)
    assert value is not None
    return value


def line(name: str, ours: list[float], theirs: list[float]) -> None:
    by_round = [our / their for our, their in zip(ours, theirs, strict=True)]
    say(
        f"{name:34} {statistics.median(ours):9.1f} {statistics.median(theirs):13.1f} "
        f"{statistics.median(by_round):7.3f}  ({min(by_round):.3f} to {max(by_round):.3f})"
    )


def onnx(bundle: Bundle, threads: int, rounds: int) -> dict[str, Any]:
    """The ONNX engine's rows, and the best plain loop of one stream, in turn."""
    from bench_onnx import Times, genai_runner, plain_runner, summary

    loops = {"onnxruntime loop": plain_runner, "onnxruntime-genai loop": genai_runner}
    cases = Cases(
        prompt_tokens=(), answer_tokens=(ONNX_TOKENS,), depths=(ONNX_DEPTH,), streams=(1, 4, 8), repetitions=2
    )
    tokens = [100 + 7 * index for index in range(ONNX_DEPTH)]
    found: dict[str, list[float]] = {}
    for _ in range(rounds):
        for name, make in loops.items():
            run, times = make(bundle.path, threads), Times()
            run(tokens, Times())
            run(tokens, times)
            found.setdefault(name, []).append(summary(times)["decode_tok_s"])
        report = measure_bundle(bundle, cases, open_runner=open_runner, threads=threads)
        for row in report.rows:
            name = f"{row.case.layer}, {row.case.streams} streams"
            found.setdefault(name, []).append(row.tokens_per_s.mean)
    say(f"\nONNX, {bundle.manifest.name}: decode tok/s from depth {ONNX_DEPTH}, median of {rounds} rounds")
    best = max(statistics.median(found[name]) for name in loops)
    for name, values in found.items():
        middle = statistics.median(values)
        say(f"{name:34} {middle:9.1f}  {middle / best:.3f} x the best loop")
    return found


def stress(peers: Peers, requests: int) -> str:
    port = free_port()
    with running(peers.command("edgekit", port), port):
        result = run_stress(f"http://127.0.0.1:{port}", requests=requests, concurrency=2 * STREAMS)
    for text in [*result.lost, *result.mixed][:10]:
        say(text)
    say(f"\nstress, {peers.model.title}: {result.summary()}")
    return result.summary()


def names(text: str, known: tuple[str, ...]) -> list[str]:
    chosen = text.split(",")
    unknown = [name for name in chosen if name not in known]
    if unknown:
        raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: not one of {', '.join(known)}")
    return chosen


def plain(value: Any) -> Any:
    """For JSON."""
    return asdict(value) if isinstance(value, Figures) else str(value)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tools", type=Path, required=True, help="has llama-bench and llama-server")
    parser.add_argument("--part", type=lambda text: names(text, PARTS), default=list(PARTS))
    parser.add_argument("--model", type=lambda text: names(text, tuple(MODELS)), default=list(MODELS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="also write all figures to this file")
    parser.add_argument("--context", type=int, help="tokens of context, for both servers")
    parser.add_argument("--work", type=Path, default=Path("build/bench-peers"), help="keeps the bundles")
    parser.add_argument("--layers", type=int, help="of the random student: fewer for a quick look")
    parser.add_argument("--requests", type=int, default=STRESS_REQUESTS, help="of the stress")
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    profile = resolve_host(load_profile("host"))
    day = datetime.datetime.now(datetime.timezone.utc).date()
    say(f"{day}, {os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}; {TOKENS} tokens an answer")
    document: dict[str, Any] = {"date": str(day), "models": {}}
    loads = [part for part in given.part if part in ("one", "many", "arrivals")]
    for name in given.model:
        if not loads and not ("stress" in given.part and name == given.model[0]):
            continue
        peers = Peers(
            name, make_bundle(name, profile, given.work, layers=given.layers), given.tools, given.context
        )
        if loads:
            rounds = []
            for number in range(given.rounds):
                rounds.append(peers.round(loads, number))
                say(f"{peers.model.title}: round {number + 1} of {given.rounds}")
            compare(peers, rounds)
            document["models"][name] = rounds
        if "stress" in given.part and name == given.model[0]:
            document["stress"] = stress(peers, given.requests)
    if "onnx" in given.part:
        document["onnx"] = onnx(make_onnx_bundle(profile, given.work), default_threads(), given.rounds)
    if given.json is not None:
        given.json.write_text(json.dumps(document, indent=2, default=plain) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
