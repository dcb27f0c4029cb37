"""Facts of models, from their headers."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest

from edgekit.errors import ModelFileError
from edgekit.gguf_header import model_facts, read_gguf_header


def test_model_facts__of_the_real_student(student: Path) -> None:
    facts = model_facts(read_gguf_header(student), name="SmolLM2")
    # From the model card of SmolLM2-135M-Instruct and its config.json; sizes counted with the gguf library.
    assert facts.model_dump() == {
        "name": "SmolLM2",
        "architecture": "llama",
        "parameters": 134_515_008,
        "weight_bytes": 96_576_768,
        "bytes_per_token": 96_576_768,
        "quantization": "Q4_1",
        "layers": 30,
        "embedding_length": 576,
        "feed_forward_length": 1536,
        "attention_heads": 9,
        "attention_kv_heads": 3,
        "head_length": 64,
        "vocabulary": 49152,
        "context_train_tokens": 8192,
        "tied_embeddings": True,
        "tokenizer": "smollm",
        "license": "apache-2.0",
        "base_model": None,
    }


def test_model_facts__untied_embedding_is_not_read_for_every_token(raw: ModuleType, tmp_path: Path) -> None:
    facts = model_facts(read_gguf_header(raw.tiny_model().write(tmp_path / "model.gguf")))
    assert not facts.tied_embeddings
    assert facts.weight_bytes - facts.bytes_per_token == 64 * 264 * 4


def test_model_facts__file_type_is_guessed_from_the_matrices(raw: ModuleType, tmp_path: Path) -> None:
    model = raw.tiny_model()
    del model.metadata["general.file_type"]
    assert model_facts(read_gguf_header(model.write(tmp_path / "model.gguf"))).quantization == "Q4_0"


def test_model_facts__name_falls_back_to_the_file(raw: ModuleType, tmp_path: Path) -> None:
    model = raw.tiny_model()
    del model.metadata["general.name"]
    assert model_facts(read_gguf_header(model.write(tmp_path / "Student.gguf"))).name == "Student"


def test_model_facts__base_model_and_licence_are_read(raw: ModuleType, tmp_path: Path) -> None:
    model = raw.tiny_model()
    model.set("general.license", "STR", "mit")
    model.set("general.base_model.0.repo_url", "STR", "https://huggingface.co/Qwen/Qwen2.5-Math-1.5B")
    facts = model_facts(read_gguf_header(model.write(tmp_path / "model.gguf")))
    assert (facts.license, facts.base_model) == ("mit", "Qwen/Qwen2.5-Math-1.5B")


def test_model_facts__without_an_embedding_is_refused(raw: ModuleType, tmp_path: Path) -> None:
    model = raw.tiny_model()
    del model.tensors[0]
    with pytest.raises(ModelFileError, match=r"'token_embd\.weight' is missing"):
        model_facts(read_gguf_header(model.write(tmp_path / "model.gguf")))
