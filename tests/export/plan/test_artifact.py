"""How much error a second quantization adds: the figures that plans quote."""

from __future__ import annotations

import numpy as np
import pytest

from export.plan.artifact import _ERROR_AFTER_REQUANTIZING
from export.plan.quantization_mix import base_type
from export.targets.ggml import dequantize_rows, quantize_rows


@pytest.mark.parametrize(("quantization", "factor"), _ERROR_AFTER_REQUANTIZING.items())
def test_error_after_requantizing__is_what_plans_say(quantization: str, factor: float) -> None:
    rows, columns, group = 64, 2048, 128
    weights = np.random.default_rng(11).standard_normal((rows, columns)).astype(np.float32) * 0.02
    groups = weights.reshape(rows, -1, group)
    scales = (np.abs(groups).max(axis=2, keepdims=True) / 7.5).astype(np.float16).astype(np.float32)
    once = (np.clip(np.round(groups / scales), -8, 7) * scales).reshape(rows, columns)
    kind = base_type(quantization)
    twice = dequantize_rows(quantize_rows(once, kind), kind, columns)
    measured = np.linalg.norm(twice - weights) / np.linalg.norm(once - weights)
    assert measured == pytest.approx(factor, rel=0.03)
