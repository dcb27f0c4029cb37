"""Bases with PEFT adapters, against what the peft library makes of them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from edgekit.errors import ModelFileError
from export.student.integers import IntegerLayout, IntegerMatrix
from export.student.lora import AdaptedStudent, open_with_adapter
from export.student.lora_config import adapter_base
from export.student.safetensors_dir import CheckpointStudent, open_checkpoint
from export.student.safetensors_file import open_safetensors

FIXTURES = Path(__file__).parents[2] / "fixtures" / "peft"
SHAPE = {"hidden_size": 32, "intermediate_size": 48}  # as in the fixtures' regenerate.py
BASES = {
    "rslora-patterns": "R1-Tiny-Llama-1M",
    "bf16-head": "R1-0528-Tiny-Qwen3",
    "dora-biases": "R1-Tiny-Qwen2",
    "all-biases": "R1-Tiny-Qwen2",
    "saved-head-over-tied": "R1-Tiny-Qwen2",
    "saved-embedding-over-tied": "R1-Tiny-Qwen2",
    "saved-and-tied": "R1-Tiny-Qwen2",
    "embedding-over-tied": "R1-Tiny-Qwen2",
    "embedding-and-tied": "R1-Tiny-Qwen2",
    "dora-embedding": "R1-Tiny-Llama-1M",
    "tokens": "R1-Tiny-Qwen2",
    "grown-vocabulary": "R1-Tiny-Llama-1M",
}

Open = Callable[[str], AdaptedStudent]


@pytest.fixture(scope="module")
def bases(tiny: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], CheckpointStudent]:
    made: dict[str, CheckpointStudent] = {}

    def get(family: str) -> CheckpointStudent:
        if family not in made:
            made[family] = open_checkpoint(
                tiny.write_small(tmp_path_factory.mktemp("base") / family, family, **SHAPE)
            )
        return made[family]

    return get


@pytest.fixture
def adapter(tmp_path: Path) -> Callable[[str], Path]:
    """A copy of a variant's adapter to change at will."""

    def copy(variant: str) -> Path:
        target = tmp_path / f"My-{variant}"
        shutil.copytree(FIXTURES / variant, target)
        return target

    return copy


def _floats(student: CheckpointStudent) -> dict[str, np.ndarray]:
    return {tensor.name: tensor.read_float32() for tensor in student.tensors()}


@pytest.mark.parametrize("variant", BASES)
def test_open_with_adapter__weights_are_those_of_the_adapted_model(
    variant: str, bases: Callable[[str], CheckpointStudent]
) -> None:
    base = bases(BASES[variant])
    student = open_with_adapter(base, FIXTURES / variant)
    before, after = _floats(base), _floats(student)
    wanted = {
        name: stored.read()
        for name, stored in open_safetensors(FIXTURES / variant / "effective.safetensors").tensors.items()
    }
    # A head that the file has none for is the embedding's twin.
    heads = {"lm_head.weight": after.get("lm_head.weight", after["model.embed_tokens.weight"])}
    for name, values in {**after, **heads}.items():
        if name in wanted:
            assert np.abs(values - wanted[name]).max() < 2e-6, name
        elif name in before:
            assert np.array_equal(values, before[name]), name
    assert set(wanted) <= {*after, *heads}
    assert set(student.config.tensor_shapes()) == set(after)


@pytest.mark.parametrize("variant", ["rslora-patterns", "dora-biases", "dora-embedding", "tokens"])
def test_open_with_adapter__rows_can_be_read_alone(
    variant: str, bases: Callable[[str], CheckpointStudent]
) -> None:
    for tensor in open_with_adapter(bases(BASES[variant]), FIXTURES / variant).tensors():
        whole = tensor.read_float32()
        for rows in (slice(0, 1), slice(3, 11), slice(-5, None), slice(1, 30, 7), slice(9, None, -2)):
            part = tensor.read_float32(rows)
            assert part.shape == whole[rows].shape
            np.testing.assert_allclose(part, whole[rows], rtol=1e-6, atol=1e-7)


def test_open_with_adapter__many_chunks_make_the_same_matrix(
    bases: Callable[[str], CheckpointStudent], monkeypatch: pytest.MonkeyPatch
) -> None:
    student = open_with_adapter(bases("R1-Tiny-Llama-1M"), FIXTURES / "dora-embedding")
    whole = _floats(student)["model.embed_tokens.weight"]
    monkeypatch.setattr("export.student.lora_weights._CHUNK_ELEMENTS", 100)
    again = open_with_adapter(bases("R1-Tiny-Llama-1M"), FIXTURES / "dora-embedding")
    np.testing.assert_allclose(_floats(again)["model.embed_tokens.weight"], whole, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    ("variant", "tied"),
    [
        ("saved-head-over-tied", False),
        ("saved-embedding-over-tied", False),
        ("embedding-over-tied", False),
        ("saved-and-tied", True),
        ("embedding-and-tied", True),
        ("tokens", True),
        ("dora-biases", True),
    ],
)
def test_open_with_adapter__head_is_tied_while_it_is_the_embedding(
    variant: str, tied: bool, bases: Callable[[str], CheckpointStudent]
) -> None:
    student = open_with_adapter(bases(BASES[variant]), FIXTURES / variant)
    assert student.facts.tied_embeddings is tied
    assert student.config.tied_embeddings is tied
    assert student.config.raw["tie_word_embeddings"] is tied
    assert ("lm_head.weight" in _floats(student)) is not tied


def test_open_with_adapter__facts_and_source_name_both(
    bases: Callable[[str], CheckpointStudent], adapter: Callable[[str], Path]
) -> None:
    base, directory = bases("R1-Tiny-Llama-1M"), adapter("rslora-patterns")
    student = open_with_adapter(base, directory)
    assert student.facts.name == "My-rslora-patterns"
    assert student.facts.base_model == "base/R1-Tiny-Llama-1M"
    assert (student.facts.quantization, student.stored_as) == ("BF16", "BF16")
    assert student.facts.weight_bytes > base.facts.weight_bytes
    assert student.facts.parameters == base.facts.parameters
    storages = {tensor.name: tensor.storage for tensor in student.tensors()}
    assert storages["model.layers.1.self_attn.q_proj.weight"] == "F32"
    assert storages["model.layers.1.self_attn.k_proj.weight"] == "BF16"
    source = student.source()
    assert source.name == "R1-Tiny-Llama-1M + My-rslora-patterns"
    config = json.loads((directory / "adapter_config.json").read_text())
    local = {**config, "base_model_name_or_path": "/home/me/models/R1-Tiny"}
    (directory / "adapter_config.json").write_text(json.dumps(local))
    changed = open_with_adapter(base, directory).source()
    assert changed.base_model == "R1-Tiny"
    assert len({source.sha256, changed.sha256, base.source().sha256}) == 3
    assert student.tokenizer_files() == base.tokenizer_files()
    assert student.tokenizer.tokens == base.tokenizer.tokens


def test_open_with_adapter__quantized_base_keeps_the_integers_that_are_left_alone(
    bases: Callable[[str], CheckpointStudent],
) -> None:
    float_base = bases("R1-Tiny-Llama-1M")
    layout = IntegerLayout(4, 32, symmetric=True, in_order=True, scales_fit_f16=True)
    tensors = {}
    for tensor in float_base.tensors():
        if "_proj" in tensor.name:
            rows, columns = tensor.shape
            groups = -(-columns // 32)
            codes = np.random.default_rng(rows).integers(0, 16, tensor.shape, dtype=np.uint8)
            matrix = IntegerMatrix(
                shape=(rows, columns),
                layout=layout,
                groups=None,
                _codes=lambda part, codes=codes: codes[part],
                _scales=lambda part, n=rows, g=groups: np.full((n, g), 0.25, np.float32)[part],
                _zeros=lambda part, n=rows, g=groups: np.full((n, g), 8, np.int16)[part],
            )
            tensor = replace(tensor, storage="INT4", _read=matrix.dequantized, integers=matrix)
        tensors[tensor.name] = tensor
    base = CheckpointStudent(float_base.path, float_base.config, tensors, quantization="GPTQ")
    student = open_with_adapter(base, FIXTURES / "rslora-patterns")
    assert (student.facts.quantization, student.stored_as) == ("GPTQ", "BF16")
    after = {tensor.name: tensor for tensor in student.tensors()}
    kept = after["model.layers.0.self_attn.k_proj.weight"]
    assert kept is tensors[kept.name] and kept.integers is not None
    merged = after["model.layers.0.self_attn.v_proj.weight"]
    assert (merged.storage, merged.integers) == ("F32", None)
    # The same update as over the float base.
    plain = _floats(open_with_adapter(float_base, FIXTURES / "rslora-patterns"))[merged.name]
    update = plain - _floats(float_base)[merged.name]
    assert np.abs(merged.read() - (tensors[merged.name].read() + update)).max() < 1e-6


def test_open_with_adapter__tokenizer_beside_the_adapter_goes_first(
    bases: Callable[[str], CheckpointStudent], adapter: Callable[[str], Path]
) -> None:
    base, directory = bases("R1-Tiny-Llama-1M"), adapter("grown-vocabulary")
    tokenizer = json.loads((base.path / "tokenizer.json").read_text())
    tokenizer["added_tokens"].append({"id": 279, "content": "<tool>", "special": True})
    (directory / "tokenizer.json").write_text(json.dumps(tokenizer))
    student = open_with_adapter(base, directory)
    assert student.facts.vocabulary == 280
    assert student.tokenizer.tokens[279] == "<tool>"
    assert student.tokenizer_files() == {"tokenizer.json": (directory / "tokenizer.json").read_bytes()}


def test_adapter_base__is_a_local_directory_that_the_config_names(
    bases: Callable[[str], CheckpointStudent], adapter: Callable[[str], Path]
) -> None:
    directory = adapter("tokens")
    assert adapter_base(directory) is None
    config = json.loads((directory / "adapter_config.json").read_text())
    for name in (str(bases("R1-Tiny-Qwen2").path), "../base"):
        (directory / "adapter_config.json").write_text(
            json.dumps({**config, "base_model_name_or_path": name})
        )
        shutil.copytree(bases("R1-Tiny-Qwen2").path, directory.parent / "base", dirs_exist_ok=True)
        found = adapter_base(directory)
        assert found is not None and open_checkpoint(found).config.architecture == "qwen2"


@pytest.mark.parametrize(
    ("variant", "change", "message"),
    [
        ("tokens", {"peft_type": "IA3"}, "of kind 'IA3'; known is LORA"),
        ("tokens", {"peft_type": "LOHA"}, "of kind 'LOHA'"),
        ("tokens", {"task_type": "SEQ_CLS"}, "for the task 'SEQ_CLS'"),
        ("tokens", {"layer_replication": [[0, 2], [1, 2]]}, "'layer_replication' is .* not known here"),
        ("tokens", {"use_qalora": True}, "'use_qalora' is true, which is not known here"),
        ("tokens", {"alora_invocation_tokens": [5]}, "'alora_invocation_tokens'"),
        ("tokens", {"use_something_new": 1}, "'use_something_new' is 1, which is not known here"),
        (
            "tokens",
            {"r": 4},
            r"lora_A.weight' has shape \[2, 32\]; with this base and config it is \[4, 32\]",
        ),
        ("tokens", {"r": 0}, "the rank 'r' is 0"),
        ("tokens", {"lora_alpha": "8"}, "the alpha 'lora_alpha' is '8'"),
        ("tokens", {"rank_pattern": {"(v_proj": 2}}, "no regular expression"),
        ("tokens", {"trainable_token_indices": [3, 270]}, r"shape \[3, 32\]; .* it is \[2, 32\]"),
        ("tokens", {"trainable_token_indices": [3, 272, 41]}, "token 272 was trained; the base has 272"),
        ("tokens", {"trainable_token_indices": [3, 3, 41]}, "names a token twice"),
        ("tokens", {"trainable_token_indices": None}, "does not say which"),
        (
            "tokens",
            {"target_modules": ["v_proj", "q_proj"]},
            "no lora_A and lora_B for 'model.layers.0.self_attn.q",
        ),
        ("tokens", {"target_modules": [r"layers.0.self_attn.v_proj"]}, "target_modules does not name it"),
        (
            "tokens",
            {"layers_to_transform": [1]},
            "a LoRA for 'model.layers.0.self_attn.v_proj'; target_modules",
        ),
        ("tokens", {"modules_to_save": ["lm_head"]}, "'lm_head' of modules_to_save is missing"),
        ("tokens", {"use_dora": True}, "'magnitude' of 'model.layers.0.self_attn.v_proj' is missing"),
        ("dora-biases", {"use_dora": False}, "a magnitude vector for .*, and use_dora is off"),
        (
            "tokens",
            {"auto_mapping": {"base_model_class": "LlamaForCausalLM"}},
            "trained on a LlamaForCausalLM; .* is a Qwen2ForCausalLM\n  .*its base is base/R1-Tiny-Qwen2",
        ),
    ],
)
def test_open_with_adapter__config_that_does_not_fit_is_refused(
    variant: str,
    change: dict[str, Any],
    message: str,
    bases: Callable[[str], CheckpointStudent],
    adapter: Callable[[str], Path],
) -> None:
    directory = adapter(variant)
    config = json.loads((directory / "adapter_config.json").read_text())
    (directory / "adapter_config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(ModelFileError) as caught:
        open_with_adapter(bases(BASES[variant]), directory)
    assert caught.match(message)


def test_open_with_adapter__unconverted_pissa_is_refused(
    bases: Callable[[str], CheckpointStudent], adapter: Callable[[str], Path]
) -> None:
    base, directory = bases("R1-Tiny-Llama-1M"), adapter("pissa")
    with pytest.raises(ModelFileError, match="started by 'pissa', which changes the base as well"):
        open_with_adapter(base, directory)
    # Why: merged as if it were plain, it is another model.
    config = json.loads((directory / "adapter_config.json").read_text())
    (directory / "adapter_config.json").write_text(json.dumps({**config, "init_lora_weights": True}))
    name = "model.layers.0.self_attn.v_proj.weight"
    effective = open_safetensors(directory / "effective.safetensors").tensors[name].read()
    assert np.abs(_floats(open_with_adapter(base, directory))[name] - effective).max() > 0.05


V_PROJ = "base_model.model.model.layers.1.self_attn.v_proj"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda t: t.pop(f"{V_PROJ}.lora_A.weight"),
            "'lora_A' of 'model.layers.1.self_attn.v_proj' is missing",
        ),
        (
            lambda t: t.pop(f"{V_PROJ}.lora_B.weight"),
            "'lora_B' of 'model.layers.1.self_attn.v_proj' is missing",
        ),
        (lambda t: t.clear(), "there are no tensors"),
        (lambda t: t[f"{V_PROJ}.lora_A.weight"].fill(np.nan), "lora_A.weight' holds NaN or infinity"),
        (
            lambda t: t.update({f"{V_PROJ}.lora_A.weight": np.zeros((2, 64), np.float32)}),
            r"\[2, 64\]; with this base and config it is \[2, 32\]\n  the adapter may be for another base",
        ),
        (
            lambda t: t.update({f"{V_PROJ}.lora_A.weight": np.zeros((2, 32), np.int8)}),
            "is of type I8, not of floats",
        ),
        (
            lambda t: t.update({f"{V_PROJ.replace('1', '7')}.lora_A.weight": np.zeros((2, 32), np.float32)}),
            "the base has no module 'model.layers.7.self_attn.v_proj'\n  the adapter may be for another base",
        ),
        (
            lambda t: t.update({"model.vera_A": np.zeros(3, np.float32)}),
            "'model.vera_A' has no name that a LoRA",
        ),
        (
            lambda t: t.update({f"{V_PROJ.replace('v_', 'o_')}.bias": np.zeros(32, np.float32)}),
            "a bias for 'model.layers.1.self_attn.o_proj'; the base has none",
        ),
    ],
)
def test_open_with_adapter__damaged_weights_are_refused(
    change: Callable[[dict[str, np.ndarray]], object],
    message: str,
    bases: Callable[[str], CheckpointStudent],
    adapter: Callable[[str], Path],
) -> None:
    directory = adapter("tokens")
    tensors = load_file(directory / "adapter_model.safetensors")
    change(tensors)
    save_file(tensors, directory / "adapter_model.safetensors")
    with pytest.raises(ModelFileError) as caught:
        open_with_adapter(bases("R1-Tiny-Qwen2"), directory)
    assert caught.match(message)


def test_open_with_adapter__truncated_missing_and_pickled_files_are_told_apart(
    bases: Callable[[str], CheckpointStudent], adapter: Callable[[str], Path]
) -> None:
    base, directory = bases("R1-Tiny-Qwen2"), adapter("tokens")
    weights = directory / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    with pytest.raises(ModelFileError, match="the file is cut off"):
        open_with_adapter(base, directory)
    weights.unlink()
    with pytest.raises(ModelFileError, match=r"adapter_model\.safetensors is missing"):
        open_with_adapter(base, directory)
    (directory / "adapter_model.bin").touch()
    with pytest.raises(ModelFileError, match="can run code when it is read"):
        open_with_adapter(base, directory)
    (directory / "adapter_config.json").unlink()
    with pytest.raises(ModelFileError, match=r"adapter_config\.json: cannot be read"):
        open_with_adapter(base, directory)


def test_open_with_adapter__embeddings_that_grew_apart_are_refused(
    bases: Callable[[str], CheckpointStudent], adapter: Callable[[str], Path]
) -> None:
    directory = adapter("grown-vocabulary")
    tensors = load_file(directory / "adapter_model.safetensors")
    tensors["base_model.model.lm_head.weight"] = tensors["base_model.model.lm_head.weight"][:272].copy()
    save_file(tensors, directory / "adapter_model.safetensors")
    with pytest.raises(ModelFileError, match=r"embeddings of \[272, 280\] tokens for a base of 272"):
        open_with_adapter(bases("R1-Tiny-Llama-1M"), directory)
