"""What the files beside an ONNX graph say: the end of a turn, the template, sampling, the cache's kind.

genai_config.json is written with every export of edgekit's own; its `search` holds the student's
generation_config.json. optimum's bundles have files of transformers instead, or as well.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from edgekit.engine.base import Sampling
from edgekit.engine.onnx.json_files import read_optional_json
from edgekit.engine.runner import ModelText

__all__ = ["ModelConfig", "read_model_config"]

_R1: Final = Sampling(temperature=0.6, top_p=0.95, top_k=40)
"""DeepSeek's advice for R1: a temperature of 0.5 to 0.7 and top_p 0.95, against endless repetition. top_k 40
is llama.cpp's default."""


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """What a bundle says about its graph. Unknown is None."""

    text: ModelText
    end_tokens: tuple[int, ...]
    """Tokens that end a turn; the text of one more is `text.eos`."""
    context_tokens: int | None
    """Positions that the graph knows."""
    in_place: bool
    """Whether the graph writes into the KV cache that it is given."""


def read_model_config(directory: Path) -> ModelConfig:
    """Read the files of a bundle.

    Raises:
        ModelFileError: one of them is damaged.
    """
    genai = read_optional_json(directory / "genai_config.json")
    generation = read_optional_json(directory / "generation_config.json")
    config = read_optional_json(directory / "config.json")
    tokenizer = read_optional_json(directory / "tokenizer_config.json")
    model, search = _mapping(genai.get("model")), _mapping(genai.get("search"))
    bos, eos = _token_text(tokenizer.get("bos_token")), _token_text(tokenizer.get("eos_token"))
    ends = (model, generation, config)
    lengths = (model.get("context_length"), config.get("max_position_embeddings"), config.get("n_positions"))
    return ModelConfig(
        text=ModelText(_template(directory, tokenizer), bos, eos, _sampling(generation, search)),
        end_tokens=tuple(token for part in ends for token in _ids(part.get("eos_token_id"))),
        context_tokens=next((length for length in lengths if type(length) is int and length > 0), None),
        in_place=search.get("past_present_share_buffer") is True,
    )


def _template(directory: Path, tokenizer: Mapping[str, Any]) -> str | None:
    """The chat template; of several, the one called "default". Files in the order in which exports look."""
    template = tokenizer.get("chat_template")
    if isinstance(template, list):
        named = {item.get("name"): item.get("template") for item in template if isinstance(item, Mapping)}
        template = named.get("default")
    file = directory / "chat_template.jinja"
    if template is None and file.is_file():
        template = file.read_text(encoding="utf-8", errors="replace")
    if template is None:
        template = read_optional_json(directory / "chat_template.json").get("chat_template")
    return template if isinstance(template, str) else None


def _sampling(generation: Mapping[str, Any], search: Mapping[str, Any]) -> Sampling:
    """The model's own settings, else the advice for R1.

    Where the student said nothing of sampling, the export wrote that it does not sample: for
    onnxruntime-genai, which wants an answer to that. It is not the model's advice.
    """
    said = generation or (search if search.get("do_sample") is True else {})

    def number(key: str, otherwise: float) -> float:
        value = said.get(key)
        if not isinstance(value, (int, float)) or isinstance(value, bool) or value < 0:
            return otherwise
        return value

    return Sampling(
        temperature=number("temperature", _R1.temperature),
        top_p=number("top_p", _R1.top_p),
        top_k=int(number("top_k", _R1.top_k)),
        min_p=number("min_p", _R1.min_p),
        repeat_penalty=number("repetition_penalty", 1.0) or 1.0,
    )


def _token_text(value: object) -> str:
    """A token's text, written as it is or with what else there is to say about it."""
    text = value.get("content") if isinstance(value, Mapping) else value
    return text if isinstance(text, str) else ""


def _ids(value: object) -> Iterable[int]:
    return [token for token in (value if isinstance(value, list) else [value]) if type(token) is int]


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
