"""Holds device_profiles/FORECASTS.md: its forecasts are what `forecast` says of the models named there."""

from __future__ import annotations

import re
from math import prod
from pathlib import Path
from typing import NamedTuple

import pytest

from edgekit.facts import ModelFacts
from edgekit.forecast import MIB, forecast
from edgekit.profiles import ServeSettings, load_profile, profiles_directory
from export.plan.quantization_mix import quantized_facts, tensor_types

CONTEXT_TOKENS = 1024
"""Benchmarks fill a few hundred tokens: half of this is what the forecast reads."""


class Shape(NamedTuple):
    architecture: str
    layers: int
    embedding: int
    feed_forward: int
    heads: int
    kv_heads: int
    head: int
    vocabulary: int
    tied: bool = False


# From the models' public config.json.
SHAPES = {
    "R1-Distill-Qwen-1.5B": Shape("qwen2", 28, 1536, 8960, 12, 2, 128, 151_936),
    "R1-Distill-Qwen-7B": Shape("qwen2", 28, 3584, 18944, 28, 4, 128, 152_064),
    "R1-Distill-Llama-8B": Shape("llama", 32, 4096, 14336, 32, 8, 128, 128_256),
    "R1-0528-Qwen3-8B": Shape("qwen3", 36, 4096, 12288, 32, 8, 128, 151_936),
    "R1-Distill-Qwen-14B": Shape("qwen2", 48, 5120, 13824, 40, 8, 128, 152_064),
    "R1-Distill-Qwen-32B": Shape("qwen2", 64, 5120, 27648, 40, 8, 128, 152_064),
    "R1-Distill-Llama-70B": Shape("llama", 80, 8192, 28672, 64, 8, 128, 128_256),
    "Qwen2.5-1.5B": Shape("qwen2", 28, 1536, 8960, 12, 2, 128, 151_936, tied=True),
    "Qwen2.5-3B": Shape("qwen2", 36, 2048, 11008, 16, 2, 128, 151_936, tied=True),
    "Qwen2.5-7B": Shape("qwen2", 28, 3584, 18944, 28, 4, 128, 152_064),
    "Llama-3.2-1B": Shape("llama", 16, 2048, 8192, 32, 8, 64, 128_256, tied=True),
    "Llama-3.2-3B": Shape("llama", 28, 3072, 8192, 24, 8, 128, 128_256, tied=True),
    "Llama-3.1-8B": Shape("llama", 32, 4096, 14336, 32, 8, 128, 128_256),
    "Llama-2-7B": Shape("llama", 32, 4096, 11008, 32, 32, 128, 32_000),
    "Llama-2-13B": Shape("llama", 40, 5120, 13824, 40, 40, 128, 32_000),
    "Llama-2-70B": Shape("llama", 80, 8192, 28672, 64, 8, 128, 32_000),
}


def facts_of(model: str, quantization: str) -> ModelFacts:
    shape = SHAPES[model]
    facts = ModelFacts(
        name=model,
        architecture=shape.architecture,
        parameters=1,
        weight_bytes=1,
        bytes_per_token=1,
        quantization="BF16",
        layers=shape.layers,
        embedding_length=shape.embedding,
        feed_forward_length=shape.feed_forward,
        attention_heads=shape.heads,
        attention_kv_heads=shape.kv_heads,
        head_length=shape.head,
        vocabulary=shape.vocabulary,
        context_train_tokens=131_072,
        tied_embeddings=shape.tied,
    )
    parameters = sum(prod(dimensions) for _, dimensions, _ in tensor_types(facts, "BF16"))
    return quantized_facts(facts.model_copy(update={"parameters": parameters}), quantization)


def table_rows(heading: str) -> list[list[str]]:
    text = (profiles_directory() / "FORECASTS.md").read_text(encoding="utf-8")
    section = re.split(r"^## ", text, flags=re.MULTILINE)
    found = next(part for part in section if part.startswith(heading))
    rows = [line.strip().strip("|").split("|") for line in found.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in row] for row in rows[2:]]


SPEEDS = table_rows("Decode speed")


@pytest.mark.parametrize("row", SPEEDS, ids=lambda row: f"{row[0]}-{row[1]}-{row[2]}-{row[3]}")
def test_speeds__are_what_is_forecast_now(row: list[str]) -> None:
    profile_name, model, quantization, published, forecasted, ratio = row[:6]
    serve = ServeSettings(threads=1, context_tokens=CONTEXT_TOKENS, slots=1)
    made = forecast(facts_of(model, quantization), load_profile(profile_name), serve)

    assert made.decode_tokens_per_s is not None
    assert forecasted == f"{made.decode_tokens_per_s:.3g}"
    assert ratio == f"{made.decode_tokens_per_s / float(published):.2f}"


def test_speeds__every_row_names_its_source() -> None:
    text = (profiles_directory() / "FORECASTS.md").read_text(encoding="utf-8")
    defined = set(re.findall(r"^\[([a-z0-9-]+)\]: https://\S+$", text, flags=re.MULTILINE))

    assert SPEEDS
    for row in SPEEDS:
        named = re.search(r"\]\[([a-z0-9-]+)\]", row[7])
        assert named is not None and named[1] in defined, row


def test_speeds__of_llama_cpp_where_nothing_was_fitted_lie_within_a_quarter() -> None:
    plain = [row for row in SPEEDS if row[6] in ("llama.cpp", "Ollama") and not row[0].startswith("a100")]

    assert len(plain) >= 6
    assert all(0.75 <= float(row[5]) <= 1.25 for row in plain)


MEMORY = table_rows("Memory")


@pytest.mark.parametrize("row", MEMORY, ids=lambda row: f"{row[0]}-{row[1]}-{row[2]}-{row[3]}")
def test_memory__measured_lies_within_five_percent_of_the_forecast(row: list[str]) -> None:
    forecasted, needed, error = float(row[4]), float(row[5]), row[6]

    assert error == f"{forecasted / needed - 1:+.1%}"
    assert abs(forecasted / needed - 1) <= 0.05


@pytest.mark.parametrize(
    ("model", "parameters_billion"),
    # The counts on the models' pages.
    [
        ("R1-Distill-Qwen-1.5B", 1.78),
        ("R1-Distill-Qwen-7B", 7.62),
        ("R1-Distill-Llama-8B", 8.03),
        ("R1-0528-Qwen3-8B", 8.19),
        ("R1-Distill-Qwen-14B", 14.8),
        ("R1-Distill-Qwen-32B", 32.8),
        ("R1-Distill-Llama-70B", 70.6),
    ],
)
def test_shapes__have_as_many_parameters_as_published(model: str, parameters_billion: float) -> None:
    assert facts_of(model, "BF16").parameters / 1e9 == pytest.approx(parameters_billion, rel=0.005)


@pytest.mark.parametrize(
    ("profile_name", "fits"),
    [
        ("raspberry-pi-5-8gb", ["R1-Distill-Qwen-1.5B", "R1-Distill-Qwen-7B", "R1-Distill-Llama-8B"]),
        ("raspberry-pi-5-16gb", ["R1-Distill-Qwen-14B"]),
        ("jetson-agx-orin-64gb", ["R1-Distill-Qwen-32B", "R1-Distill-Llama-70B"]),
    ],
)
def test_r1_students__fit_where_they_are_known_to_run(profile_name: str, fits: list[str]) -> None:
    profile = load_profile(profile_name)
    serve = profile.serve.model_copy(update={"context_tokens": 2048, "kv_cells": None})
    for model in fits:
        made = forecast(facts_of(model, "Q4_0"), profile, serve)
        assert made.fits, f"{model}: {made.total_bytes / MIB:.0f} MiB of {profile.memory.total_mib}"


def test_forecasts_page__ships_beside_the_profiles() -> None:
    assert (Path(profiles_directory()) / "FORECASTS.md").is_file()
