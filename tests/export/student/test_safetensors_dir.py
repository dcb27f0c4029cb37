"""Checkpoint directories, whole and damaged."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from edgekit.errors import ModelFileError, UsageError
from export.student import CheckpointStudent, GgufStudent, open_student


def test_open_student__checkpoint_facts(small: Path) -> None:
    facts = open_student(small).facts
    assert (facts.name, facts.architecture, facts.quantization) == ("Small-Qwen2", "qwen2", "BF16")
    assert facts.parameters == sum(int(np.prod(t.shape)) for t in open_student(small).tensors())
    assert facts.weight_bytes == 2 * facts.parameters
    assert facts.tied_embeddings and facts.bytes_per_token == facts.weight_bytes
    assert (facts.license, facts.base_model) == ("mit", "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B")
    assert (facts.tokenizer, facts.vocabulary) == ("qwen2", 272)


def test_open_student__tensors_are_what_safetensors_reads(tiny: ModuleType, small: Path) -> None:
    written = tiny.make_tensors(json.loads((small / "config.json").read_text()))
    student = open_student(small)
    read = {tensor.name: tensor for tensor in student.tensors()}
    assert read.keys() == written.keys()
    for name, values in written.items():
        assert np.array_equal(read[name].read(), values), name
    with pytest.raises(ValueError, match="read-only"):
        read["model.norm.weight"].read()[0] = 1


def test_open_student__shards_are_joined(r1_family: Callable[[str], Path], tiny: ModuleType) -> None:
    path = r1_family("R1-Tiny-Qwen2")
    assert len(list(path.glob("*.safetensors"))) == 2
    names = {tensor.name for tensor in open_student(path).tensors()}
    assert names == set(tiny.tensor_shapes(json.loads((path / "config.json").read_text())))


@pytest.mark.parametrize(("dtype", "name"), [(np.float16, "F16"), (np.float32, "F32")])
def test_open_student__other_float_types(dtype: Any, name: str, small: Path, tiny: ModuleType) -> None:
    config = json.loads((small / "config.json").read_text())
    floats = {
        key: (bits.astype(np.uint32) << 16).view(np.float32).astype(dtype)
        for key, bits in tiny.make_tensors(config).items()
    }
    tiny.save_tensors(small, floats, 1)
    student = open_student(small)
    assert student.facts.quantization == name
    assert all(np.array_equal(t.read(), floats[t.name]) for t in student.tensors())


def test_open_student__single_file_goes_before_an_index_left_beside_it(small: Path, tiny: ModuleType) -> None:
    tensors = tiny.make_tensors(json.loads((small / "config.json").read_text()))
    zeros = {name: np.zeros_like(values) for name, values in tensors.items()}
    tiny.save_tensors(small, zeros, 2)
    tiny.save_tensors(small, tensors, 1)
    assert (small / "model.safetensors.index.json").is_file()
    for tensor in open_student(small).tensors():
        assert np.array_equal(tensor.read(), tensors[tensor.name])


def test_source__names_licence_revision_and_a_checksum_anyone_can_repeat(small: Path) -> None:
    traces = small / ".cache" / "huggingface" / "download"
    traces.mkdir(parents=True)
    (traces / "config.json.metadata").write_text("1a2b3c4d5e" * 4 + "\netag\n1700000000.0\n")
    source = open_student(small).source()
    files = sorted([*small.glob("*.json"), *small.glob("*.safetensors")])
    lines = "".join(f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.name}\n" for file in files)
    assert source.sha256 == hashlib.sha256(lines.encode()).hexdigest()
    assert (source.kind, source.license, source.revision) == ("safetensors", "mit", "1a2b3c4d5e" * 4)


def test_source__revision_from_the_hub_cache(tiny: ModuleType, tmp_path: Path) -> None:
    commit = "0123456789" * 4
    checkpoint = tiny.write_small(tmp_path / "models--org--name" / "snapshots" / commit)
    assert open_student(checkpoint).source().revision == commit


Change = Callable[[Path, ModuleType], None]


def _config(**changes: Any) -> Change:
    def change(path: Path, _tiny: ModuleType) -> None:
        config = json.loads((path / "config.json").read_text())
        config.update(changes)
        for key in [key for key, value in changes.items() if value is ...]:
            del config[key]
        (path / "config.json").write_text(json.dumps(config))

    return change


def _tensors(change: Callable[[dict[str, Any]], Any], shards: int = 1) -> Change:
    def apply(path: Path, tiny: ModuleType) -> None:
        tensors = tiny.make_tensors(json.loads((path / "config.json").read_text()))
        change(tensors)
        for file in path.glob("*.safetensors"):
            file.unlink()
        tiny.save_tensors(path, tensors, shards)

    return apply


def _bytes(change: Callable[[bytes], bytes], name: str = "model.safetensors") -> Change:
    return lambda path, _tiny: (path / name).write_bytes(change((path / name).read_bytes())) and None


def _header(change: Callable[[dict[str, Any]], Any]) -> Change:
    def rewrite(content: bytes) -> bytes:
        length = int.from_bytes(content[:8], "little")
        header = json.loads(content[8 : 8 + length])
        text = change(header) or json.dumps(header)
        return len(text).to_bytes(8, "little") + text.encode() + content[8 + length :]

    return _bytes(rewrite)


def _remove(name: str) -> Change:
    return lambda path, _tiny: (path / name).unlink()


def _index(change: Callable[[dict[str, str]], Any]) -> Change:
    def apply(path: Path, tiny: ModuleType) -> None:
        _tensors(lambda tensors: None, shards=2)(path, tiny)
        index = path / "model.safetensors.index.json"
        content = json.loads(index.read_text())
        change(content["weight_map"])
        index.write_text(json.dumps(content))

    return apply


NORM = "model.norm.weight"
WINDOW = {"sliding_window": 16, "max_position_embeddings": 64}
BAD: dict[str, tuple[Change, str]] = {
    "no config": (_remove("config.json"), r"config.json is missing"),
    "config not JSON": (lambda p, _: (p / "config.json").write_text("{") and None, r"config\.json: not JSON"),
    "config not an object": (lambda p, _: (p / "config.json").write_text("[]") and None, "not a JSON object"),
    "unknown architecture": (
        _config(architectures=["GPT2LMHeadModel"]),
        "'GPT2LMHeadModel'; known are LlamaForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM",
    ),
    "quantized": (
        _config(quantization_config={"quant_method": "eetq"}),
        r"quantized \(eetq\); known are gptq, awq, compressed-tensors, fp8, bitsandbytes",
    ),
    "no width": (_config(hidden_size=...), "'hidden_size' is missing"),
    "zero layers": (_config(num_hidden_layers=0), "'num_hidden_layers' is 0"),
    "heads as text": (_config(num_attention_heads="4"), "'num_attention_heads' is '4'"),
    "kv heads do not divide": (_config(num_key_value_heads=3), "3, which does not divide 4"),
    "unknown rope": (_config(rope_scaling={"rope_type": "longrope", "factor": 2}), "rope type is 'longrope'"),
    "rope without factor": (_config(rope_scaling={"rope_type": "yarn"}), "factor None"),
    "two ropes": (
        _config(
            rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
            rope_scaling={"rope_type": "yarn", "factor": 4.0},
        ),
        "rope_parameters and rope_scaling are not the same",
    ),
    "rope by kind of layer": (
        _config(rope_parameters={"full_attention": {"rope_type": "default", "rope_theta": 1e6}}),
        r"differ by kind of layer \(full_attention\)",
    ),
    "half of a head rotated": (_config(partial_rotary_factor=0.5), "partial_rotary_factor is 0.5"),
    "sliding window": (
        _config(architectures=["Qwen2ForCausalLM"], use_sliding_window=True, **WINDOW, max_window_layers=1),
        "some layers see 16 of 64 tokens",
    ),
    "another activation": (_config(hidden_act="gelu"), "hidden_act is 'gelu'"),
    "width against tensors": (_config(hidden_size=128), r"shape \[272, 64\]; config.json says \[272, 128\]"),
    "layers against tensors": (_config(num_hidden_layers=3), r"layers\.2\..* is missing"),
    "fewer layers than tensors": (_config(num_hidden_layers=1), r"layers\.1\..* is not part of the model"),
    "no weights": (_remove("model.safetensors"), "neither model.safetensors nor"),
    "missing tensor": (_tensors(lambda t: t.pop(NORM)), "'model.norm.weight' is missing"),
    "wrong shape": (
        _tensors(lambda t: t.update({NORM: t[NORM][:32]})),
        r"shape \[32\]; config.json says \[64\]",
    ),
    "extra tensor": (
        _tensors(lambda t: t.update(extra=t[NORM])),
        "'extra' of shape .* is not part of the model",
    ),
    "integer weights": (
        _tensors(lambda t: t.update({NORM: t[NORM].astype(np.int32)})),
        "of type I32; known are BF16, F16, F32",
    ),
    "cut file": (_bytes(lambda c: c[:-100]), "cut off: tensor '"),
    "cut header": (_bytes(lambda c: c[:500]), "header claims"),
    "cut to nothing": (_bytes(lambda c: c[:5]), "5 bytes are too few"),
    "longer file": (_bytes(lambda c: c + b"x"), "1 bytes follow"),
    "huge header": (
        _bytes(lambda c: (2**40).to_bytes(8, "little") + c[8:]),
        "header claims 1099511627776 bytes",
    ),
    "header not JSON": (_header(lambda h: "{]"), "header is not JSON"),
    "tensor twice": (
        _header(lambda h: json.dumps(h)[:-1] + ', "model.norm.weight": {}}'),
        "names a tensor twice",
    ),
    "overlap": (_header(lambda h: h[NORM].update(data_offsets=[0, 128])), "starts at byte"),
    "negative offset": (_header(lambda h: h[NORM].update(data_offsets=[-1, 127])), "impossible offsets"),
    "size against shape": (
        _header(lambda h: h[NORM].update(shape=[63])),
        r"shape \[63\], BF16, has 128 bytes",
    ),
    "unknown type": (_header(lambda h: h[NORM].update(dtype="F4")), "unknown type 'F4'"),
    "missing shard": (
        lambda p, t: (_index(lambda m: None)(p, t), (p / "model-00002-of-00002.safetensors").unlink())[1],
        r"model-00002-of-00002\.safetensors: the shard is missing",
    ),
    "index names another tensor": (
        _index(lambda m: m.update(ghost="model-00001-of-00002.safetensors")),
        r"tensor 'ghost' is missing",
    ),
    "index leads elsewhere": (
        _index(lambda m: m.update({NORM: "../../etc/passwd"})),
        "which is no shard's name",
    ),
    "tensor in another shard": (
        _index(lambda m: m.update({NORM: f"model-0000{3 - int(m[NORM][10])}-of-00002.safetensors"})),
        "is not where model.safetensors.index.json says",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_open_student__bad_checkpoint_is_refused_with_a_reason(
    name: str, small: Path, tiny: ModuleType
) -> None:
    change, message = BAD[name]
    change(small, tiny)
    with pytest.raises(ModelFileError, match=message):
        open_student(small)


@pytest.mark.parametrize(
    "changes",
    [
        {**WINDOW, "use_sliding_window": False, "max_window_layers": 1},
        {**WINDOW, "use_sliding_window": True, "max_window_layers": 2},
        {**WINDOW, "use_sliding_window": True, "layer_types": ["full_attention"] * 2},
        {**WINDOW, "use_sliding_window": True, "max_window_layers": 1, "max_position_embeddings": 16},
    ],
    ids=["off", "above the last layer", "full attention", "as long as the context"],
)
def test_open_student__sliding_window_without_effect_is_let_be(
    changes: dict[str, Any], small: Path, tiny: ModuleType
) -> None:
    _config(**changes)(small, tiny)
    assert open_student(small).facts.context_train_tokens == changes["max_position_embeddings"]


def test_open_student__rope_said_twice_alike_is_read(small: Path, tiny: ModuleType) -> None:
    scaling = {"rope_type": "linear", "factor": 2.0}
    _config(rope_parameters={**scaling, "rope_theta": 1e6}, rope_scaling=scaling)(small, tiny)
    student = open_student(small)
    assert isinstance(student, CheckpointStudent) and student.config.rope_scaling is not None
    assert (student.config.rope_scaling.kind, student.config.rope_theta) == ("linear", 1e6)


def test_open_student__unquantized_tied_head_in_the_file_is_used(small: Path, tiny: ModuleType) -> None:
    def tie(tensors: dict[str, Any]) -> None:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].copy()

    _tensors(tie)(small, tiny)
    assert not open_student(small).facts.tied_embeddings


def test_open_student__gguf_by_path_and_by_directory(student: Path, tmp_path: Path) -> None:
    (tmp_path / "model.gguf").symlink_to(student)
    for path in (student, tmp_path):
        opened = open_student(path)
        assert isinstance(opened, GgufStudent)
        assert opened.facts.quantization == "Q4_1"
    tensor = next(t for t in open_student(student).tensors() if t.name == "output_norm.weight")
    assert tensor.storage == "F32" and tensor.read().shape == (576,)


def test_open_student__a_hub_name_says_how_to_download_it() -> None:
    with pytest.raises(UsageError) as caught:
        open_student(Path("deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B"))
    assert caught.value.hint is not None
    assert "hf download deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B" in caught.value.hint


def test_open_student__an_empty_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=r"config\.json is missing"):
        open_student(tmp_path)


def test_license_text__comes_from_the_checkpoint(small: Path) -> None:
    assert open_student(small).license_text() is None
    (small / "LICENSE").write_text("MIT License\n")
    assert open_student(small).license_text() == "MIT License\n"
    assert isinstance(open_student(small), CheckpointStudent)
