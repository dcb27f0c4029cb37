"""The prompts and texts that ship: what students are asked, and what artifacts are compared on.

Data lies beside this file as YAML. All of it was written for edgekit.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Final

import yaml
from pydantic import BaseModel, ConfigDict, TypeAdapter

from export.student.base import DecoderStudent
from export.tokenizer_guard.reference import TokenizerReference

__all__ = [
    "SEQUENCE_TOKENS",
    "Dialogue",
    "Tokenized",
    "calibration_prompts",
    "golden_prompts",
    "prompts_sha256",
    "proof_texts",
    "student_tokenizer",
    "tokenize_dialogue",
]

SEQUENCE_TOKENS: Final = 512
"""Longest sequence that is computed; texts are cut there."""


class Dialogue(BaseModel):
    """A question, an answer, or both. `name` is for reports; `kind` and `language` say what it stands for."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = ""
    kind: str = ""
    language: str = ""
    user: str | None = None
    text: str


@dataclass(frozen=True, slots=True)
class Tokenized:
    """Token ids of a dialogue; `cut`: whether some were left out at the end."""

    name: str
    tokens: tuple[int, ...]
    cut: bool


def calibration_prompts() -> tuple[Dialogue, ...]:
    """Questions whose answers by the student calibrate it: English and Chinese; reasoning, code, chat."""
    return tuple(entry.model_copy(update={"user": entry.text, "text": ""}) for entry in _load("calibration"))


def golden_prompts() -> tuple[Dialogue, ...]:
    """Questions that an artifact answers greedily."""
    return tuple(entry.model_copy(update={"user": entry.text, "text": ""}) for entry in _load("golden"))


def proof_texts() -> tuple[Dialogue, ...]:
    """Texts on which artifact and student are compared, some of them answers to a question."""
    return _load("proof")


def prompts_sha256() -> str:
    """Checksum of all the data, hex: what was calibrated or proven with other data is something else."""
    digest = hashlib.sha256()
    for name in ("calibration", "golden", "proof"):
        digest.update(files(__package__).joinpath(f"{name}.yaml").read_bytes())
    return digest.hexdigest()


def student_tokenizer(student: DecoderStudent) -> TokenizerReference:
    """The student's own tokenizer and chat template."""
    return TokenizerReference(str(student.path), student.tokenizer_files())


def tokenize_dialogue(
    tokenizer: TokenizerReference, dialogue: Dialogue, *, most: int = SEQUENCE_TOKENS
) -> Tokenized:
    """The question in the chat template, if there is one, and the answer behind it.

    The answer is not put through the template: R1's would drop what the model thinks.

    Raises:
        ChatTemplateError: the template refuses a question.
    """
    if dialogue.user is None:
        tokens = tokenizer.encode(dialogue.text, add_special=True)
    elif tokenizer.template is None:
        tokens = tokenizer.encode(f"{dialogue.user}\n\n{dialogue.text}", add_special=True)
    else:
        prompt = tokenizer.template.render([{"role": "user", "content": dialogue.user}])
        # Some templates begin the thoughts themselves, and a model never sees the mark twice.
        answer = dialogue.text
        if prompt.rstrip().endswith("<think>"):
            answer = answer.removeprefix("<think>\n")
        tokens = tokenizer.encode(prompt + answer, add_special=not _begins_with_bos(tokenizer, prompt))
    return Tokenized(dialogue.name, tuple(tokens[:most]), len(tokens) > most)


def _begins_with_bos(tokenizer: TokenizerReference, prompt: str) -> bool:
    """Whether the template has written the token that begins a text, which would come twice."""
    return bool(tokenizer.bos_text) and prompt.startswith(tokenizer.bos_text)


@cache
def _load(name: str) -> tuple[Dialogue, ...]:
    content = yaml.safe_load(files(__package__).joinpath(f"{name}.yaml").read_text(encoding="utf-8"))
    entries: Sequence[Dialogue] = TypeAdapter(list[Dialogue]).validate_python(content)
    return tuple(entries)
