"""Forecasts what a model needs on a device and how fast it will be, from numbers alone.

Memory is exact where llama.cpp's arithmetic is known: weights, KV cache, and the compute buffers of dense
decoder models, whose formula was fitted to the sizes that llama.cpp itself logs ("compute buffer size").
Speed is a roofline: decoding is limited by reading memory, prefilling by arithmetic. What was measured and
published beside it is in device_profiles/FORECASTS.md.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import Final

from pydantic import BaseModel, ConfigDict, NonNegativeFloat, NonNegativeInt

from edgekit.facts import ModelFacts
from edgekit.profiles import DeviceProfile, Runtime, ServeSettings
from edgekit.weight_buffers import HeldWeights, estimate_weights

__all__ = ["Forecast", "compute_bytes", "copies_bytes", "forecast", "kv_bytes", "runtime_bytes"]

MIB: Final = 1024 * 1024

KV_BYTES_PER_ELEMENT: Final = MappingProxyType(
    {"f32": 4.0, "f16": 2.0, "bf16": 2.0, "q8_0": 34 / 32, "q4_0": 18 / 32}
)
"""ggml-common.h: a block of q8_0 holds 32 values in 34 bytes, one of q4_0 holds 32 in 18."""

PROCESS_BYTES: Final = 84 * MIB
"""Python, the libraries, the web server, and what requests leave behind.

Measured on x86-64 with Python 3.11 and llama-cpp-python 0.3.36 (tests/forecast_memory.py): 61 MiB with the
server's modules imported, 66 with llama.cpp's library; 84 after eight streams were served, besides weights,
KV cache, compute buffers and vocabulary. The same with 1, 8 and 32 streams, and with telemetry.
"""
VOCABULARY_BYTES_PER_TOKEN: Final = 290
"""llama.cpp's tables of one token and its merge. Measured: 13 MiB for the 49,152 tokens of SmolLM2, 42 MiB
for the 151,936 of R1's Qwen distills."""

_UNKNOWN_ISA: Final = frozenset({"i8mm"})
"""Copies all types that any CPU copies, and lets none grow."""

ONNX_PROCESS_BYTES: Final = 120 * MIB
"""As PROCESS_BYTES, with onnxruntime's library and its tokenizer in place of llama.cpp's."""
ONNX_COPIES_OF_KV: Final = 2
"""onnxruntime's attention writes the cache anew at each step: while it does, the old one is there as well."""


class Forecast(BaseModel):
    """What a model needs on a device and how fast it will be. Unknown is None."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    weights_bytes: NonNegativeInt
    """As stored."""
    copies_bytes: NonNegativeInt = 0
    """What the weights take in memory beyond that: an embedding that is held twice, and layouts that are
    larger than the file's. See `edgekit.weight_buffers`."""
    kv_bytes: NonNegativeInt
    compute_bytes: NonNegativeInt
    """Activations and logits: llama.cpp's compute and output buffers."""
    runtime_bytes: NonNegativeInt
    """The serving process besides the above."""
    total_bytes: NonNegativeInt
    """The sum of the above: what must stay in memory. The kernel may count more as resident, pages of the
    model's file that it mapped along with those that were asked for; it takes them back when it must."""
    available_bytes: NonNegativeInt | None
    """The device's memory less its reserve."""
    shortfall_bytes: NonNegativeInt | None
    """What is missing; 0 when it fits."""
    fits: bool | None
    decode_tokens_per_s: NonNegativeFloat | None
    """One stream, with half of its context filled."""
    prefill_tokens_per_s: NonNegativeFloat | None
    """A prompt of some hundred tokens, no other stream."""


def kv_bytes(facts: ModelFacts, serve: ServeSettings, *, tokens: int | None = None) -> int:
    """Bytes of a KV cache of `tokens` cells; None: all that `serve` asks for.

    2 x layers x KV heads x head length x bytes per element x cells: one key and one value per head.
    """
    per_cell = 2 * facts.layers * facts.attention_kv_heads * facts.head_length
    cells = serve.cells if tokens is None else tokens
    return round(per_cell * KV_BYTES_PER_ELEMENT[serve.kv_type] * cells)


def compute_bytes(facts: ModelFacts, serve: ServeSettings) -> int:
    """Bytes of llama.cpp's compute buffers (graph allocator) and of its logits output.

    The graph allocator reuses memory, so the largest of the graph's stages counts. Per token of a ubatch, in
    32-bit floats, with E the embedding, F the feed-forward length, V the vocabulary, Q = heads x head length,
    K = KV heads x head length:

        output projection    3 E, and V for each slot: only a stream's last token has logits (n_outputs_max)
        feed-forward         3 F + 4 E, and the attention mask
        attention            3 E + 2 Q + K, and the mask (16 bit per cell), with flash attention
                             2 E + 3 Q + 2 K, and scores and mask (heads + 1 floats per cell), without

    Fitted to the log of llama.cpp (llama-cpp-python 0.3.36, CPU) for SmolLM2-135M and five synthetic models,
    25 cases with E 512 to 2048, F 64 to 8192, 1,024 to 65,536 cells, ubatches of 128 and 512: from 0.1 %
    below to 2.4 % above. The logits that are kept take V floats for each slot. vLLM and onnxruntime plan
    differently; for them this is an estimate.
    """
    embedding, heads = facts.embedding_length, facts.attention_heads
    queries, keys = heads * facts.head_length, facts.attention_kv_heads * facts.head_length
    ubatch = min(serve.ubatch_tokens, serve.batch_tokens)
    output = facts.vocabulary * min(serve.slots, ubatch) / ubatch + 3 * embedding
    feed_forward = 3 * facts.feed_forward_length + 4 * embedding
    if serve.flash_attention is False:
        mask = float(serve.cells)
        attention = 2 * embedding + 3 * queries + 2 * keys + heads * serve.cells
    else:
        mask = serve.cells / 2
        attention = 3 * embedding + 2 * queries + keys
    floats = max(output, feed_forward + mask, attention + mask)
    return round(4 * (ubatch * floats + serve.slots * facts.vocabulary))


def runtime_bytes(facts: ModelFacts, runtime: Runtime = "llama.cpp") -> int:
    """Bytes of the serving process besides weights, KV cache and compute buffers."""
    process = ONNX_PROCESS_BYTES if runtime == "onnxruntime" else PROCESS_BYTES
    return process + VOCABULARY_BYTES_PER_TOKEN * facts.vocabulary


def copies_bytes(
    facts: ModelFacts, profile: DeviceProfile, serve: ServeSettings, *, held: HeldWeights | None = None
) -> int:
    """Bytes that the weights take in memory beyond their size in the file.

    By the extensions in the profile's `cpu.isa`; where that is None, an embedding that is the output as well
    counts twice and nothing else, which is right for most builds. Only llama.cpp rearranges weights beside a
    mapped file; onnxruntime frees what it has rearranged, vLLM loads what it computes from.
    """
    if profile.runtime != "llama.cpp":
        return 0
    if held is None:
        on_gpu = profile.accelerator is not None and serve.gpu_layers > facts.layers
        isa = _UNKNOWN_ISA if profile.cpu.isa is None else frozenset(profile.cpu.isa)
        held = estimate_weights(facts, isa, on_gpu=on_gpu)
    return max(0, held.total_bytes - facts.weight_bytes)


def forecast(
    facts: ModelFacts, profile: DeviceProfile, serve: ServeSettings, *, held: HeldWeights | None = None
) -> Forecast:
    """Memory and speed of a model on a device, as it would be served.

    Memory: weights and their copies + KV cache + compute buffers + process, against total less reserve.

    Decode: 1 / (bytes read per token / sustained bandwidth + fixed cost of a step), where a token reads the
    weights once (`bytes_per_token`) and the keys and values of half a context. The profile's sustained
    bandwidth is what decoding reaches, not what a copy benchmark does: the runtime's efficiency is in it.

    Prefill: attained arithmetic speed / (2 x parameters), a multiplication and an addition per weight
    (Kaplan et al. 2020, arXiv:2001.08361, section 2.1; the context-dependent part is left out).

    Args:
        held: what the weights take in memory, if the tensors are known; None estimates it from the facts.
    """
    copies = copies_bytes(facts, profile, serve, held=held)
    kv = kv_bytes(facts, serve) * (ONNX_COPIES_OF_KV if profile.runtime == "onnxruntime" else 1)
    compute = compute_bytes(facts, serve)
    runtime = runtime_bytes(facts, profile.runtime)
    total = facts.weight_bytes + copies + kv + compute + runtime
    available = profile.memory.usable_bytes
    shortfall = None if available is None else max(0, total - available)
    return Forecast(
        weights_bytes=facts.weight_bytes,
        copies_bytes=copies,
        kv_bytes=kv,
        compute_bytes=compute,
        runtime_bytes=runtime,
        total_bytes=total,
        available_bytes=available,
        shortfall_bytes=shortfall,
        fits=None if shortfall is None else shortfall == 0,
        decode_tokens_per_s=_decode_tokens_per_s(facts, profile, serve),
        prefill_tokens_per_s=_prefill_tokens_per_s(facts, profile),
    )


def _decode_tokens_per_s(facts: ModelFacts, profile: DeviceProfile, serve: ServeSettings) -> float | None:
    bandwidth = profile.memory.sustained_gb_per_s
    if bandwidth is None:
        return None
    read = facts.bytes_per_token + kv_bytes(facts, serve, tokens=serve.context_tokens // 2)
    return 1 / (read / (bandwidth * 1e9) + (profile.compute.step_ms or 0.0) / 1e3)


def _prefill_tokens_per_s(facts: ModelFacts, profile: DeviceProfile) -> float | None:
    speed = profile.compute.prefill_gflop_per_s
    return None if speed is None else speed * 1e9 / (2 * facts.parameters)
