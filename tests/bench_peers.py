"""Compares `edgekit serve` with llama.cpp's own programs on the same weights, threads and machine, in turn.

usage: make bench, or .venv/bin/python tests/bench_peers.py --tools DIR [--rounds N] [--json FILE]

llama-bench and llama-server are built from the llama.cpp that the engine uses, with the same flags. A quiet
machine is a must: compute threads wait for one another in short loops, and whoever takes a core from one
stops them all. The figures are medians over the rounds.
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
from pathlib import Path
from typing import Any

import psutil

from edgekit.bundle.signing import generate_key_pair, write_key_pair
from edgekit.engine.llama_library import default_threads
from edgekit.errors import EdgekitError
from edgekit.http_load import Load, measure
from edgekit.profiles import load_profile, resolve_host
from export.demo.broker import free_port
from export.demo.chat import wait_until_ready
from export.pipeline import export_bundle
from export.sample_student import fetch_sample_student

STREAMS = 8
TOKENS = 128
END_OF_TURN = "2"  # SmolLM2's <|im_end|>: forbidden, so that all answers are of equal length
REQUESTS = 2


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


@contextlib.contextmanager
def running(command: list[str], port: int, environ: dict[str, str] | None = None) -> Iterator[psutil.Process]:
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environ)
        try:
            wait_until_ready(port, timeout_s=120, is_alive=lambda: process.poll() is None)
            yield psutil.Process(process.pid)
        except EdgekitError:
            log.seek(0)
            say(log.read().decode("utf-8", "replace"))
            raise
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)


def llama_bench(tools: Path, model: Path, threads: int) -> float:
    """Decode throughput of one stream in the engine alone, in tok/s."""
    arguments = ["-m", str(model), "-t", str(threads), "-p", "0", "-n", str(TOKENS), "-r", "3", "-o", "json"]
    output = subprocess.run([tools / "llama-bench", *arguments], check=True, capture_output=True, text=True)
    return float(json.loads(output.stdout)[0]["avg_ts"])


def load(url: str, streams: int) -> dict[str, float]:
    figures = measure(
        url,
        Load(
            streams=streams,
            requests_per_stream=REQUESTS,
            max_tokens=TOKENS,
            logit_bias={END_OF_TURN: -100.0},
        ),
    )
    return {
        "tokens_per_s": figures.tokens_per_s,
        "decode_tokens_per_s": figures.decode_tokens_per_s,
        "ttft_p50_ms": figures.ttft_p50_ms,
        "gap_p50_ms": figures.gap_p50_ms,
        "gap_p95_ms": figures.gap_p95_ms,
    }


def serve_figures(command: list[str], port: int, mapped: Path) -> dict[str, Any]:
    with running(command, port) as process:
        url = f"http://127.0.0.1:{port}"
        load(url, 1)  # warms up
        figures: dict[str, Any] = {"one": load(url, 1), "many": load(url, STREAMS)}
        maps = [entry for entry in process.memory_maps() if Path(entry.path) == mapped]
        rss = process.memory_info().rss
        figures["rss_mb"] = rss / 1e6
        figures["rss_besides_model_mb"] = (rss - sum(entry.rss for entry in maps)) / 1e6
        return figures


def median(rounds: list[dict[str, Any]], *path: str) -> float:
    values = []
    for figures in rounds:
        value: Any = figures
        for key in path:
            value = value[key]
        values.append(float(value))
    return statistics.median(values)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tools", type=Path, required=True, help="has llama-bench and llama-server")
    parser.add_argument("--json", type=Path, help="also write all figures to this file")
    parser.add_argument("--context", type=int, default=None, help="tokens of context, for both servers")
    options = parser.parse_args()

    threads = default_threads()
    profile = resolve_host(load_profile("host"))
    tools = options.tools
    student = fetch_sample_student()
    with tempfile.TemporaryDirectory() as temporary:
        secret_key, _ = generate_key_pair()
        secret, public = Path(temporary, "bench.key"), Path(temporary, "bench.pub")
        write_key_pair(secret_key, secret, public)
        bundle = export_bundle(student, profile, Path(temporary, "bundle"), secret_key=secret_key)
        context = options.context or bundle.manifest.plan.serve.context_tokens
        model = bundle.entry_path
        rounds = []
        for number in range(1, options.rounds + 1):
            port = free_port()
            ours = [sys.executable, "-m", "edgekit", "serve", str(bundle.path), "--public-key", str(public)]
            theirs = [str(tools / "llama-server"), "-m", str(model), "-t", str(threads), "-np", str(STREAMS)]
            figures = {
                "llama_bench": llama_bench(tools, model, threads),
                "edgekit": serve_figures(
                    [*ours, "--port", str(port), "--context", str(context)], port, model
                ),
                "llama_server": serve_figures(
                    [*theirs, "-kvu", "-c", str(context), "--port", str(port)], port, model
                ),
            }
            rounds.append(figures)
            say(f"round {number} of {options.rounds}: {json.dumps(figures)}")
    report(rounds, threads, context)
    if options.json is not None:
        options.json.write_text(json.dumps(rounds, indent=2) + "\n", encoding="utf-8")


def report(rounds: list[dict[str, Any]], threads: int, context: int) -> None:
    day = datetime.datetime.now(datetime.timezone.utc).date()
    say(f"\n{day}, {os.cpu_count()} CPUs, {threads} threads, context {context}, SmolLM2-135M Q4_1,")
    say(f"{TOKENS} tokens an answer, {REQUESTS} requests a stream, median of {len(rounds)} rounds\n")
    bench = median(rounds, "llama_bench")
    one = median(rounds, "edgekit", "one", "decode_tokens_per_s")
    say(f"one stream, decode tok/s: {one:.1f} over HTTP, {bench:.1f} in llama-bench, ratio {one / bench:.3f}")
    say(f"{'':28} {'edgekit':>9} {'llama-server':>13} {'ratio':>7}")
    rows = [
        ("one stream, tok/s", ("one", "tokens_per_s")),
        ("one stream, TTFT p50 ms", ("one", "ttft_p50_ms")),
        ("one stream, decode tok/s", ("one", "decode_tokens_per_s")),
        (f"{STREAMS} streams, tok/s", ("many", "tokens_per_s")),
        (f"{STREAMS} streams, TTFT p50 ms", ("many", "ttft_p50_ms")),
        (f"{STREAMS} streams, gap p50 ms", ("many", "gap_p50_ms")),
        (f"{STREAMS} streams, gap p95 ms", ("many", "gap_p95_ms")),
        ("RSS, MB", ("rss_mb",)),
        ("RSS besides the model, MB", ("rss_besides_model_mb",)),
    ]
    for name, path in rows:
        ours, theirs = median(rounds, "edgekit", *path), median(rounds, "llama_server", *path)
        say(f"{name:28} {ours:9.1f} {theirs:13.1f} {ours / theirs:7.2f}")


if __name__ == "__main__":
    main()
