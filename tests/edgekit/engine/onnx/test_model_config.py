from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from edgekit.engine.base import Sampling
from edgekit.engine.onnx.model_config import ModelConfig, read_model_config
from edgekit.errors import ModelFileError

ADVICE = Sampling(temperature=0.6, top_p=0.95, top_k=40)
SILENT = {"do_sample": False, "temperature": 1.0, "top_k": 50, "top_p": 1.0, "repetition_penalty": 1.0}


def config_of(directory: Path, **files: Any) -> ModelConfig:
    for name, content in files.items():
        (directory / f"{name}.json").write_text(json.dumps(content))
    return read_model_config(directory)


def test_read_model_config__exports_own_files(student_onnx: Path) -> None:
    config = read_model_config(student_onnx)
    assert config.in_place
    assert config.context_tokens == 1024
    assert config.end_tokens == (2,)
    assert (config.text.bos, config.text.eos) == ("<|im_start|>", "<|im_end|>")
    assert "<|im_start|>" in (config.text.chat_template or "")
    assert config.text.sampling == ADVICE


def test_read_model_config__nothing_there_is_nothing_known(tmp_path: Path) -> None:
    config = read_model_config(tmp_path)
    assert config.text.chat_template is None
    assert (config.text.bos, config.text.eos, config.end_tokens) == ("", "", ())
    assert config.text.sampling == ADVICE
    assert not config.in_place
    assert config.context_tokens is None


def test_read_model_config__sampling_is_the_students_where_it_samples(tmp_path: Path) -> None:
    search = {**SILENT, "do_sample": True, "temperature": 0.7, "top_p": 0.8, "top_k": 20}
    sampling = config_of(tmp_path, genai_config={"search": search}).text.sampling
    assert sampling == Sampling(temperature=0.7, top_p=0.8, top_k=20)


def test_read_model_config__a_student_that_says_nothing_gets_the_advice_for_r1(tmp_path: Path) -> None:
    assert config_of(tmp_path, genai_config={"search": SILENT}).text.sampling == ADVICE


def test_read_model_config__generation_config_goes_first(tmp_path: Path) -> None:
    config = config_of(
        tmp_path,
        genai_config={"search": {**SILENT, "do_sample": True}, "model": {"eos_token_id": 3}},
        generation_config={"temperature": 0.5, "repetition_penalty": 1.1, "eos_token_id": [7, 8]},
        config={"eos_token_id": 9, "max_position_embeddings": 77},
    )
    assert config.text.sampling == Sampling(temperature=0.5, top_p=0.95, top_k=40, repeat_penalty=1.1)
    assert config.end_tokens == (3, 7, 8, 9)
    assert config.context_tokens == 77


@pytest.mark.parametrize("value", ["0.7", None, True, -1, [0.7]])
def test_read_model_config__sampling_that_is_no_number_is_not_taken(value: object, tmp_path: Path) -> None:
    assert config_of(tmp_path, generation_config={"temperature": value}).text.sampling == ADVICE


def test_read_model_config__template_comes_from_where_exports_put_it(tmp_path: Path) -> None:
    (tmp_path / "chat_template.json").write_text(json.dumps({"chat_template": "third"}))
    assert read_model_config(tmp_path).text.chat_template == "third"
    (tmp_path / "chat_template.jinja").write_text("second")
    assert read_model_config(tmp_path).text.chat_template == "second"
    config = config_of(tmp_path, tokenizer_config={"chat_template": "first", "bos_token": {"content": "<s>"}})
    assert config.text.chat_template == "first"
    assert config.text.bos == "<s>"
    several = [{"name": "tools", "template": "a"}, {"name": "default", "template": "b"}]
    assert config_of(tmp_path, tokenizer_config={"chat_template": several}).text.chat_template == "b"


@pytest.mark.parametrize("name", ["genai_config", "generation_config", "tokenizer_config"])
def test_read_model_config__damaged_file_is_named(name: str, tmp_path: Path) -> None:
    (tmp_path / f"{name}.json").write_text("{")
    with pytest.raises(ModelFileError, match=name):
        read_model_config(tmp_path)
