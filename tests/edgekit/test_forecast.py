from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from edgekit.facts import ModelFacts
from edgekit.forecast import Forecast, compute_bytes, forecast, kv_bytes, runtime_bytes
from edgekit.gguf_header import model_facts, read_gguf_header
from edgekit.profiles import DeviceProfile, KvType, Memory, ServeSettings, load_profile
from edgekit.weight_buffers import HeldWeights

MIB = 1024 * 1024

R1_7B = ModelFacts(
    name="DeepSeek-R1-Distill-Qwen-7B",
    architecture="qwen2",
    parameters=7_615_616_512,
    weight_bytes=4_680_000_000,
    bytes_per_token=4_370_000_000,
    quantization="Q4_K_M",
    layers=28,
    embedding_length=3584,
    feed_forward_length=18944,
    attention_heads=28,
    attention_kv_heads=4,
    head_length=128,
    vocabulary=152_064,
    context_train_tokens=131_072,
    tied_embeddings=False,
)


def settings(
    *,
    context_tokens: int = 4096,
    kv_cells: int | None = None,
    kv_type: KvType = "f16",
    flash_attention: bool | None = None,
    ubatch_tokens: int = 128,
    slots: int = 1,
) -> ServeSettings:
    return ServeSettings(
        threads=1,
        context_tokens=context_tokens,
        slots=slots,
        kv_cells=kv_cells,
        kv_type=kv_type,
        flash_attention=flash_attention,
        ubatch_tokens=ubatch_tokens,
    )


def with_memory(profile: DeviceProfile, memory: Memory) -> DeviceProfile:
    return profile.model_copy(update={"memory": memory})


@pytest.mark.parametrize(
    ("kv_type", "expected"),
    # 2 x 28 layers x 4 heads x 128 = 28,672 elements for each of 4,096 cells.
    [("f16", 224 * MIB), ("f32", 448 * MIB), ("q8_0", 119 * MIB), ("q4_0", 63 * MIB)],
)
def test_kv_bytes__two_vectors_a_layer_head_and_cell(kv_type: KvType, expected: int) -> None:
    assert kv_bytes(R1_7B, settings(kv_type=kv_type)) == expected


def test_kv_bytes__cells_are_shared_by_all_slots() -> None:
    assert kv_bytes(R1_7B, settings(slots=8)) == kv_bytes(R1_7B, settings(slots=1))
    assert kv_bytes(R1_7B, settings(kv_cells=8192)) == 2 * kv_bytes(R1_7B, settings())


LOG_BUFFERS = """
import ctypes, json, re, sys
import llama_cpp

lines = []

@llama_cpp.llama_log_callback
def keep(level, text, data):
    lines.append(text.decode(errors="replace"))

llama_cpp.llama_log_set(keep, ctypes.c_void_p(0))
llama_cpp.llama_backend_init()
model = llama_cpp.llama_model_load_from_file(sys.argv[1].encode(), llama_cpp.llama_model_default_params())
found = []
for cells, ubatch, slots, flash in json.loads(sys.argv[2]):
    lines.clear()
    params = llama_cpp.llama_context_default_params()
    params.n_ctx, params.n_batch, params.n_ubatch, params.n_seq_max = cells, 512, ubatch, slots
    params.kv_unified, params.flash_attn_type, params.n_outputs_max = True, flash, slots
    context = llama_cpp.llama_init_from_model(model, params)
    log = "".join(lines)
    found.append({kind: float(re.search(kind + r" buffer size =\\s+([0-9.]+) MiB", log).group(1))
                  for kind in ("output", "KV", "compute")})
    llama_cpp.llama_free(context)
print(json.dumps(found))
"""


def test_compute_and_kv_bytes__are_what_llama_cpp_logs(student: Path) -> None:
    automatic, never = -1, 0
    cases = [(4096, 128, 8, automatic), (4096, 512, 1, automatic), (8192, 512, 8, never)]
    # In a child: llama.cpp's log callback belongs to the whole process.
    ran = subprocess.run(
        [sys.executable, "-c", LOG_BUFFERS, str(student), json.dumps(cases)],
        capture_output=True,
        text=True,
        check=True,
    )
    facts = model_facts(read_gguf_header(student))

    for (cells, ubatch, slots, flash), logged in zip(cases, json.loads(ran.stdout), strict=True):
        serve = settings(
            context_tokens=cells,
            ubatch_tokens=ubatch,
            slots=slots,
            flash_attention=False if flash == never else None,
        )
        assert kv_bytes(facts, serve) / MIB == pytest.approx(logged["KV"], rel=0.001)
        assert compute_bytes(facts, serve) / MIB == pytest.approx(
            logged["compute"] + logged["output"], rel=0.03
        )


@pytest.mark.parametrize(
    ("shape", "cells", "flash_attention", "logged_mib"),
    # Logged by llama.cpp (llama-cpp-python 0.3.36, CPU, ubatch 512, 2026-11-23) for synthetic models with
    # two layers: E, F, V, heads, KV heads, head length.
    [
        ((512, 8192, 1000, 8, 2, 64), 1024, None, 53.01),
        ((512, 8192, 1000, 8, 2, 64), 32768, None, 84.01),
        ((512, 8192, 1000, 8, 2, 64), 32768, False, 581.51),
        ((2048, 1024, 1000, 16, 4, 128), 32768, None, 54.01),
        ((2048, 1024, 1000, 16, 4, 128), 8192, False, 294.01),
        ((1024, 64, 500, 16, 16, 64), 1024, None, 13.01),
        ((1024, 64, 500, 16, 2, 128), 1024, None, 15.14),
        ((1024, 64, 500, 16, 2, 128), 8192, False, 289.01),
        ((896, 4864, 2000, 14, 2, 64), 32768, None, 67.51),
        ((896, 4864, 2000, 14, 2, 64), 8192, False, 249.26),
    ],
)
def test_compute_bytes__follow_llama_cpp_where_other_stages_are_largest(
    shape: tuple[int, int, int, int, int, int],
    cells: int,
    flash_attention: bool | None,
    logged_mib: float,
) -> None:
    embedding, feed_forward, vocabulary, heads, kv_heads, head_length = shape
    facts = R1_7B.model_copy(
        update={
            "embedding_length": embedding,
            "feed_forward_length": feed_forward,
            "vocabulary": vocabulary,
            "attention_heads": heads,
            "attention_kv_heads": kv_heads,
            "head_length": head_length,
        }
    )
    serve = settings(context_tokens=cells, ubatch_tokens=512, flash_attention=flash_attention)
    logits = 4 * vocabulary

    assert (compute_bytes(facts, serve) - logits) / MIB == pytest.approx(logged_mib, rel=0.03)


def test_forecast__total_is_the_sum_of_its_parts() -> None:
    profile = load_profile("raspberry-pi-5-8gb")
    made = forecast(R1_7B, profile, profile.serve)

    assert made.weights_bytes == R1_7B.weight_bytes
    assert made.runtime_bytes == runtime_bytes(R1_7B)
    assert made.total_bytes == (
        made.weights_bytes + made.copies_bytes + made.kv_bytes + made.compute_bytes + made.runtime_bytes
    )
    assert made.available_bytes == (8048 - 1024) * MIB


def test_forecast__embedding_that_is_the_output_too_is_held_twice_where_kernels_rearrange_it() -> None:
    profile = load_profile("raspberry-pi-5-8gb")
    tied = R1_7B.model_copy(update={"tied_embeddings": True})
    other = profile.model_copy(update={"cpu": profile.cpu.model_copy(update={"isa": ("sse3",)})})

    assert forecast(R1_7B, profile, profile.serve).copies_bytes == 0
    assert forecast(tied, profile, profile.serve).copies_bytes == 152_064 * 3584 * 210 // 256
    assert forecast(tied, other, profile.serve).copies_bytes == 0


def test_forecast__weights_that_are_known_are_not_estimated() -> None:
    profile = load_profile("raspberry-pi-5-8gb")
    held = HeldWeights(mapped_bytes=R1_7B.weight_bytes, copied_bytes=5)

    assert forecast(R1_7B, profile, profile.serve, held=held).copies_bytes == 5


def test_forecast__onnxruntime_holds_two_caches_for_a_step_and_no_copies() -> None:
    profile = load_profile("raspberry-pi-5-8gb").model_copy(update={"runtime": "onnxruntime"})
    made = forecast(R1_7B, profile, profile.serve)

    assert made.kv_bytes == 2 * kv_bytes(R1_7B, profile.serve)
    assert (made.copies_bytes, made.runtime_bytes) == (0, runtime_bytes(R1_7B, "onnxruntime"))


def test_forecast__shortfall_is_what_is_missing() -> None:
    profile = load_profile("raspberry-pi-5-8gb")
    need = forecast(R1_7B, profile, profile.serve).total_bytes
    total_mib = need // MIB

    def on(reserve_mib: int) -> Forecast:
        memory = Memory(
            total_mib=total_mib + 1, reserve_mib=reserve_mib, peak_gb_per_s=None, sustained_gb_per_s=None
        )
        return forecast(R1_7B, with_memory(profile, memory), profile.serve)

    assert (on(0).fits, on(0).shortfall_bytes) == (True, 0)
    short = on(101)
    assert (short.fits, short.shortfall_bytes) == (False, need - (total_mib - 100) * MIB)


def test_forecast__decode_reads_weights_and_half_a_context_once_per_token() -> None:
    profile = load_profile("raspberry-pi-5-8gb")
    serve = settings(context_tokens=8192, slots=2)
    made = forecast(R1_7B, profile, serve)

    read = R1_7B.bytes_per_token + kv_bytes(R1_7B, settings(context_tokens=4096))
    assert made.decode_tokens_per_s == pytest.approx(9.6e9 / read)


def test_forecast__more_shared_cells_do_not_slow_one_stream() -> None:
    profile = load_profile("jetson-agx-orin-64gb")
    one = forecast(R1_7B, profile, settings(context_tokens=8192))
    shared = forecast(R1_7B, profile, settings(context_tokens=8192, kv_cells=65536))

    assert one.decode_tokens_per_s == shared.decode_tokens_per_s


def test_forecast__fixed_cost_of_a_step_is_added() -> None:
    profile = load_profile("jetson-orin-nano-8gb")
    free = profile.model_copy(update={"compute": profile.compute.model_copy(update={"step_ms": None})})
    with_cost = forecast(R1_7B, profile, profile.serve).decode_tokens_per_s
    without = forecast(R1_7B, free, profile.serve).decode_tokens_per_s

    assert with_cost is not None and without is not None
    assert 1 / with_cost - 1 / without == pytest.approx(0.004)


def test_forecast__prefill_is_two_operations_a_weight_and_token() -> None:
    profile = load_profile("raspberry-pi-5-8gb")

    made = forecast(R1_7B, profile, profile.serve)

    assert made.prefill_tokens_per_s == pytest.approx(194e9 / (2 * R1_7B.parameters))


def test_forecast__what_the_profile_leaves_open_is_unknown() -> None:
    profile = load_profile("host")
    made = forecast(R1_7B, profile, profile.serve)

    assert made.total_bytes > R1_7B.weight_bytes
    assert (made.available_bytes, made.shortfall_bytes, made.fits) == (None, None, None)
    assert (made.decode_tokens_per_s, made.prefill_tokens_per_s) == (None, None)


@pytest.mark.parametrize(
    ("profile_name", "size_gb", "read_gb", "published"),
    # Figures that the profiles were not fitted to: their comments name the sources of those they were.
    [
        # Holohub issue 170: Llama 2 13B, 4 bit (Q4_K_M size taken), llama.cpp on AGX Orin.
        ("jetson-agx-orin-64gb", 7.87, 7.78, 13.3),
        # geerlingguy/ai-benchmarks issue 7: Llama 2 13B Q4_0 with Ollama on a Raspberry Pi 5.
        ("raspberry-pi-5-16gb", 7.37, 7.27, 1.36),
        # Nyun AI's leaderboard: MPT 7B Q4_0 on a Raspberry Pi 5 with 8 GB.
        ("raspberry-pi-5-8gb", 3.96, 3.85, 2.53),
    ],
)
def test_forecast__comes_near_published_speeds(
    profile_name: str, size_gb: float, read_gb: float, published: float
) -> None:
    facts = R1_7B.model_copy(
        update={"weight_bytes": int(size_gb * 1e9), "bytes_per_token": int(read_gb * 1e9)}
    )
    made = forecast(facts, load_profile(profile_name), settings(context_tokens=512))

    assert made.decode_tokens_per_s == pytest.approx(published, rel=0.25)


def test_forecast__survives_json() -> None:
    profile = load_profile("raspberry-pi-5-8gb")
    made = forecast(R1_7B, profile, profile.serve)

    assert Forecast.model_validate_json(made.model_dump_json()) == made
