"""Times the export beside llama.cpp's own way: convert_hf_to_gguf.py and then llama-quantize.

    make bench-export
    python tests/bench_export.py --llama-quantize PROGRAM [--work DIR] [--layers N] [--rounds N]

PROGRAM comes from `edgekit runtime build --tools`; the converter from the llama-cpp-python sdist, run in an
environment of its own with torch. A student of R1-Distill-Qwen-1.5B's shape with random BF16 weights is
written to DIR first (3.6 GB; with --layers fewer), and one as GPTQ packs it. Every program runs in its own
process, in turn; its peak memory is what the kernel says of it (VmHWM), and of that what is not of mapped
files (sampled RssAnon).
"""

from __future__ import annotations

import argparse
import json
import lzma
import shutil
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from export.cache import cache_directory
from export.progress import stream_progress
from export.tool_venv import ensure_tool_venv
from export.toolchain.release import fetch_source_archive, unpacked_source

CONVERTER = ("torch==2.13.0", "transformers==5.5.1", "sentencepiece", "safetensors", "numpy", "pyyaml")
FIXTURES = Path(__file__).resolve().parent / "fixtures"
WIDTH, FFN, HEADS, KV_HEADS, VOCABULARY = 1536, 8960, 12, 2, 151936

WRITE = """
import sys
from pathlib import Path
from export.student import open_student
from export.targets.gguf import write_gguf
from export.plan.tensors import plan_tensors, tensor_facts
student = open_student(Path(sys.argv[1]))
plan = plan_tensors(tensor_facts(student.tensors()), student.facts, sys.argv[3])
write_gguf(student, Path(sys.argv[2]), plan, sys.argv[3])
"""
COPY = """
import shutil, sys, os
shutil.copyfile(sys.argv[1], sys.argv[2])
file = open(sys.argv[2], "rb+")
os.fsync(file.fileno())
"""


def config(layers: int, **more: object) -> dict[str, object]:
    return {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "hidden_size": WIDTH,
        "intermediate_size": FFN,
        "num_hidden_layers": layers,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "bos_token_id": 151643,
        "eos_token_id": 151643,
        "torch_dtype": "bfloat16",
        **more,
    }


def linear_shapes(layers: int) -> Iterator[tuple[str, int, int]]:
    kv = WIDTH // HEADS * KV_HEADS
    for index in range(layers):
        for name, rows, columns in (
            ("self_attn.q_proj", WIDTH, WIDTH),
            ("self_attn.k_proj", kv, WIDTH),
            ("self_attn.v_proj", kv, WIDTH),
            ("self_attn.o_proj", WIDTH, WIDTH),
            ("mlp.gate_proj", FFN, WIDTH),
            ("mlp.up_proj", FFN, WIDTH),
            ("mlp.down_proj", WIDTH, FFN),
        ):
            yield f"model.layers.{index}.{name}", rows, columns


class Values:
    """Random numbers, quickly: slices of one block that start at random places."""

    def __init__(self, seed: int) -> None:
        self._random = np.random.default_rng(seed)
        block = self._random.standard_normal(1 << 24).astype(np.float32) * np.float32(0.02)
        self._bf16 = (block.view(np.uint32) >> 16).astype(np.uint16)
        self._words = self._random.integers(0, 1 << 32, 1 << 22, dtype=np.uint32)

    def take(self, source: str, count: int) -> bytes:
        block = self._bf16 if source == "BF16" else self._words
        parts, left = [], count
        while left:
            start = int(self._random.integers(0, block.size // 2))
            parts.append(block[start : start + left].tobytes())
            left -= min(left, block.size - start)
        return b"".join(parts)


def write_safetensors(path: Path, tensors: dict[str, tuple[str, tuple[int, ...]]], values: Values) -> None:
    widths = {"BF16": 2, "F16": 2, "I32": 4}
    header, offset = {}, 0
    for name, (dtype, shape) in tensors.items():
        size = int(np.prod(shape)) * widths[dtype]
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    raw = json.dumps(header).encode()
    raw += b" " * (-len(raw) % 8)
    with path.open("wb") as file:
        file.write(len(raw).to_bytes(8, "little") + raw)
        for name, (dtype, shape) in tensors.items():
            count = int(np.prod(shape))
            if name.endswith("g_idx"):
                file.write((np.arange(count, dtype=np.int32) // 128).tobytes())
            elif name.endswith("qzeros"):
                file.write(np.full(count, 0x77777777, np.uint32).tobytes())  # GPTQ v1's symmetric 8
            elif name.endswith("scales"):
                file.write(np.full(count, 0.0031, np.float16).tobytes())
            elif "norm" in name:
                file.write(np.full(count, 0x3F80, np.uint16).tobytes())
            else:
                file.write(values.take(dtype, count))


def make_student(directory: Path, layers: int, *, gptq: bool) -> Path:
    if (directory / "README.md").is_file():
        return directory
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    settings = {"quant_method": "gptq", "bits": 4, "group_size": 128, "sym": True, "desc_act": False}
    more: dict[str, object] = {"quantization_config": settings} if gptq else {}
    (directory / "config.json").write_text(json.dumps(config(layers, **more)))
    with lzma.open(FIXTURES / "r1-tokenizer" / "tokenizer.json.xz", "rb") as packed:
        (directory / "tokenizer.json").write_bytes(packed.read())
    shutil.copy(FIXTURES / "r1-tokenizer" / "tokenizer_config.json", directory)
    tensors: dict[str, tuple[str, tuple[int, ...]]] = {
        "model.embed_tokens.weight": ("BF16", (VOCABULARY, WIDTH)),
        "lm_head.weight": ("BF16", (VOCABULARY, WIDTH)),
        "model.norm.weight": ("BF16", (WIDTH,)),
    }
    for index in range(layers):
        for norm in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"model.layers.{index}.{norm}.weight"] = ("BF16", (WIDTH,))
    for name, rows, columns in linear_shapes(layers):
        if name.endswith(("q_proj", "k_proj", "v_proj")):
            tensors[f"{name}.bias"] = ("BF16", (rows,))
        if gptq:
            tensors[f"{name}.qweight"] = ("I32", (columns // 8, rows))
            tensors[f"{name}.qzeros"] = ("I32", (columns // 128, rows // 8))
            tensors[f"{name}.scales"] = ("F16", (columns // 128, rows))
            tensors[f"{name}.g_idx"] = ("I32", (columns,))
        else:
            tensors[f"{name}.weight"] = ("BF16", (rows, columns))
    write_safetensors(directory / "model.safetensors", tensors, Values(7))
    (directory / "README.md").write_text("---\nlicense: mit\n---\n# Random weights\n")
    return directory


def measured(command: list[str]) -> tuple[float, float, float]:
    """Seconds, peak resident MB, peak anonymous MB of a process."""
    anonymous = 0.0
    started = time.perf_counter()
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    assert child.stderr is not None
    said: list[str] = []
    listener = threading.Thread(target=lambda: said.extend(child.stderr or ()), daemon=True)
    listener.start()
    peak = 0.0
    status = Path(f"/proc/{child.pid}/status")
    while child.poll() is None:
        try:
            lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
            anonymous = max(anonymous, float(lines["RssAnon"].split()[0]) / 1e3)
            peak = max(peak, float(lines["VmHWM"].split()[0]) / 1e3)
        except (OSError, KeyError):
            pass
        time.sleep(0.02)
    elapsed = time.perf_counter() - started
    if child.returncode:
        sys.exit("".join(said[-15:]) + f"\n{command[:4]} failed with {child.returncode}")
    return elapsed, peak, anonymous


def show(label: str, runs: list[tuple[float, float, float]]) -> tuple[float, float, float]:
    seconds, peak, anonymous = (statistics.median(column) for column in zip(*runs, strict=True))
    sys.stdout.write(f"{label:<44}{seconds:8.1f} s {peak:9.0f} MB peak {anonymous:8.0f} MB anonymous\n")
    return seconds, peak, anonymous


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, default=Path("build/bench-export"))
    parser.add_argument("--llama-quantize", type=Path, required=True)
    parser.add_argument("--layers", type=int, default=28)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    converter_python = ensure_tool_venv("converter", CONVERTER, progress=stream_progress())
    with unpacked_source(fetch_source_archive(cache_directory())) as source:
        compare(given, source / "vendor" / "llama.cpp" / "convert_hf_to_gguf.py", converter_python)


def compare(given: argparse.Namespace, converter: Path, converter_python: Path) -> None:
    floats = make_student(given.work / f"bf16-{given.layers}", given.layers, gptq=False)
    packed = make_student(given.work / f"gptq-{given.layers}", given.layers, gptq=True)
    out, theirs, quantized = (given.work / name for name in ("ours.gguf", "bf16.gguf", "theirs.gguf"))
    runs: dict[str, list[tuple[float, float, float]]] = {}

    def take(label: str, *command: object) -> None:
        runs.setdefault(label, []).append(measured([str(part) for part in command]))

    for _ in range(given.rounds):
        take("edgekit, BF16 to Q4_K_M", sys.executable, "-c", WRITE, floats, out, "Q4_K_M")
        take(
            "convert_hf_to_gguf",
            converter_python,
            converter,
            floats,
            "--outfile",
            theirs,
            "--outtype",
            "bf16",
        )
        take("llama-quantize, to Q4_K_M", given.llama_quantize, theirs, quantized, "Q4_K_M")
        take("edgekit, GPTQ to Q4_0", sys.executable, "-c", WRITE, packed, out, "Q4_0")
        take("copy of the GPTQ file", sys.executable, "-c", COPY, packed / "model.safetensors", quantized)
    figures = {label: show(label, values) for label, values in runs.items()}
    ours, converted = figures["edgekit, BF16 to Q4_K_M"], figures["convert_hf_to_gguf"]
    quantizer = figures["llama-quantize, to Q4_K_M"]
    seconds = ours[0] / (converted[0] + quantizer[0])
    peak = ours[1] / max(converted[1], quantizer[1])
    anonymous = ours[2] / max(converted[2], quantizer[2])
    sys.stdout.write(
        f"BF16 to Q4_K_M: {seconds:.2f} x the time, {peak:.2f} x the peak memory, "
        f"{anonymous:.2f} x the anonymous\n"
    )
    repack = figures["edgekit, GPTQ to Q4_0"][0] / figures["copy of the GPTQ file"][0]
    sys.stdout.write(f"GPTQ to Q4_0: {repack:.2f} x the time of a copy\n")
    for path in (out, theirs, quantized):
        path.unlink(missing_ok=True)


if __name__ == "__main__":
    main()
