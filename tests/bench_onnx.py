"""Our int4 ONNX against what onnxruntime-genai's own builder makes of the same checkpoint, on this CPU.

    make bench-export
    python tests/bench_onnx.py [CHECKPOINT] [--rounds N] [--threads N]

CHECKPOINT is a Hugging Face directory of floats; by default the sample student, dequantized. The builder,
`-m onnxruntime_genai.models.builder -p int4 -e cpu`, block 32, accuracy level 4, runs in an environment of
its own with torch and transformers 5. --threads gives all the same number; otherwise genai chooses.

Both are decoded in one process, in turn, so that whatever else the machine does hits both. Each round
prefills a prompt of its own and decodes; every token is timed. Reported are the medians, the fastest tenth
(what a quiet machine would show), and the ratios.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from export.progress import stream_progress
from export.runtimes.onnx_session import OnnxDecoder
from export.sample_student import fetch_sample_student
from export.student import GgufStudent, as_checkpoint, open_student
from export.targets.onnx import write_onnx
from export.tool_venv import ensure_tool_venv

sys.path.insert(0, str(Path(__file__).parent / "support"))
from written_checkpoint import write_as_checkpoint

BUILDER = ("torch==2.13.0", "transformers==5.5.1", "onnxruntime-genai==0.18.0", "onnx-ir", "onnx==1.23.2")
CONTEXT_TOKENS = 1024
PROMPT_TOKENS = 128
DECODED_TOKENS = 64


@dataclass
class Times:
    """In seconds."""

    first: list[float] = field(default_factory=list)
    token: list[float] = field(default_factory=list)


def build_with_genai(python: str, checkpoint: Path, out: Path) -> None:
    options = ["--extra_options", "int4_block_size=32", "int4_accuracy_level=4"]
    command = [python, "-m", "onnxruntime_genai.models.builder", "-p", "int4", "-e", "cpu"]
    subprocess.run([*command, "-i", checkpoint, "-o", out, *options], check=True, capture_output=True)


def genai_runner(directory: Path, threads: int | None) -> Callable[[list[int], Times], None]:
    import onnxruntime_genai as genai

    config = genai.Config(str(directory))
    if threads is not None:
        overlay = {"model": {"decoder": {"session_options": {"intra_op_num_threads": threads}}}}
        config.overlay(json.dumps(overlay))
    model = genai.Model(config)

    def run(tokens: list[int], times: Times) -> None:
        params = genai.GeneratorParams(model)
        # No token ends the answer early.
        params.set_search_options(max_length=CONTEXT_TOKENS, min_length=CONTEXT_TOKENS, do_sample=False)
        generator = genai.Generator(model, params)
        began = time.perf_counter()
        generator.append_tokens(np.array(tokens, np.int32))
        generator.generate_next_token()
        times.first.append(time.perf_counter() - began)
        for _ in range(DECODED_TOKENS):
            began = time.perf_counter()
            generator.generate_next_token()
            times.token.append(time.perf_counter() - began)

    return run


def plain_runner(directory: Path, threads: int | None) -> Callable[[list[int], Times], None]:
    decoder = OnnxDecoder(
        directory, context_tokens=CONTEXT_TOKENS, threads=threads, all_positions=False, spinning=True
    )

    def run(tokens: list[int], times: Times) -> None:
        decoder.reset()
        began = time.perf_counter()
        token = int(decoder.append(tokens)[-1].argmax())
        times.first.append(time.perf_counter() - began)
        for _ in range(DECODED_TOKENS):
            began = time.perf_counter()
            token = int(decoder.append([token])[-1].argmax())
            times.token.append(time.perf_counter() - began)

    return run


def summary(times: Times) -> dict[str, float]:
    return {
        "ttft_ms": round(1e3 * float(np.median(times.first)), 1),
        "ttft_best_ms": round(1e3 * min(times.first), 1),
        "decode_tok_s": round(1 / float(np.median(times.token)), 1),
        "decode_fastest_tenth_tok_s": round(1 / float(np.quantile(times.token, 0.1)), 1),
    }


def sample_checkpoint(directory: Path) -> Path:
    sample = open_student(fetch_sample_student())
    assert isinstance(sample, GgufStudent)
    return write_as_checkpoint(as_checkpoint(sample), directory)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("checkpoint", type=Path, nargs="?")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--threads", type=int)
    arguments = parser.parse_args()
    python = ensure_tool_venv("genai-builder", BUILDER, progress=stream_progress())
    with tempfile.TemporaryDirectory() as scratch:
        checkpoint = arguments.checkpoint or sample_checkpoint(Path(scratch) / "SmolLM2-135M-Instruct")
        student: Any = open_student(checkpoint)
        builder, ours, ours_8 = (Path(scratch) / name for name in ("builder", "ours", "ours-head-8"))
        build_with_genai(str(python), checkpoint, builder)
        for directory, head_bits in ((ours, 4), (ours_8, 8)):
            directory.mkdir()
            began = time.perf_counter()
            write_onnx(
                student, directory, precision="int4", head_bits=head_bits, context_tokens=CONTEXT_TOKENS
            )
            print(f"{directory.name}: written in {time.perf_counter() - began:.1f} s")
        runners = {
            "builder, genai": genai_runner(builder, arguments.threads),
            "ours, genai": genai_runner(ours, arguments.threads),
            "ours, head 8 bits, genai": genai_runner(ours_8, arguments.threads),
            "ours, onnxruntime": plain_runner(ours, arguments.threads),
        }
        times = {name: Times() for name in runners}
        random = np.random.default_rng(0)
        for turn in range(arguments.rounds + 1):
            tokens = random.integers(100, student.config.vocabulary // 2, PROMPT_TOKENS).tolist()
            for name in list(runners)[:: 1 if turn % 2 else -1]:
                # The first turn warms up.
                runners[name](tokens, times[name] if turn else Times())
    results = {name: summary(found) for name, found in times.items()}
    base = results["builder, genai"]
    for name, result in results.items():
        ratios = {
            "decode_ratio": round(result["decode_tok_s"] / base["decode_tok_s"], 2),
            "decode_fastest_tenth_ratio": round(
                result["decode_fastest_tenth_tok_s"] / base["decode_fastest_tenth_tok_s"], 2
            ),
            "ttft_ratio": round(result["ttft_ms"] / base["ttft_ms"], 2),
        }
        print(name, json.dumps({**result, **ratios}))


if __name__ == "__main__":
    main()
