"""Compares the memory that is forecast with what `edgekit serve` holds, for three models on the host profile.

usage: .venv/bin/python tests/forecast_memory.py [--work DIR] [--kv-type f16|q8_0] [--rounds N]

The models: SmolLM2-135M (Q4_1, copied), and two with random weights and R1's tokenizer, one shaped like
Qwen2.5-0.5B (Q4_0, its embedding is its output as well), one like a llama of 1.2 billion (Q4_K_M). Eight
streams at once fill the KV cache with tokens drawn from the whole vocabulary, until nearly every page of the
embedding was asked for. LLAMA_CPP_LIB_PATH names another build of llama.cpp. Needs 8 GB of memory, 6 GB of
disk and minutes for the exports the first time; --work keeps the bundles.

Needed is resident memory less the pages of the mapped file that belong to tensors of which llama.cpp made a
copy: nobody reads them, the kernel maps them along with their neighbours (newer kernels: whole folios of the
page cache) and takes them back when it likes.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import http.client
import json
import os
import random
import signal
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from edgekit.engine.llama_library import load_library
from edgekit.errors import EngineError
from edgekit.forecast import MIB, forecast
from edgekit.gguf_header import GgufHeader, model_facts, read_gguf_header
from edgekit.profiles import DeviceProfile, load_profile, profiles_directory, resolve_host
from edgekit.weight_buffers import copy_bytes, held_weights, isa_of_build
from export.demo.broker import free_port
from export.demo.chat import wait_until_ready
from export.sample_student import fetch_sample_student

sys.path.insert(0, str(Path(__file__).parent / "export"))
import tiny_checkpoint

STREAMS = 8
ANSWER_TOKENS = 24
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
MODELS: dict[str, tuple[str, dict[str, Any]] | None] = {
    "SmolLM2-135M": None,
    "Qwen2.5-0.5B-shaped": (
        "Q4_0",
        tiny_checkpoint.make_config(
            "R1-Tiny-Qwen2",
            hidden_size=896,
            intermediate_size=4864,
            num_hidden_layers=24,
            num_attention_heads=14,
            num_key_value_heads=2,
        ),
    ),
    "llama-1.2B-shaped": (
        "Q4_K_M",
        tiny_checkpoint.make_config(
            "R1-Tiny-Llama-1M",
            hidden_size=2048,
            intermediate_size=8192,
            num_hidden_layers=12,
            num_attention_heads=32,
            num_key_value_heads=8,
            head_dim=64,
        ),
    ),
}


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def host_profile(work: Path, kv_type: str) -> Path:
    """The host profile with another KV cache."""
    text = (profiles_directory() / "host.yaml").read_text()
    path = work / f"host-{kv_type.replace('_', '-')}.yaml"
    text = text.replace("name: host\n", f"name: {path.stem}\n").replace("kv_type: f16", f"kv_type: {kv_type}")
    path.write_text(text)
    return path


def make_bundle(work: Path, model: str, profile: Path) -> Path:
    bundle = work / f"{model}-{profile.stem}"
    if bundle.exists():
        return bundle
    made = MODELS[model]
    if made is None:
        local = os.environ.get("EDGEKIT_SAMPLE_STUDENT")
        source, options = Path(local) if local else fetch_sample_student(), []
    else:
        source, options = work / f"{model}-student", ["--quantization", made[0], "--allow-loss"]
        if not source.exists():
            tiny_checkpoint.write_checkpoint(source, made[1])
    command = [sys.executable, "-m", "edgekit", "export", str(source), "--profile", str(profile)]
    subprocess.run([*command, "--out", str(bundle), *options], check=True, stderr=subprocess.DEVNULL)
    return bundle


@contextlib.contextmanager
def serving(bundle: Path) -> Iterator[tuple[int, int]]:
    """A server's process id and port."""
    port = free_port()
    command = [sys.executable, "-m", "edgekit", "serve", str(bundle), "--integrity-only", "--port", str(port)]
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            wait_until_ready(port, timeout_s=300, is_alive=lambda: process.poll() is None)
            yield process.pid, port
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)


def token_texts(header: GgufHeader) -> list[str]:
    """The texts of byte-level BPE tokens that are texts by themselves."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    bytes_of = {chr(byte): byte for byte in printable}
    bytes_of |= {chr(0x100 + index): byte for index, byte in enumerate(others)}
    texts = []
    tokens = header.metadata["tokenizer.ggml.tokens"]
    assert isinstance(tokens, list | tuple)
    for token in tokens:
        with contextlib.suppress(KeyError, UnicodeDecodeError):
            texts.append(bytes(bytes_of[character] for character in str(token)).decode())
    return texts


def ask(port: int, text: str) -> None:
    body = {
        "messages": [{"role": "user", "content": text}],
        "max_tokens": ANSWER_TOKENS,
        "temperature": 2.0,
        "top_k": 0,
        "top_p": 1.0,
    }
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=600)) as connection:
        connection.request(
            "POST", "/v1/chat/completions", json.dumps(body), {"content-type": "application/json"}
        )
        answer = connection.getresponse()
        if answer.status != 200:
            raise EngineError(f"the server answered {answer.status}: {answer.read(500)!r}")
        answer.read()


def resident_bytes(pid: int) -> int:
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Rss:"):
            return int(line.split()[1]) * 1024
    raise LookupError("no Rss")


def unneeded_bytes(pid: int, header: GgufHeader, copied: set[str]) -> int:
    """Resident pages of the mapped file in which all bytes belong to copied tensors, or to nothing."""
    path = os.path.realpath(header.path)
    needed = set[int]()
    for tensor in header.tensors:
        if tensor.name not in copied:
            first, last = tensor.offset, tensor.offset + tensor.size_bytes - 1
            needed.update(range(first // PAGE_BYTES, last // PAGE_BYTES + 1))
    unneeded = 0
    with Path(f"/proc/{pid}/pagemap").open("rb") as pagemap:
        for line in Path(f"/proc/{pid}/maps").read_text("utf-8", "surrogateescape").splitlines():
            fields = line.split(maxsplit=5)
            if len(fields) < 6 or fields[5] != path:
                continue
            start, end = (int(part, 16) for part in fields[0].split("-"))
            pagemap.seek(start // PAGE_BYTES * 8)
            count = (end - start) // PAGE_BYTES
            entries = struct.unpack(f"{count}Q", pagemap.read(8 * count))
            page = int(fields[2], 16) // PAGE_BYTES
            unneeded += sum(
                bool(entry >> 63) and page + index not in needed for index, entry in enumerate(entries)
            )
    return unneeded * PAGE_BYTES


def measure(bundle: Path, profile: DeviceProfile, isa: frozenset[str], rounds: int) -> dict[str, float]:
    header = read_gguf_header(bundle / "model.gguf")
    texts, draw = token_texts(header), random.Random(1)
    copied = {
        tensor.name
        for tensor in header.tensors
        if tensor.name != "token_embd.weight"
        and copy_bytes(tensor.type_name, tensor.shape, tensor.size_bytes, isa) is not None
    }
    facts = model_facts(header)
    made = forecast(facts, profile, profile.serve)
    exact = forecast(facts, profile, profile.serve, held=held_weights(header.tensors, isa))
    # A text of one token may become several beside its neighbours; a request must leave room for the answer.
    prompt_tokens = profile.serve.context_tokens // STREAMS // 2
    with serving(bundle) as (pid, port), concurrent.futures.ThreadPoolExecutor(STREAMS) as streams:
        for _ in range(rounds):
            prompts = ["".join(draw.choices(texts, k=prompt_tokens)) for _ in range(STREAMS)]
            list(streams.map(lambda prompt: ask(port, prompt), prompts))
        resident = resident_bytes(pid)
        needed = resident - unneeded_bytes(pid, header, copied)
    return {
        "forecast": made.total_bytes / MIB,
        "by tensors": exact.total_bytes / MIB,
        "needed": needed / MIB,
        "resident": resident / MIB,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--work", type=Path)
    parser.add_argument("--kv-type", default="f16", choices=("f16", "q8_0"))
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--models", nargs="*", default=list(MODELS), choices=list(MODELS))
    options = parser.parse_args()
    isa = isa_of_build(load_library().llama_print_system_info().decode())
    build = "AMX" if "amx_int8" in isa else "AVX-512" if "avx512f" in isa else ", ".join(sorted(isa))
    with tempfile.TemporaryDirectory() as temporary:
        work = options.work or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        path = host_profile(work, options.kv_type)
        profile = resolve_host(load_profile(path)).resolved(isa=tuple(sorted(isa)))
        say("| build | model | quantization | KV cache | forecast | needed | error | by tensors | resident |")
        say("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
        for model in options.models:
            made = MODELS[model]
            found = measure(make_bundle(work, model, path), profile, isa, options.rounds)
            forecasted, needed = round(found["forecast"]), round(found["needed"])
            say(
                f"| {build} | {model} | {'Q4_1' if made is None else made[0]} | {options.kv_type} "
                f"| {forecasted} | {needed} | {forecasted / needed - 1:+.1%} "
                f"| {found['by tensors']:.0f} | {found['resident']:.0f} |"
            )


if __name__ == "__main__":
    main()
