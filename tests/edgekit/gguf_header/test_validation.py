"""Damaged models: refused here with a reason, and shown to be fatal or useless to llama.cpp itself."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from edgekit.errors import ModelFileError
from edgekit.gguf_header import read_gguf_header, validate_model

ARCHITECTURES = ("llama", "qwen2", "qwen3")
T = "tokenizer.ggml."


def _set(key: str, kind: str, value: Any) -> Callable[[Any], None]:
    return lambda model: model.set(key, kind, value)


def _without(key: str) -> Callable[[Any], None]:
    return lambda model: model.metadata.pop(key)


def _tokens(change: Callable[[list[Any]], list[Any]]) -> Callable[[Any], None]:
    def damage(model: Any) -> None:
        model.set(T + "tokens", "ARR", ("STR", change(list(model.metadata[T + "tokens"][1][1]))))

    return damage


def _no_tensor(name: str) -> Callable[[Any], None]:
    def damage(model: Any) -> None:
        model.tensors = [tensor for tensor in model.tensors if tensor.name != name]

    return damage


def _tensor(name: str, *, kind: int | None = None, size: int = 0, shape: list[int] | None = None) -> Any:
    def damage(model: Any) -> None:
        tensor = model.tensor(name)
        tensor.kind = tensor.kind if kind is None else kind
        tensor.shape = shape or tensor.shape
        tensor.data = bytes(size) if size else None

    return damage


def _more(name: str, shape: list[int]) -> Callable[[Any], None]:
    return lambda model: model.tensors.append(type(model.tensors[0])(name, shape))


def _alignment(value: int) -> Callable[[Any], None]:
    def damage(model: Any) -> None:
        model.set("general.alignment", "U32", value)
        model.alignment = value

    return damage


def _many_rope(kind: str, factor: float) -> Callable[[Any], None]:
    def damage(model: Any) -> None:
        model.set("llama.rope.scaling.type", "STR", kind)
        model.set("llama.rope.scaling.factor", "F32", factor)

    return damage


# Name: what is done to a whole model, and what must be said about it.
FATAL: dict[str, tuple[Callable[[Any], Any], str]] = {
    # llama.cpp aborts or crashes.
    "two tokens of one text": (_tokens(lambda t: [*t[:-1], t[0]]), "tokens: 'Ā' is at 0 and at 263"),
    "token named like an empty one": (_tokens(lambda t: [*t[:-2], "", "[EMPTY_262]"]), r"\[EMPTY_262\]"),
    "tokens equal up to a zero byte": (_tokens(lambda t: ["a\0b", *t[1:]]), "tokens: 'a' is at 0"),
    "SentencePiece without bytes": (_set(T + "model", "STR", "llama"), "no token for byte <0x00>"),
    "no layers": (_set("llama.block_count", "U32", 0), "block_count is 0"),
    "513 layers": (_set("llama.block_count", "U32", 513), "block_count is 513, not between 1 and 512"),
    "negative epsilon": (_set("llama.attention.layer_norm_rms_epsilon", "F32", -1.0), "epsilon is -1.0"),
    "epsilon not a number": (
        _set("llama.attention.layer_norm_rms_epsilon", "F32", math.nan),
        "epsilon is nan",
    ),
    "unknown rope scaling": (
        _set("llama.rope.scaling.type", "STR", "su"),
        "scaling.type is 'su'; known are none",
    ),
    "experts": (_set("llama.expert_count", "U32", 8), "expert_count is 8"),
    "used experts": (_set("llama.expert_used_count", "U32", 2), "expert_used_count is 2"),
    "expert groups": (_set("llama.expert_group_count", "U32", 1), "expert_group_count is 1"),
    "prediction layers": (_set("llama.nextn_predict_layers", "U32", 5), "nextn_predict_layers is 5"),
    "integer embedding": (
        _tensor("token_embd.weight", kind=26, size=64 * 264 * 4),
        "type I32, which no kernel",
    ),
    "integer head": (_tensor("output.weight", kind=24, size=64 * 264), "type I8, which no kernel"),
    "F64 matrix": (_tensor("blk.0.ffn_up.weight", kind=28, size=64 * 96 * 8), "type F64, which no kernel"),
    "Q8_1 matrix": (_tensor("blk.0.attn_q.weight", kind=9, size=128 * 36), "type Q8_1, which no kernel"),
    "F16 norm": (_tensor("blk.0.attn_norm.weight", kind=1, size=128), "type F16; llama.cpp needs F32 here"),
    "quantized norm": (_tensor("output_norm.weight", kind=20, size=36), "type IQ4_NL; llama.cpp needs F32"),
    "alignment 8": (_alignment(8), "general.alignment is 8; llama.cpp needs 32"),
}
REFUSED: dict[str, tuple[Callable[[Any], Any], str]] = {
    # llama.cpp refuses, or would use something else than what the file says.
    "unknown architecture": (
        _set("general.architecture", "STR", "mamba"),
        "'mamba'; known .* llama, qwen2, qwen3",
    ),
    "architecture of another type": (_set("general.architecture", "U32", 1), "general.architecture is 1"),
    "no architecture": (_without("general.architecture"), "general.architecture is None"),
    "no width": (_without("llama.embedding_length"), "'llama.embedding_length' is missing"),
    "width of another type": (_set("llama.embedding_length", "I32", 64), "INT32, not UINT32"),
    "no heads": (_set("llama.attention.head_count", "U32", 0), "head_count is 0"),
    "heads that do not divide": (
        _set("llama.attention.head_count_kv", "U32", 3),
        "3, which does not divide 4",
    ),
    "no KV heads": (_set("llama.attention.head_count_kv", "U32", 0), "head_count_kv is 0"),
    "heads per layer": (_set("llama.attention.head_count", "ARR", ("U32", [4])), "ARRAY.UINT32., not UINT32"),
    "odd heads": (_set("llama.attention.key_length", "U32", 15), "value_length is 16, key_length is 15"),
    "half rotated": (
        _set("llama.rope.dimension_count", "U32", 8),
        "dimension_count is 8; the heads have length 16",
    ),
    "width against tensors": (_set("llama.embedding_length", "U32", 128), "has shape .*; the metadata says"),
    "layers against tensors": (_set("llama.block_count", "U32", 3), "'blk.2.attn_norm.weight' is missing"),
    "fewer layers than tensors": (
        _set("llama.block_count", "U32", 1),
        "'blk.1.* is not part of a llama of 1 layers",
    ),
    "no output norm": (_no_tensor("output_norm.weight"), "'output_norm.weight' is missing"),
    "no embedding": (_no_tensor("token_embd.weight"), "'token_embd.weight' is missing"),
    "no value projection": (_no_tensor("blk.1.attn_v.weight"), "'blk.1.attn_v.weight' is missing"),
    "transposed": (
        _tensor("blk.0.ffn_gate.weight", shape=[96, 64]),
        r"shape \[96, 64\]; the metadata says \[64, 96\]",
    ),
    "unknown tensor": (_more("surprise.weight", [64, 64]), "'surprise.weight' is not part"),
    "unknown tokenizer": (_set(T + "model", "STR", "replit"), "model is 'replit'; known are gpt2, llama"),
    "no tokenizer": (_without(T + "model"), "model is None"),
    "no tokens": (_without(T + "tokens"), "tokens is missing or empty"),
    "tokens of another type": (
        _set(T + "tokens", "ARR", ("I32", [1] * 264)),
        "ARRAY.INT32., not ARRAY.STRING.",
    ),
    "fewer tokens than rows": (_tokens(lambda t: t[:200]), "token_type has 264 entries for 200 tokens"),
    "no merges": (_without(T + "merges"), "merges is missing"),
    "merges of another type": (_set(T + "merges", "STR", "a b"), "merges' is of type STRING"),
    "fewer types": (_set(T + "token_type", "ARR", ("I32", [1] * 100)), "100 entries for 264 tokens"),
    "types of another type": (_set(T + "token_type", "ARR", ("F32", [1.0] * 264)), "not ARRAY.INT32."),
    "fewer scores": (_set(T + "scores", "ARR", ("F32", [0.0] * 3)), "scores has 3 entries for 264"),
    "negative id": (_set(T + "padding_token_id", "I32", -1), "INT32, not UINT32"),
    "add_bos of another type": (_set(T + "add_bos_token", "STR", "yes"), "STRING, not BOOL"),
    "name of another type": (_set("general.name", "ARR", ("STR", ["a"])), "general.name' is of type ARRAY"),
    "file type of another type": (_set("general.file_type", "STR", "Q4_1"), "file_type' is of type STRING"),
    "part of a split": (_set("split.count", "U16", 3), "part 1 of a model in 3 files, but its name"),
}
STRICTER: dict[str, tuple[Callable[[Any], Any], str]] = {
    # llama.cpp loads them, and computes or ends turns wrongly.
    "BOS outside the vocabulary": (
        _set(T + "bos_token_id", "U32", 264),
        "bos_token_id is 264; the vocabulary has 264",
    ),
    "EOS outside the vocabulary": (_set(T + "eos_token_id", "U32", 2**32 - 1), "eos_token_id is 4294967295"),
    "infinite rope base": (_set("llama.rope.freq_base", "F32", math.inf), "freq_base is inf"),
    "yarn by a negative factor": (_many_rope("yarn", -4.0), "scaling.factor is -4.0"),
    "no context": (_set("llama.context_length", "U32", 0), "context_length is 0"),
}
ALL = {**FATAL, **REFUSED, **STRICTER}


@pytest.fixture(scope="session")
def native(raw: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What llama.cpp itself makes of each case, by name: "ok", "refused", or the signal it died of."""
    directory = tmp_path_factory.mktemp("damaged")
    paths = {}
    for index, (name, (damage, _)) in enumerate(ALL.items()):
        model = raw.tiny_model()
        damage(model)
        paths[name] = model.write(directory / f"{index}.gguf")
    for name in ARCHITECTURES:
        paths[name] = raw.tiny_model(name).write(directory / f"{name}.gguf")
    command = [sys.executable, str(Path(__file__).with_name("try_loading.py")), *map(str, paths.values())]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    outcomes = json.loads(done.stdout)
    return {name: outcomes[str(path)] for name, path in paths.items()}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_validate_model__passes_what_llama_cpp_loads(
    architecture: str, raw: ModuleType, native: dict[str, str], tmp_path: Path
) -> None:
    assert native[architecture] == "ok"
    validate_model(read_gguf_header(raw.tiny_model(architecture).write(tmp_path / "model.gguf")))


def test_validate_model__passes_the_real_student(student: Path) -> None:
    validate_model(read_gguf_header(student))


@pytest.mark.parametrize("name", ALL)
def test_validate_model__refuses_with_a_reason(name: str, raw: ModuleType, tmp_path: Path) -> None:
    damage, message = ALL[name]
    model = raw.tiny_model()
    damage(model)
    path = model.write(tmp_path / "model.gguf")
    with pytest.raises(ModelFileError, match=message) as caught:
        validate_model(read_gguf_header(path))
    assert caught.value.message.startswith(f"{path}: ")


@pytest.mark.parametrize("name", FATAL)
def test_validate_model__what_is_called_fatal_kills_llama_cpp(name: str, native: dict[str, str]) -> None:
    assert native[name] in ("SIGABRT", "SIGSEGV")


@pytest.mark.parametrize("name", REFUSED)
def test_validate_model__what_is_called_refused_does_not_load(name: str, native: dict[str, str]) -> None:
    # One is accepted by llama.cpp: a list with one head count for all layers.
    assert native[name] == "refused" or name == "heads per layer"


def test_validate_model__accepts_a_sentencepiece_vocabulary(raw: ModuleType, tmp_path: Path) -> None:
    model = raw.tiny_model()
    tokens = [
        "<unk>",
        "<s>",
        "</s>",
        *(f"<0x{byte:02X}>" for byte in range(256)),
        "▁the",
        "▁a",
        "<think>",
        "</think>",
        "x",
    ]
    model.set(T + "model", "STR", "llama")
    model.set(T + "tokens", "ARR", ("STR", tokens))
    model.set(T + "scores", "ARR", ("F32", [0.0] * 264))
    model.set(T + "token_type", "ARR", ("I32", [2, 3, 3, *([6] * 256), 1, 1, 4, 4, 1]))
    model.set(T + "bos_token_id", "U32", 1)
    model.set(T + "eos_token_id", "U32", 2)
    del model.metadata[T + "merges"]
    path = model.write(tmp_path / "model.gguf")
    validate_model(read_gguf_header(path))
    command = [sys.executable, str(Path(__file__).with_name("try_loading.py")), str(path)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert json.loads(done.stdout) == {str(path): "ok"}
