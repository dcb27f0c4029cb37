"""Rotary position embeddings as transformers computes them: default, linear, llama3, yarn.

Source: transformers 5.5, modeling_rope_utils.py. GGUF's divisors in `export.targets.gguf` are made on their
own: what is compared with this must not come from it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgekit.errors import ModelFileError
from export.student.config import CheckpointConfig, RopeScaling

__all__ = ["Rotary", "make_rotary"]

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Rotary:
    """Angles per position. `frequencies` is float32 [head_length / 2], in radians a position; cosines and
    sines are multiplied by `factor`, which is 1 but for yarn."""

    frequencies: Floats
    factor: float

    def tables(self, positions: int) -> tuple[Floats, Floats]:
        """Cosines and sines of positions 0, 1, …: float32 [positions, head_length / 2] each."""
        angles = np.outer(np.arange(positions, dtype=np.float32), self.frequencies)
        factor = np.float32(self.factor)
        return np.cos(angles) * factor, np.sin(angles) * factor


def rotate(heads: Floats, cosines: Floats, sines: Floats) -> Floats:
    """Turn element i of each head together with element i + head_length / 2.

    Args:
        heads: [heads, positions, head_length].
        cosines, sines: [positions, head_length / 2].
    """
    half = heads.shape[-1] // 2
    first, second = heads[..., :half], heads[..., half:]
    return np.concatenate([first * cosines - second * sines, second * cosines + first * sines], axis=-1)


def make_rotary(config: CheckpointConfig) -> Rotary:
    """The rotary embeddings of a checkpoint.

    Raises:
        ModelFileError: yarn or llama3 scaling without the context that the model was trained for.
    """
    exponents = np.arange(0, config.head_length, 2, dtype=np.float32) / np.float32(config.head_length)
    frequencies = np.float32(1) / np.power(np.float32(config.rope_theta), exponents)
    scaling = config.rope_scaling
    if scaling is None:
        return Rotary(frequencies, 1.0)
    factor = scaling.number("factor", 1.0)
    if scaling.kind == "linear":
        return Rotary(frequencies / np.float32(factor), 1.0)
    if scaling.kind == "llama3":
        return Rotary(_llama3(frequencies, scaling, factor), 1.0)
    return _yarn(frequencies, scaling, factor, config)


def _llama3(frequencies: Floats, scaling: RopeScaling, factor: float) -> Floats:
    """Slow frequencies are divided, fast ones stay, those between are blended."""
    trained = scaling.number("original_max_position_embeddings", 8192)
    low, high = scaling.number("low_freq_factor", 1.0), scaling.number("high_freq_factor", 4.0)
    wavelengths = 2 * math.pi / frequencies
    share = np.clip((trained / wavelengths - low) / (high - low), 0, 1).astype(np.float32)
    blended: Floats = (1 - share) * frequencies / np.float32(factor) + share * frequencies
    return blended


def _yarn(frequencies: Floats, scaling: RopeScaling, factor: float, config: CheckpointConfig) -> Rotary:
    """Source: transformers' _compute_yarn_parameters; https://arxiv.org/abs/2309.00071, section 3.2.

    The key "attn_factor" of DeepSeek-R1-0528-Qwen3-8B is ignored, as transformers and llama.cpp 0c1e57098
    do, although vLLM multiplies with it.
    """
    trained = scaling.number("original_max_position_embeddings", 0)
    if trained <= 0:
        raise ModelFileError(
            f"rope scaling of type 'yarn' in {config.raw.get('_name_or_path', 'config.json')} does not say "
            "original_max_position_embeddings"
        )
    length, base = config.head_length, config.rope_theta

    def dimension(rotations: float) -> float:
        """Where a frequency turns this often within the trained context."""
        return length * math.log(trained / (rotations * 2 * math.pi)) / (2 * math.log(base))

    fast, slow = scaling.number("beta_fast", 32) or 32, scaling.number("beta_slow", 1) or 1
    first, last = dimension(fast), dimension(slow)
    if scaling.parameters.get("truncate", True):
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, length - 1)
    width = last - first if last != first else 0.001
    ramp = np.clip((np.arange(length // 2, dtype=np.float32) - np.float32(first)) / np.float32(width), 0, 1)
    stretched = frequencies / np.float32(factor) * ramp + frequencies * (1 - ramp)
    return Rotary(stretched.astype(np.float32), _yarn_attention(scaling, factor))


def _yarn_attention(scaling: RopeScaling, factor: float) -> float:
    given = scaling.parameters.get("attention_factor")
    if isinstance(given, int | float):
        return float(given)
    mscale, all_dims = scaling.number("mscale", 0), scaling.number("mscale_all_dim", 0)
    if mscale and all_dims:
        return _mscale(factor, mscale) / _mscale(factor, all_dims)
    return _mscale(factor, 1.0)


def _mscale(factor: float, scale: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * scale * math.log(factor) + 1.0
