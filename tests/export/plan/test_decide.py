"""Plans for real R1 students on the profiles that ship."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from edgekit.errors import PlanError
from edgekit.facts import ModelFacts
from edgekit.profiles import DeviceProfile, load_profile
from export.plan.decide import make_plan
from export.plan.quantization_mix import quantized_facts
from export.plan.tensors import TensorFacts
from export.student.integers import IntegerLayout

# config.json of the distills: layers, width, feed-forward, heads, KV heads, rows of the embedding.
SHAPES = {
    "R1-Distill-Qwen-1.5B": ("qwen2", 28, 1536, 8960, 12, 2, 151936),
    "R1-Distill-Qwen-7B": ("qwen2", 28, 3584, 18944, 28, 4, 152064),
    "R1-Distill-Llama-8B": ("llama", 32, 4096, 14336, 32, 8, 128256),
    "R1-Distill-Qwen-32B": ("qwen2", 64, 5120, 27648, 40, 8, 152064),
    "R1-Distill-Llama-70B": ("llama", 80, 8192, 28672, 64, 8, 128256),
}


def _facts(name: str, quantization: str = "BF16", **changes: Any) -> ModelFacts:
    architecture, layers, width, ffn, heads, kv_heads, vocabulary = SHAPES[name]
    per_layer = width * width * 2 + 2 * width * (width // heads) * kv_heads + 3 * width * ffn
    parameters = layers * per_layer + 2 * width * vocabulary
    facts = ModelFacts(
        name=name,
        architecture=architecture,
        parameters=parameters,
        weight_bytes=2 * parameters,
        bytes_per_token=2 * (parameters - width * vocabulary),
        quantization="BF16",
        layers=layers,
        embedding_length=width,
        feed_forward_length=ffn,
        attention_heads=heads,
        attention_kv_heads=kv_heads,
        head_length=width // heads,
        vocabulary=vocabulary,
        context_train_tokens=131072,
        tied_embeddings=False,
    )
    facts = facts if quantization == "BF16" else quantized_facts(facts, quantization)
    return facts.model_copy(update=changes)


def _packed(
    name: str, quantization: str, storage: str, layout: IntegerLayout | None
) -> tuple[ModelFacts, list[TensorFacts]]:
    """A checkpoint whose linear layers are packed, embedding and head in F16."""
    facts = _facts(name)
    tensors = []
    width, ffn, vocabulary = facts.embedding_length, facts.feed_forward_length, facts.vocabulary
    kv = facts.attention_kv_heads * facts.head_length
    for end in ("model.embed_tokens.weight", "lm_head.weight"):
        tensors.append(TensorFacts(end, (vocabulary, width), "F16", 2 * vocabulary * width))
    tensors.append(TensorFacts("model.norm.weight", (width,), "F16", 2 * width))
    for index in range(facts.layers):
        layer = f"model.layers.{index}"
        for part, rows, columns in (
            ("self_attn.q_proj", width, width),
            ("self_attn.k_proj", kv, width),
            ("self_attn.v_proj", kv, width),
            ("self_attn.o_proj", width, width),
            ("mlp.gate_proj", ffn, width),
            ("mlp.up_proj", ffn, width),
            ("mlp.down_proj", width, ffn),
        ):
            tensors.append(
                TensorFacts(f"{layer}.{part}.weight", (rows, columns), storage, rows * columns // 2, layout)
            )
        for norm in ("input_layernorm", "post_attention_layernorm"):
            tensors.append(TensorFacts(f"{layer}.{norm}.weight", (width,), "F16", 2 * width))
    size = sum(tensor.size_bytes for tensor in tensors)
    update = {"quantization": quantization, "weight_bytes": size, "bytes_per_token": size}
    return facts.model_copy(update=update), tensors


SYMMETRIC = IntegerLayout(4, 128, symmetric=True, in_order=True, scales_fit_f16=True)
ASYMMETRIC = IntegerLayout(4, 128, symmetric=False, in_order=True, scales_fit_f16=True)


@pytest.mark.parametrize(
    ("quantization", "layout", "chosen", "notes"),
    [
        ("GPTQ", SYMMETRIC, "Q4_0", ["73.7% of the weights keep the integers of GPTQ, bit for bit"]),
        ("AWQ", ASYMMETRIC, "Q4_1", ["73.7% of the weights keep the integers of AWQ; their minimum"]),
        (
            "W4A16",
            IntegerLayout(4, 18944, symmetric=False, in_order=True, scales_fit_f16=True),
            "Q4_K_S",
            ["keep the integers of W4A16, bit for bit"],
        ),
    ],
    ids=["symmetric", "asymmetric", "one scale a row"],
)
def test_make_plan__packed_integers_stay_as_they_are(
    pi: DeviceProfile, quantization: str, layout: IntegerLayout, chosen: str, notes: list[str]
) -> None:
    facts, tensors = _packed("R1-Distill-Qwen-1.5B", quantization, "INT4", layout)
    plan = make_plan(facts, pi, tensors=tensors)
    assert (plan.quantization, plan.conversion) == (chosen, "repack")
    for note in notes:
        assert any(note in said for said in plan.notes), plan.notes
    kinds = {item.gguf_name: (item.type_name, item.method) for item in plan.tensors}
    assert kinds["token_embd.weight"] == kinds["output.weight"] == ("Q8_0", "quantize")
    assert kinds["blk.27.ffn_down.weight"] == (chosen.removesuffix("_S"), "repack")
    assert kinds["blk.0.attn_norm.weight"] == ("F32", "convert")
    assert plan.facts.weight_bytes == sum(item.size_bytes for item in plan.tensors)


def test_make_plan__activation_order_is_dequantized_and_said(pi: DeviceProfile) -> None:
    layout = IntegerLayout(4, 128, symmetric=True, in_order=False, scales_fit_f16=True)
    facts, tensors = _packed("R1-Distill-Qwen-1.5B", "GPTQ", "INT4", layout)
    plan = make_plan(facts, pi, tensors=tensors)
    assert (plan.quantization, plan.conversion) == (pi.quantizations[0], "dequantize")
    assert plan.notes == (
        "gguf cannot hold GPTQ as it is: dequantized, and quantized to Q4_0, which raises a 4-bit student's "
        "error to about 1.22 x; --quantization Q5_K_M: 1.05 x",
    )
    assert make_plan(facts, pi, tensors=tensors, format="onnx").conversion == "repack"


def test_make_plan__packed_student_that_could_be_kept_is_requantized_only_when_asked(
    pi: DeviceProfile,
) -> None:
    facts, tensors = _packed("R1-Distill-Qwen-1.5B", "GPTQ", "INT4", SYMMETRIC)
    assert make_plan(facts, pi, tensors=tensors, quantization="Q4_K_M").conversion == "requantize"
    assert make_plan(facts, pi, tensors=tensors, quantization="F16").conversion == "convert"
    exact = make_plan(
        *_packed("R1-Distill-Qwen-1.5B", "AWQ", "INT4", ASYMMETRIC)[:1], pi, quantization="Q5_0"
    )
    assert exact.conversion == "requantize"  # without its tensors it could be any file
    facts, tensors = _packed("R1-Distill-Qwen-1.5B", "AWQ", "INT4", ASYMMETRIC)
    exact = make_plan(facts, pi, tensors=tensors, quantization="Q5_0")
    assert exact.conversion == "repack" and all(
        item.exact for item in exact.tensors if item.method == "repack"
    )


def test_make_plan__integers_of_several_kinds_all_stay(pi: DeviceProfile) -> None:
    facts, tensors = _packed("R1-Distill-Qwen-1.5B", "GPTQ", "INT4", SYMMETRIC)
    layouts = {
        "down_proj": IntegerLayout(8, 128, symmetric=True, in_order=True, scales_fit_f16=True),
        "v_proj": ASYMMETRIC,
        "o_proj": IntegerLayout(4, 128, symmetric=True, in_order=False, scales_fit_f16=True),
    }
    tensors = [
        replace(tensor, layout=layouts.get(tensor.name.split(".")[-2], tensor.layout)) for tensor in tensors
    ]
    plan = make_plan(facts, pi, tensors=tensors)
    kinds = {item.gguf_name: (item.type_name, item.method) for item in plan.tensors}
    assert (plan.quantization, plan.conversion) == ("Q4_0", "repack")
    assert kinds["blk.0.ffn_up.weight"] == ("Q4_0", "repack")
    assert kinds["blk.0.ffn_down.weight"] == ("Q8_0", "repack")
    assert kinds["blk.0.attn_v.weight"] == ("Q4_1", "repack")
    assert kinds["blk.0.attn_output.weight"] == ("Q4_0", "requantize")
    assert any("3.7% of the weights are dequantized and quantized again" in note for note in plan.notes)
    # Asked for another, only what that one holds is moved.
    plan = make_plan(facts, pi, tensors=tensors, quantization="Q4_1")
    kinds = {item.gguf_name: (item.type_name, item.method) for item in plan.tensors}
    assert kinds["blk.0.attn_v.weight"] == ("Q4_1", "repack")
    assert kinds["blk.0.ffn_down.weight"] == ("Q4_1", "requantize")


def test_make_plan__nf4_is_dequantized(pi: DeviceProfile) -> None:
    facts, tensors = _packed("R1-Distill-Qwen-1.5B", "NF4", "NF4", None)
    plan = make_plan(facts, pi, tensors=tensors)
    assert (plan.conversion, plan.quantization) == ("dequantize", pi.quantizations[0])
    assert {item.method for item in plan.tensors} == {"convert", "quantize", "requantize"}


@pytest.fixture
def pi() -> DeviceProfile:
    return load_profile("raspberry-pi-5-8gb")


def test_make_plan__takes_the_profiles_first_quantization(pi: DeviceProfile) -> None:
    plan = make_plan(_facts("R1-Distill-Qwen-1.5B"), pi)
    assert (plan.format, plan.runtime) == ("gguf", "llama.cpp")
    assert (plan.quantization, plan.conversion) == (pi.quantizations[0], "quantize")
    assert plan.serve == pi.serve and plan.notes == ()
    assert plan.forecast.fits and plan.forecast.weights_bytes == plan.facts.weight_bytes
    # A published Q4_0 of it has 1,066,227,200 bytes, 6 MB of them header.
    assert plan.facts.weight_bytes == pytest.approx(1_060e6, rel=0.01)


def test_make_plan__takes_the_next_quantization_where_the_first_does_not_fit(pi: DeviceProfile) -> None:
    memory = pi.memory.model_copy(update={"total_mib": 1024 + 5500})
    profile = pi.model_copy(update={"memory": memory, "quantizations": ("Q8_0", "Q5_K_M", "Q4_0")})
    plan = make_plan(_facts("R1-Distill-Qwen-7B"), profile)
    assert plan.quantization == "Q4_0" and plan.serve == pi.serve


def test_make_plan__shrinks_the_kv_cache_before_the_context(pi: DeviceProfile) -> None:
    facts = _facts("R1-Distill-Qwen-7B")
    full = make_plan(facts, pi).forecast.total_bytes
    room = 1024 + full // 2**20 - 100
    profile = pi.model_copy(
        update={"memory": pi.memory.model_copy(update={"total_mib": room}), "quantizations": ("Q4_0",)}
    )
    plan = make_plan(facts, profile)
    assert (plan.serve.kv_type, plan.serve.context_tokens) == ("q8_0", 8192)
    assert plan.notes == ("KV cache in q8_0 instead of f16, to fit",)
    profile = pi.model_copy(
        update={"memory": pi.memory.model_copy(update={"total_mib": room - 150}), "quantizations": ("Q4_0",)}
    )
    plan = make_plan(facts, profile)
    assert (plan.serve.kv_type, plan.serve.context_tokens) == ("q8_0", 4096)
    assert plan.notes[-1] == "context 4096 instead of 8192, to fit"
    assert plan.forecast.fits


def test_make_plan__too_large_names_a_lower_quantization_that_fits() -> None:
    profile = load_profile("jetson-agx-orin-32gb").model_copy(update={"quantizations": ("Q8_0",)})
    with pytest.raises(
        PlanError, match="does not fit jetson-agx-orin-32gb: as Q8_0 it needs at least"
    ) as caught:
        make_plan(_facts("R1-Distill-Qwen-32B"), profile)
    hint = caught.value.hint or ""
    assert hint.startswith("the nearest that fits: --quantization ")
    nearest = hint.split()[-1]
    assert make_plan(_facts("R1-Distill-Qwen-32B"), profile, quantization=nearest).forecast.fits


def test_make_plan__far_too_large_names_the_size_that_fits(pi: DeviceProfile) -> None:
    with pytest.raises(PlanError) as caught:
        make_plan(_facts("R1-Distill-Llama-70B"), pi)
    assert "7024 MiB are available" in caught.value.message
    assert "billion weights in Q4_0" in (caught.value.hint or "")


def test_make_plan__quantized_student_keeps_its_own(pi: DeviceProfile) -> None:
    plan = make_plan(_facts("R1-Distill-Qwen-1.5B", "Q5_K_M"), pi)
    assert (plan.quantization, plan.conversion, plan.notes) == ("Q5_K_M", "keep", ())
    plan = make_plan(_facts("R1-Distill-Qwen-1.5B", "Q4_1"), pi)
    assert (plan.quantization, plan.conversion) == ("Q4_1", "keep")
    assert plan.notes == ("keeps Q4_1, which profile raspberry-pi-5-8gb was not tuned for",)


def test_make_plan__asked_for_quantization_is_taken_and_remarked_on(pi: DeviceProfile) -> None:
    plan = make_plan(_facts("R1-Distill-Qwen-1.5B", "Q8_0"), pi, quantization="Q3_K_M")
    assert (plan.quantization, plan.conversion) == ("Q3_K_M", "requantize")
    assert plan.notes[0] == "requantized from Q8_0: the loss of both quantizations adds up"
    assert "Q3_K_M is not among" in plan.notes[1]
    assert make_plan(_facts("R1-Distill-Qwen-1.5B"), pi, quantization="F16").conversion == "convert"
    assert make_plan(_facts("R1-Distill-Qwen-1.5B"), pi, quantization="BF16").conversion == "keep"


def test_make_plan__unknown_quantization_and_format_are_refused(pi: DeviceProfile) -> None:
    facts = _facts("R1-Distill-Qwen-1.5B")
    with pytest.raises(PlanError, match="'IQ1_S' cannot be exported"):
        make_plan(facts, pi, quantization="IQ1_S")
    with pytest.raises(PlanError, match=r"not for format 'vllm': its settings are llama\.cpp's") as caught:
        make_plan(facts, pi, format="vllm")
    assert "its formats are gguf, onnx" in (caught.value.hint or "")


def test_make_plan__context_is_no_longer_than_trained(pi: DeviceProfile) -> None:
    plan = make_plan(_facts("R1-Distill-Qwen-1.5B", context_train_tokens=2048), pi)
    assert plan.serve.context_tokens == 2048
    assert plan.notes == ("context 2048 instead of 8192: the model was trained for no more",)


def test_make_plan__unknown_memory_is_said(pi: DeviceProfile) -> None:
    host = load_profile("host")
    plan = make_plan(_facts("R1-Distill-Llama-70B"), host)
    assert plan.notes == ("the device's memory is not known: nothing was checked against it",)
    assert plan.forecast.fits is None
    with pytest.raises(PlanError):
        make_plan(_facts("R1-Distill-Llama-70B"), host.resolved(memory_mib=16384))


@pytest.mark.parametrize("quantization", ["GPTQ", "NF4"])
def test_make_plan__vllm_runs_a_packed_checkpoint_as_it_is(quantization: str) -> None:
    layout = SYMMETRIC if quantization == "GPTQ" else None
    facts, tensors = _packed("R1-Distill-Qwen-1.5B", quantization, "INT4" if layout else "NF4", layout)
    server = load_profile("a100-80gb")
    plan = make_plan(facts, server, tensors=tensors)
    assert (plan.format, plan.quantization, plan.conversion) == ("vllm", quantization, "keep")
    assert plan.facts == facts
    untuned = any("keeps NF4, which profile a100-80gb was not tuned for" in note for note in plan.notes)
    assert untuned == (quantization == "NF4")
    assert make_plan(facts, server, tensors=tensors, quantization="BF16").conversion == "convert"
    with pytest.raises(PlanError, match="'Q4_0' cannot be exported"):
        make_plan(facts, server, tensors=tensors, quantization="Q4_0")


def test_make_plan__server_gets_float_weights_for_vllm() -> None:
    server = load_profile("a100-80gb")
    plan = make_plan(_facts("R1-Distill-Qwen-7B"), server)
    assert (plan.format, plan.runtime, plan.quantization, plan.conversion) == ("vllm", "vllm", "BF16", "keep")
    assert plan.forecast.fits and plan.serve.slots == server.serve.slots
    with pytest.raises(PlanError, match="is Q4_K_M: vllm bundles are made of float students"):
        make_plan(_facts("R1-Distill-Qwen-7B", "Q4_K_M"), server)
    with pytest.raises(PlanError, match="'Q4_K_M' cannot be exported"):
        make_plan(_facts("R1-Distill-Qwen-7B"), server, quantization="Q4_K_M")
    with pytest.raises(PlanError, match="not for format 'gguf': its settings are vllm's"):
        make_plan(_facts("R1-Distill-Qwen-7B"), server, format="gguf")
    with pytest.raises(PlanError, match=r"does not fit a100-80gb: as BF16 .*") as caught:
        make_plan(_facts("R1-Distill-Llama-70B"), server)
    assert "billion weights in BF16" in (caught.value.hint or "")
