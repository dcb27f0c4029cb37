"""Exports by optimum: what is refused, what is checked, and one that is real from end to end."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from edgekit.errors import ExportError, ModelFileError, ToolchainError
from export.optimum.exporter import ARCHITECTURES, REQUIREMENTS, ask_worker, export_with_optimum
from export.runtimes.optimum_decoder import OptimumDecoder
from export.tool_venv import ensure_tool_venv

FIXTURE = Path(__file__).parents[2] / "fixtures" / "optimum_gpt2"


@pytest.fixture(scope="module")
def made() -> ModuleType:
    """tests/fixtures/optimum_gpt2/regenerate.py, for its sequences."""
    spec = importlib.util.spec_from_file_location("optimum_gpt2", FIXTURE / "regenerate.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def gpt2(tmp_path: Path) -> Path:
    """A directory with the config of the fixture's GPT-2 and a tokenizer file."""
    directory = tmp_path / "gpt2"
    directory.mkdir()
    shutil.copy(FIXTURE / "config.json", directory)
    (directory / "tokenizer.json").write_text("{}")
    return directory


def _change_config(directory: Path, **fields: Any) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def test_export_with_optimum__unknown_architecture_gets_the_list(gpt2: Path, tmp_path: Path) -> None:
    _change_config(gpt2, model_type="mamba")
    with pytest.raises(ExportError, match="does not export the architecture 'mamba'") as failure:
        export_with_optimum(gpt2, tmp_path / "out")
    assert all(name in str(failure.value.hint) for name in ("gpt2", "gemma2", "phi3", "stablelm"))
    assert not (tmp_path / "out").exists()


def test_export_with_optimum__quantized_checkpoint_is_refused(gpt2: Path, tmp_path: Path) -> None:
    _change_config(gpt2, quantization_config={"quant_method": "awq"})
    with pytest.raises(ExportError, match=r"quantized \(awq\)"):
        export_with_optimum(gpt2, tmp_path / "out")


@pytest.mark.parametrize("field", ["model_type", "vocab_size"])
def test_export_with_optimum__config_without_a_field_is_refused(
    field: str, gpt2: Path, tmp_path: Path
) -> None:
    _change_config(gpt2, **{field: None})
    with pytest.raises(ModelFileError, match=field):
        export_with_optimum(gpt2, tmp_path / "out", python=Path(sys.executable))


def test_export_with_optimum__a_missing_environment_is_named_with_what_it_needs(
    gpt2: Path, tmp_path: Path
) -> None:
    with pytest.raises(ToolchainError, match="optimum runs in an environment of its own") as failure:
        export_with_optimum(gpt2, tmp_path / "out", cache=tmp_path / "cache", offline=True)
    assert "pip install accelerate==" in str(failure.value.hint)
    assert "optimum-onnx==0.1.0" in str(failure.value.hint)


def test_export_with_optimum__an_interpreter_without_optimum_is_named(gpt2: Path, tmp_path: Path) -> None:
    with pytest.raises(ToolchainError, match="cannot run optimum: ModuleNotFoundError") as failure:
        export_with_optimum(gpt2, tmp_path / "out", python=Path(sys.executable))
    assert all(requirement in str(failure.value.hint) for requirement in REQUIREMENTS)


def _program(path: Path, code: str) -> Path:
    path.write_text(code)
    path.chmod(0o755)
    return path


def test_export_with_optimum__a_worker_that_is_killed_is_an_error(gpt2: Path, tmp_path: Path) -> None:
    python = _program(tmp_path / "python", "#!/bin/sh\nkill -9 $$\n")
    with pytest.raises(ExportError, match="for lack of memory"):
        export_with_optimum(gpt2, tmp_path / "out", python=python)
    assert list((tmp_path / "out").iterdir()) == []


@pytest.fixture
def stand_in(tmp_path: Path, made: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stands in for the environment: answers with the graph and the logits that its worker made."""
    monkeypatch.setattr("export.optimum.exporter._sequences", lambda _config: made.SEQUENCES)
    code = f"""#!{sys.executable}
import json, shutil, sys
request = json.load(open(sys.argv[3]))
for name in ("model.onnx", "reference.npz"):
    shutil.copy({str(tmp_path / "made")!r} + "/" + name, request["directory"])
print(json.dumps({{"step": "exporting"}}))
print(json.dumps({{"result": None}}))
"""
    shutil.copytree(FIXTURE, tmp_path / "made")
    return _program(tmp_path / "python", code)


def test_export_with_optimum__a_graph_that_agrees_becomes_a_directory_that_genai_runs(
    gpt2: Path, stand_in: Path, tmp_path: Path
) -> None:
    steps: list[str] = []
    out = tmp_path / "out"
    export_with_optimum(
        gpt2,
        out,
        precision="fp32",
        python=stand_in,
        progress=lambda what, done, total: steps.append(f"{what} {done}"),
    )
    assert steps == ["exporting 0", "exporting 1"]
    names = sorted(path.name for path in out.iterdir())
    assert names == ["config.json", "genai_config.json", "model.onnx", "tokenizer.json"]
    assert _greedy_by_genai(out, [3, 1, 4], 8) == _greedy(out, [3, 1, 4], 8)


def test_export_with_optimum__a_graph_that_computes_something_else_is_refused(
    gpt2: Path, stand_in: Path, tmp_path: Path
) -> None:
    import onnx

    model = onnx.load(tmp_path / "made" / "model.onnx")
    weight = next(t for t in model.graph.initializer if "c_fc.weight" in t.name)
    values = onnx.numpy_helper.to_array(weight).copy()
    values[0, 0] += 0.1
    weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
    onnx.save(model, tmp_path / "made" / "model.onnx")
    with pytest.raises(ExportError, match=r"the logits of 1 tokens at once differ by .*\(allowed: 0\.001\)"):
        export_with_optimum(gpt2, tmp_path / "out", precision="fp32", python=stand_in)
    assert list((tmp_path / "out").iterdir()) == []


def _greedy(directory: Path, tokens: list[int], count: int) -> list[int]:
    decoder, tokens = OptimumDecoder(directory), list(tokens)
    for _ in range(count):
        tokens.append(int(decoder.logits(tokens)[-1].argmax()))
    return tokens


def _greedy_by_genai(directory: Path, tokens: list[int], count: int) -> list[int]:
    import onnxruntime_genai

    model = onnxruntime_genai.Model(str(directory))
    parameters = onnxruntime_genai.GeneratorParams(model)
    length = len(tokens) + count
    # Without a least length the random model's EOS would end it.
    parameters.set_search_options(max_length=length, min_length=length, do_sample=False)
    generator = onnxruntime_genai.Generator(model, parameters)
    generator.append_tokens(tokens)
    while not generator.is_done():
        generator.generate_next_token()
    return [int(token) for token in generator.get_sequence(0)]


@pytest.mark.parametrize("step", [None, 1, 7])
def test_logits__equal_transformers_at_once_and_with_the_cache(step: int | None, made: ModuleType) -> None:
    decoder = OptimumDecoder(FIXTURE)
    with np.load(FIXTURE / "reference.npz") as reference:
        for index, tokens in enumerate(made.SEQUENCES):
            logits = decoder.logits(tokens, step_tokens=step)
            assert logits.dtype == np.float32
            assert np.abs(logits - reference[str(index)]).max() < 1e-4
    assert np.ptp(logits) > 5  # far above what is allowed


def test_optimum_decoder__a_damaged_graph_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes((FIXTURE / "model.onnx").read_bytes()[:5000])
    with pytest.raises(ModelFileError, match="onnxruntime does not load it"):
        OptimumDecoder(tmp_path)


def test_expose_matrices__changes_the_form_and_not_the_values(made: ModuleType, tmp_path: Path) -> None:
    import onnx

    from export.optimum.worker import expose_matrices

    model = onnx.load(FIXTURE / "model.onnx")
    assert {"Gemm", "MatMul"} <= {node.op_type for node in model.graph.node}
    expose_matrices(model.graph)
    constants = {tensor.name for tensor in model.graph.initializer}
    assert not any(node.op_type == "Gemm" for node in model.graph.node)
    # 4 matrices of the layer and the tied head.
    assert sum(n.op_type == "MatMul" and n.input[1] in constants for n in model.graph.node) == 5
    onnx.checker.check_model(model)
    onnx.save(model, tmp_path / "model.onnx")
    tokens = made.SEQUENCES[2]
    assert np.allclose(
        OptimumDecoder(tmp_path).logits(tokens), OptimumDecoder(FIXTURE).logits(tokens), atol=1e-5
    )


def _write_gpt2(directory: Path) -> Path:
    """A random GPT-2 checkpoint of two layers, with BPE of single bytes."""
    width, vocabulary, layers = 64, 320, 2
    random = np.random.default_rng(5)
    tensors = {"wte.weight": (vocabulary, width), "wpe.weight": (128, width)}
    for index in range(layers):
        tensors |= {
            f"h.{index}.attn.c_attn.weight": (width, 3 * width),
            f"h.{index}.attn.c_proj.weight": (width, width),
            f"h.{index}.mlp.c_fc.weight": (width, 4 * width),
            f"h.{index}.mlp.c_proj.weight": (4 * width, width),
            f"h.{index}.attn.c_attn.bias": (3 * width,),
            f"h.{index}.attn.c_proj.bias": (width,),
            f"h.{index}.mlp.c_fc.bias": (4 * width,),
            f"h.{index}.mlp.c_proj.bias": (width,),
        }
    weights = {
        f"transformer.{name}": random.normal(0, 0.2, shape).astype(np.float32)
        for name, shape in tensors.items()
    }
    norms = ["ln_f", *(f"h.{index}.ln_{which}" for index in range(layers) for which in (1, 2))]
    for name in norms:
        weights[f"transformer.{name}.weight"] = np.ones(width, dtype=np.float32)
        weights[f"transformer.{name}.bias"] = random.normal(0, 0.1, width).astype(np.float32)
    directory.mkdir()
    save_file(weights, directory / "model.safetensors", {"format": "pt"})
    config = {"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "vocab_size": vocabulary}
    config |= {"n_positions": 128, "n_embd": width, "n_layer": layers, "n_head": 4}
    config |= {"bos_token_id": 0, "eos_token_id": 0}
    (directory / "config.json").write_text(json.dumps(config))
    (directory / "tokenizer_config.json").write_text(json.dumps({"model_max_length": 128}))
    return directory


@pytest.mark.slow
def test_export_with_optimum__gpt2_in_the_real_environment(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """Makes the environment in the user's cache where it is missing: 1.1 GB."""
    model = _write_gpt2(tmp_path / "gpt2")
    floats, packed = tmp_path / "fp32", tmp_path / "int4"
    export_with_optimum(model, floats, precision="fp32")
    export_with_optimum(model, packed)
    tokens = [(7 * index) % 320 for index in range(40)]
    wanted, got = (OptimumDecoder(path).logits(tokens) for path in (floats, packed))
    cosine = float((wanted * got).sum() / np.sqrt((wanted**2).sum() * (got**2).sum()))
    record_property("cosine of int4", cosine)
    assert 0.93 < cosine < 0.99999  # 4 bits a weight, and random weights
    sizes = [sum(f.stat().st_size for f in path.glob("model.onnx*")) for path in (floats, packed)]
    assert sizes[1] < 0.4 * sizes[0]
    assert _greedy_by_genai(packed, [5, 6, 7], 12) == _greedy(packed, [5, 6, 7], 12)
    python = ensure_tool_venv("optimum", REQUIREMENTS, offline=True)
    assert tuple(ask_worker(python, {"command": "architectures"})) == ARCHITECTURES
