"""Bundles by optimum: complete and proven, or nothing at all; one that is real from end to end."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import pytest
from safetensors.numpy import save_file

from edgekit.bundle.bundle import verify_bundle
from edgekit.bundle.signing import generate_key_pair
from edgekit.errors import EdgekitError, ExportError, ModelFileError, PlanError, ToolchainError, UsageError
from edgekit.profiles import load_profile
from export.optimum.bundle import export_bundle_with_optimum
from export.optimum.exporter import REQUIREMENTS, _sequences
from export.optimum.facts import checkpoint_facts
from export.runtimes.optimum_decoder import OptimumDecoder

FIXTURE = Path(__file__).parents[2] / "fixtures" / "optimum_gpt2"
NOON = datetime(2026, 1, 20, 12, 0, 5, tzinfo=timezone.utc)
VOCABULARY, WIDTH, POSITIONS = 272, 32, 128

Args = dict[str, Any]


def _widened() -> onnx.ModelProto:
    """The fixture's graph with a vocabulary that has all bytes, and room for a text."""
    model = onnx.load(FIXTURE / "model.onnx")
    random = np.random.default_rng(3)
    rows = {"transformer.wte.weight": (VOCABULARY, 1.0), "transformer.wpe.weight": (POSITIONS, 0.1)}
    for tensor in model.graph.initializer:
        if tensor.name in rows:
            count, scale = rows[tensor.name]
            values = random.normal(0, scale, (count, WIDTH)).astype(np.float32)
            tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    model.graph.output[0].type.tensor_type.shape.dim[2].dim_value = VOCABULARY
    return model


def _write_checkpoint(directory: Path, tiny: ModuleType, weights: dict[str, np.ndarray], **size: int) -> Path:
    directory.mkdir()
    config = json.loads((FIXTURE / "config.json").read_text())
    config |= {"vocab_size": VOCABULARY, "n_positions": POSITIONS, "bos_token_id": 263, "eos_token_id": 260}
    (directory / "config.json").write_text(json.dumps({**config, **size}))
    save_file(weights, directory / "model.safetensors", {"format": "pt"})
    (directory / "tokenizer.json").write_text(json.dumps(tiny.small_tokenizer()))
    shutil.copy(FIXTURE.parent / "r1-tokenizer" / "tokenizer_config.json", directory)
    (directory / "README.md").write_text(tiny.CARD)
    (directory / "LICENSE").write_text("MIT License\n")
    return directory


@pytest.fixture
def gpt2(tiny: ModuleType, tmp_path: Path) -> Path:
    """The checkpoint that `_widened` is the graph of."""
    weights = {t.name: onnx.numpy_helper.to_array(t) for t in _widened().graph.initializer}
    return _write_checkpoint(tmp_path / "Tiny-GPT2", tiny, weights)


@pytest.fixture
def stand_in(gpt2: Path, tmp_path: Path) -> Callable[[int], Path]:
    """Makes what stands in for the environment: its graph is the fixture's, its quantizer rounds."""
    made = tmp_path / "made"
    made.mkdir()
    onnx.save(_widened(), made / "model.onnx")
    sequences = _sequences(json.loads((gpt2 / "config.json").read_text()))
    decoder = OptimumDecoder(made)
    logits = {str(index): decoder.logits(tokens) for index, tokens in enumerate(sequences)}
    np.savez(made / "reference.npz", **logits)

    def make(levels: int) -> Path:
        code = f"""#!{sys.executable}
import json, shutil, sys
import numpy as np, onnx
request = json.load(open(sys.argv[3]))
if request["command"] == "export":
    for name in ("model.onnx", "reference.npz"):
        shutil.copy({str(made)!r} + "/" + name, request["directory"])
else:
    model = onnx.load(request["source"] + "/model.onnx")
    for tensor in model.graph.initializer:
        if len(tensor.dims) == 2:
            values = onnx.numpy_helper.to_array(tensor)
            step = np.abs(values).max(axis=1, keepdims=True) / {levels}
            rounded = (np.round(values / step) * step).astype(np.float32)
            tensor.CopyFrom(onnx.numpy_helper.from_array(rounded, tensor.name))
    onnx.save(model, request["directory"] + "/model.onnx")
print(json.dumps({{"result": 1}}))
"""
        python = tmp_path / "python"
        python.write_text(code)
        python.chmod(0o755)
        return python

    return make


def _left_in(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_export_bundle_with_optimum__bundle_is_complete_and_signed(
    gpt2: Path, stand_in: Callable[[int], Path], tmp_path: Path
) -> None:
    secret_key, public_key = generate_key_pair()
    out = tmp_path / "out"
    bundle = export_bundle_with_optimum(
        gpt2, load_profile("host"), out, secret_key=secret_key, python=stand_in(64), clock=lambda: NOON
    )
    assert _left_in(out) == [
        *("LICENSE", "config.json", "genai_config.json", "golden.json", "manifest.json"),
        *("manifest.json.minisig", "model.onnx", "proof.html", "tokenizer.json", "tokenizer_config.json"),
    ]
    manifest = verify_bundle(out, public_key).manifest
    assert manifest == bundle.manifest
    assert (manifest.name, manifest.release) == ("Tiny-GPT2", 20260120120005)
    assert (manifest.format, manifest.runtime, manifest.entry) == ("onnx", "onnxruntime", "model.onnx")
    assert manifest.plan.quantization == "INT4"
    assert manifest.plan.conversion == "exported with optimum from F32, quantized by onnxruntime"
    assert manifest.plan.forecast is not None and manifest.plan.serve.context_tokens == POSITIONS
    assert (manifest.source.kind, manifest.source.license) == ("safetensors", "mit")
    assert manifest.tools["optimum-onnx"] == "0.1.0" and "edgekit" in manifest.tools
    assert manifest.model.weight_bytes == (out / "model.onnx").stat().st_size
    assert (manifest.model.quantization, manifest.model.architecture) == ("INT4", "gpt2")
    # The rounding shows, and the proof's positions are the model's own, not those of larger models.
    assert manifest.proof is not None and 1e-6 < manifest.proof["mean_kl"] < 0.3
    assert manifest.proof["positions"] == 9 * (POSITIONS - 1)
    golden = json.loads((out / "golden.json").read_text())["answers"]
    assert len(golden) == 6 and all(answer["answer_tokens"] for answer in golden)
    assert _left_in(tmp_path) == ["Tiny-GPT2", "made", "out", "python"]


def test_export_bundle_with_optimum__float32_differs_by_nothing_but_the_order_of_sums(
    gpt2: Path, stand_in: Callable[[int], Path], tmp_path: Path
) -> None:
    bundle = export_bundle_with_optimum(
        gpt2, load_profile("host"), tmp_path / "out", quantization="F32", python=stand_in(8)
    )
    assert bundle.manifest.plan.conversion == "exported with optimum from F32"
    assert bundle.manifest.model.quantization == "F32" and bundle.manifest.model.tied_embeddings
    proof = bundle.manifest.proof
    assert proof is not None and proof["mean_kl"] < 1e-6 and proof["golden_agreement"] == 1
    assert (tmp_path / "out" / "golden.json").is_file()


def test_export_bundle_with_optimum__a_loss_beyond_the_limits_needs_consent(
    gpt2: Path, stand_in: Callable[[int], Path], tmp_path: Path
) -> None:
    spoiled = stand_in(1)
    with pytest.raises(ExportError, match="INT4 is too far from the student") as caught:
        export_bundle_with_optimum(gpt2, load_profile("host"), tmp_path / "out", python=spoiled)
    assert "--quantization F32" in (caught.value.hint or "") and "--allow-loss" in (caught.value.hint or "")
    assert _left_in(tmp_path) == ["Tiny-GPT2", "made", "python"]
    bundle = export_bundle_with_optimum(
        gpt2, load_profile("host"), tmp_path / "out", python=spoiled, allow_loss=True
    )
    assert any("mean KL divergence" in note for note in bundle.manifest.plan.notes)


def test_export_bundle_with_optimum__profile_of_another_format_is_refused(gpt2: Path, tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="not for format 'onnx'"):
        export_bundle_with_optimum(gpt2, load_profile("a100-80gb"), tmp_path / "out")


def _no_tokenizer(model: Path) -> None:
    (model / "tokenizer.json").unlink()


def _cut(model: Path) -> None:
    path = model / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])


def _no_weights(model: Path) -> None:
    (model / "model.safetensors").rename(model / "pytorch_model.bin")


def _missing_shard(model: Path) -> None:
    _no_weights(model)
    index = {"weight_map": {"transformer.wte.weight": "model-00001-of-00002.safetensors"}}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))


def _no_heads(model: Path) -> None:
    config = json.loads((model / "config.json").read_text())
    del config["n_head"]
    (model / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_no_tokenizer, "tokenizer.json is missing"),
        (_cut, "the file is cut off"),
        (_no_weights, "neither model.safetensors nor"),
        (_missing_shard, "model-00001-of-00002.safetensors: the shard is missing"),
        (_no_heads, "no usable 'num_attention_heads' or 'n_head'"),
    ],
)
def test_export_bundle_with_optimum__damaged_checkpoint_is_refused_before_any_work(
    damage: Callable[[Path], None], message: str, gpt2: Path, tmp_path: Path
) -> None:
    damage(gpt2)
    with pytest.raises(ModelFileError, match=message):
        export_bundle_with_optimum(
            gpt2, load_profile("host"), tmp_path / "out", cache=tmp_path / "cache", offline=True
        )
    assert _left_in(tmp_path) == ["Tiny-GPT2"]


def test_export_bundle_with_optimum__checkpoint_that_computes_nan_leaves_nothing(
    gpt2: Path, stand_in: Callable[[int], Path], tmp_path: Path
) -> None:
    python = stand_in(8)
    with np.load(tmp_path / "made" / "reference.npz") as found:
        spoiled = {name: np.full_like(found[name], np.nan) for name in found}
    np.savez(tmp_path / "made" / "reference.npz", **spoiled)
    with pytest.raises(ModelFileError, match="computes NaN or infinity"):
        export_bundle_with_optimum(gpt2, load_profile("host"), tmp_path / "out", python=python)
    assert _left_in(tmp_path) == ["Tiny-GPT2", "made", "python"]


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"format": "gguf"}, UsageError, "exports to ONNX, not to gguf"),
        ({"name": "two\nlines"}, UsageError, "has a line break"),
        ({"model": Path("absent")}, UsageError, "absent: no such directory"),
        ({"quantization": "Q4_0"}, PlanError, "'Q4_0' cannot be exported"),
        ({"offline": True}, ToolchainError, "optimum runs in an environment of its own"),
    ],
)
def test_export_bundle_with_optimum__what_cannot_be_done_leaves_nothing(
    given: Args, error: type[EdgekitError], message: str, gpt2: Path, tmp_path: Path
) -> None:
    arguments = {"model": gpt2, "cache": tmp_path / "cache", **given}
    with pytest.raises(error, match=message):
        export_bundle_with_optimum(profile=load_profile("host"), out=tmp_path / "new" / "out", **arguments)
    assert _left_in(tmp_path) == ["Tiny-GPT2"]


@pytest.mark.parametrize("step", ["checksum of the student", "trying the model", "sealing"])
def test_export_bundle_with_optimum__interrupt_leaves_nothing(
    step: str, gpt2: Path, stand_in: Callable[[int], Path], tmp_path: Path
) -> None:
    def interrupt(what: str, done: float, total: float | None) -> None:
        if what == step:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export_bundle_with_optimum(
            gpt2, load_profile("host"), tmp_path / "out", python=stand_in(64), progress=interrupt
        )
    assert _left_in(tmp_path) == ["Tiny-GPT2", "made", "python"]


def test_export_bundle_with_optimum__existing_out_is_left_alone(gpt2: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(ExportError, match="out exists already"):
        export_bundle_with_optimum(gpt2, load_profile("host"), tmp_path / "out")
    assert _left_in(tmp_path / "out") == []


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        # Falcon: one key and value head for all, or as many as said.
        (
            {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 4, "multi_query": True},
            (2, 1, 8),
        ),
        (
            {
                "num_hidden_layers": 2,
                "hidden_size": 32,
                "num_attention_heads": 4,
                "num_kv_heads": 2,
                "multi_query": True,
                "new_decoder_architecture": True,
            },
            (2, 2, 8),
        ),
        # MPT
        ({"n_layers": 3, "d_model": 32, "n_heads": 4, "attn_config": {"kv_n_heads": 2}}, (3, 2, 8)),
        # GPT-Neo
        ({"num_layers": 3, "hidden_size": 32, "num_heads": 2}, (3, 2, 16)),
        # Gemma 3: the language model is one of two, and its heads have a length of their own.
        (
            {
                "text_config": {
                    "num_hidden_layers": 2,
                    "hidden_size": 32,
                    "num_attention_heads": 4,
                    "num_key_value_heads": 2,
                    "head_dim": 24,
                }
            },
            (2, 2, 24),
        ),
    ],
)
def test_checkpoint_facts__cache_by_the_names_that_architectures_use(
    fields: Args, expected: tuple[int, int, int], gpt2: Path
) -> None:
    config = {"model_type": "any", "vocab_size": VOCABULARY, **fields}
    facts = checkpoint_facts(gpt2, config)
    assert (facts.layers, facts.attention_kv_heads, facts.head_length) == expected
    assert facts.feed_forward_length == 4 * WIDTH and facts.context_train_tokens == 2048


def test_checkpoint_facts__weights_are_counted_and_masks_are_not(gpt2: Path) -> None:
    weights = {
        "transformer.wte.weight": np.zeros((VOCABULARY, WIDTH), np.float16),
        "lm_head.weight": np.zeros((VOCABULARY, WIDTH), np.float16),
        "transformer.h.0.attn.bias": np.ones((1, 1, 64, 64), np.float32),
        "transformer.h.0.attn.masked_bias": np.array(-1e9, np.float32),
    }
    save_file(weights, gpt2 / "model.safetensors")
    facts = checkpoint_facts(gpt2, json.loads((gpt2 / "config.json").read_text()))
    assert (facts.parameters, facts.quantization) == (2 * VOCABULARY * WIDTH, "F16")
    assert facts.weight_bytes == 4 * VOCABULARY * WIDTH
    assert not facts.tied_embeddings and facts.bytes_per_token == 2 * VOCABULARY * WIDTH
    assert (facts.license, facts.base_model) == ("mit", "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B")


def _edgekit(*arguments: str | Path, **environ: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from edgekit.cli.main import main; main()", *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=280, env={**os.environ, **environ}
    )


def test_export__missing_environment_offline_is_an_error_and_leaves_nothing(
    gpt2: Path, tmp_path: Path
) -> None:
    arguments = ("--profile", "host", "--out", tmp_path / "out", "--exporter", "optimum", "--offline")
    done = _edgekit("export", gpt2, *arguments, XDG_CACHE_HOME=str(tmp_path / "cache"))
    assert (done.returncode, done.stdout) == (1, "")
    assert "an environment of its own, which is missing" in done.stderr
    assert all(pin in done.stderr for pin in REQUIREMENTS)
    assert _left_in(tmp_path) == ["Tiny-GPT2"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--exporter", "olive"), "no exporter 'olive'"),
        (("--exporter", "optimum", "--adapter", "lora"), "merge"),
        (("--exporter", "optimum", "--calibration", "own"), "--calibration"),
    ],
)
def test_export__options_that_do_not_go_together_are_explained(
    options: tuple[str, ...], message: str, gpt2: Path, tmp_path: Path
) -> None:
    done = _edgekit("export", gpt2, "--profile", "host", "--out", tmp_path / "out", *options)
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr and "Traceback" not in done.stderr


def test_export__architecture_of_others_is_pointed_to_optimum(gpt2: Path, tmp_path: Path) -> None:
    done = _edgekit("export", gpt2, "--profile", "host", "--out", tmp_path / "out")
    assert done.returncode == 1
    assert "the architecture is 'GPT2LMHeadModel'" in done.stderr and "--exporter optimum" in done.stderr


def _gpt2_weights(layers: int, width: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(5)
    shapes = {"wte.weight": (VOCABULARY, width), "wpe.weight": (POSITIONS, width)}
    weights: dict[str, np.ndarray] = {}
    for index in range(layers):
        layer = f"h.{index}"
        for name, rows, columns in (
            *(("attn.c_attn", width, 3 * width), ("attn.c_proj", width, width)),
            *(("mlp.c_fc", width, 4 * width), ("mlp.c_proj", 4 * width, width)),
        ):
            shapes |= {f"{layer}.{name}.weight": (rows, columns), f"{layer}.{name}.bias": (columns,)}
    for name, shape in shapes.items():
        # The tied head then favours the last token clearly, as a trained model does its favourites.
        scale = 0.5 if name == "wte.weight" else 0.05
        weights[f"transformer.{name}"] = random.normal(0, scale, shape).astype(np.float32)
    for name in ["ln_f", *(f"h.{index}.ln_{which}" for index in range(layers) for which in (1, 2))]:
        weights[f"transformer.{name}.weight"] = np.ones(width, np.float32)
        weights[f"transformer.{name}.bias"] = np.zeros(width, np.float32)
    return weights


@pytest.mark.slow
def test_export__gpt2_in_the_real_environment_is_verified(
    tiny: ModuleType, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """Makes the environment in the user's cache where it is missing: 1.1 GB."""
    weights = _gpt2_weights(layers=2, width=64)
    model = _write_checkpoint(tmp_path / "GPT2", tiny, weights, n_embd=64, n_layer=2, n_head=4)
    assert _edgekit("keygen", "--out", tmp_path / "key").returncode == 0
    out, packed = tmp_path / "out", ("--exporter", "optimum", "--sign-key", tmp_path / "key.key")
    done = _edgekit("export", model, "--profile", "host", "--out", out, *packed)
    assert done.returncode == 0, done.stderr
    assert "INT4, exported with optimum from F32, quantized by onnxruntime" in done.stdout
    verified = _edgekit("verify", out, "--public-key", tmp_path / "key.pub", "--json")
    assert verified.returncode == 0, verified.stdout
    manifest = json.loads((out / "manifest.json").read_text())
    record_property("mean KL divergence", manifest["proof"]["mean_kl"])
    assert 1e-7 < manifest["proof"]["mean_kl"] < 0.1 and manifest["proof"]["misses"] == []
    kinds = {node.op_type for node in onnx.load(out / "model.onnx", load_external_data=False).graph.node}
    assert {"MatMulNBits", "GatherBlockQuantized"} <= kinds
    assert manifest["model"]["weight_bytes"] == sum(f.stat().st_size for f in out.glob("model.onnx*"))
    # The head, which was the embedding, has become a matrix of its own.
    assert not manifest["model"]["tied_embeddings"]
    assert all(path.stat().st_mode & 0o777 == 0o644 for path in out.iterdir())
    answers = json.loads((out / "golden.json").read_text())["answers"]
    for answer in answers:
        got = _greedy_by_genai(out, answer["prompt_tokens"], len(answer["answer_tokens"]))
        assert got == answer["answer_tokens"]
    assert sum(len(answer["answer_tokens"]) for answer in answers) > 100


def _greedy_by_genai(directory: Path, prompt: list[int], count: int) -> list[int]:
    import onnxruntime_genai

    model = onnxruntime_genai.Model(str(directory))
    parameters = onnxruntime_genai.GeneratorParams(model)
    parameters.set_search_options(max_length=len(prompt) + count, do_sample=False)
    generator = onnxruntime_genai.Generator(model, parameters)
    generator.append_tokens(prompt)
    while not generator.is_done():
        generator.generate_next_token()
    return [int(token) for token in generator.get_sequence(0)][len(prompt) :]
