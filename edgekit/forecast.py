"""Forecasts memory and speed of a model on a device, before either is at hand. Pure arithmetic."""

from __future__ import annotations

from types import MappingProxyType
from typing import Final

from pydantic import BaseModel, ConfigDict, NonNegativeInt

from edgekit.facts import ModelFacts
from edgekit.profiles import DeviceProfile, ServeSettings

__all__ = ["Forecast", "compute_bytes", "forecast", "kv_bytes"]

MIB: Final = 1024 * 1024

# ggml.h block sizes: q8_0 holds 32 values in 34 bytes, q4_0 in 18.
KV_BYTES_PER_ELEMENT: Final = MappingProxyType(
    {"f32": 4.0, "f16": 2.0, "bf16": 2.0, "q8_0": 34 / 32, "q4_0": 18 / 32}
)

RUNTIME_BYTES: Final = 150 * MIB
"""The server besides the model's mapping, KV cache and compute buffers: Python, libraries, web server."""


class Forecast(BaseModel):
    """What a model needs on a device and how fast it will be. Unknown is None."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    weights_bytes: NonNegativeInt
    kv_bytes: NonNegativeInt
    compute_bytes: NonNegativeInt
    runtime_bytes: NonNegativeInt
    total_bytes: NonNegativeInt
    """The sum of the above."""
    available_bytes: NonNegativeInt | None
    """The device's memory without its reserve."""
    shortfall_bytes: NonNegativeInt | None
    """What is missing; 0 when it fits."""
    fits: bool | None
    decode_tokens_per_s: float | None
    """One stream, half of its context filled."""
    prefill_tokens_per_s: float | None


def kv_bytes(facts: ModelFacts, serve: ServeSettings) -> int:
    """Bytes of the KV cache: 2 x layers x KV heads x head length x bytes per element x cells."""
    per_cell = 2 * facts.layers * facts.attention_kv_heads * facts.head_length
    return round(per_cell * KV_BYTES_PER_ELEMENT[serve.kv_type] * serve.cells)


def compute_bytes(facts: ModelFacts, serve: ServeSettings) -> int:
    """Bytes of llama.cpp's compute buffers: logits and activations of one ubatch."""
    logits = 4 * serve.ubatch_tokens * facts.vocabulary
    activations = 4 * serve.ubatch_tokens * (4 * facts.embedding_length + 3 * facts.feed_forward_length)
    return logits + activations


def forecast(facts: ModelFacts, profile: DeviceProfile, serve: ServeSettings) -> Forecast:
    """Memory and speed of a model on a device."""
    kv = kv_bytes(facts, serve)
    compute = compute_bytes(facts, serve)
    total = facts.weight_bytes + kv + compute + RUNTIME_BYTES
    memory = profile.memory
    available = None if memory.total_mib is None else (memory.total_mib - memory.reserve_mib) * MIB
    shortfall = None if available is None else max(0, total - available)
    decode = None
    if memory.sustained_gb_per_s is not None:
        read = facts.bytes_per_token + kv / serve.cells * serve.context_tokens / 2
        decode = memory.sustained_gb_per_s * 1e9 / read
    gflop = profile.compute.prefill_gflop_per_s
    return Forecast(
        weights_bytes=facts.weight_bytes,
        kv_bytes=kv,
        compute_bytes=compute,
        runtime_bytes=RUNTIME_BYTES,
        total_bytes=total,
        available_bytes=available,
        shortfall_bytes=shortfall,
        fits=None if shortfall is None else shortfall == 0,
        decode_tokens_per_s=decode,
        prefill_tokens_per_s=None if gflop is None else gflop * 1e9 / (2 * facts.parameters),
    )
