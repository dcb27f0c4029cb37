"""Texts and chats for a runtime to tokenize, what the reference makes of them, and the judgement."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from edgekit.engine.chat_template import ChatTemplateError
from edgekit.errors import ExportError
from export.tokenizer_guard.hard_text import CONVERSATIONS, HARD_TEXTS, UNNORMALIZED_TEXTS, texts_around
from export.tokenizer_guard.reference import TokenizerReference
from export.tokenizer_guard.worker import BEGUN_TEXT

__all__ = ["Answer", "Case", "Exam", "Judge", "Limitation", "first_difference", "rendered"]

_SHOWN_TOKENS: Final = 6
_SHOWN_CHARACTERS: Final = 40

Answer = dict[str, Any]
"""What a runtime answers: see export.tokenizer_guard.worker."""
Limitation = Callable[[str, list[int], list[int]], str | None]
"""Takes a text, the runtime's ids and the reference's. What is known to be behind the difference, or None."""


@dataclass(frozen=True, slots=True)
class Case:
    """A text and what it is called."""

    name: str
    text: str


class Exam:
    """The texts, and what the reference makes of them."""

    def __init__(self, reference: TokenizerReference) -> None:
        self.reference = reference
        self.token_texts = reference.token_texts()
        self.cases = [Case(name, text) for name, text in {**HARD_TEXTS, **UNNORMALIZED_TEXTS}.items()]
        for token in reference.added_tokens.values():
            self.cases += [Case(f"special token {token!r}", text) for text in texts_around(token)]
        self.cases += [Case(f"token {index} by itself", text) for index, text in self.token_texts.items()]

    @property
    def asked(self) -> Answer:
        """What a runtime is asked for."""
        conversations = [list(messages) for messages in CONVERSATIONS.values()]
        return {"texts": [case.text for case in self.cases], "conversations": conversations}

    @cached_property
    def wanted(self) -> list[list[int]]:
        """The reference's ids of each text."""
        return self.reference.encode_all([case.text for case in self.cases])


@dataclass(frozen=True, slots=True)
class Judge:
    """Judges what a runtime answered: raises ExportError at the first difference that is no known one."""

    runtime: str
    path: Path
    exam: Exam
    limitation: Limitation

    def texts(self, answer: Answer) -> tuple[str, ...]:
        """The ids of each text. Returns what the known differences come from."""
        notes: dict[str, None] = {}
        for case, got, wanted in zip(self.exam.cases, answer["ids"], self.exam.wanted, strict=True):
            if got != wanted:
                note = self.limitation(case.text, got, wanted)
                if note is None:
                    raise self._difference(case, got, wanted)
                notes[note] = None
        return tuple(notes)

    def beginning(self, answer: Answer) -> tuple[str, ...]:
        """What the runtime puts around a text that no template has made."""
        reference, got, bos = self.exam.reference, answer["begun_ids"], answer["bos"]
        wanted = reference.encode(BEGUN_TEXT, add_special=True)
        if got != wanted and not (reference.may_add_bos and got == [bos, *wanted] and wanted[0] != bos):
            raise ExportError(
                f"{self.path}: {self.runtime} makes {got} of {BEGUN_TEXT!r} with what goes around a prompt; "
                f"tokenizer.json {wanted}",
                hint="compare add_bos_token and add_eos_token in tokenizer_config.json with the "
                f"post_processor in tokenizer.json, both in {reference.name}",
            )
        return ()

    def chats(self, answer: Answer) -> tuple[str, ...]:
        """The prompts of chats: text and tokens, and one BOS at most."""
        reference, prompts, bos = self.exam.reference, answer["prompts"], answer["bos"]
        if (prompts is None) != (reference.template is None):
            where = "checkpoint" if prompts is None else "export"
            raise ExportError(
                f"{self.path}: only the {where} has a chat template",
                hint=f"see chat_template.jinja and tokenizer_config.json in {reference.name}",
            )
        notes: dict[str, None] = {}
        for (name, messages), prompt in zip(CONVERSATIONS.items(), prompts or (), strict=False):
            text = rendered(reference, messages)
            if prompt.get("text") != text:
                raise self._rendered_otherwise(name, prompt.get("text"), text)
            if text is None:
                continue
            got, wanted = prompt["ids"], reference.encode(text)
            if bos is not None and (got[:2] == [bos, bos] or got.count(bos) > max(1, wanted.count(bos))):
                raise ExportError(
                    f"{self.path}: the prompt of {name!r} has BOS twice: {got[:4]} …",
                    hint="the chat template writes BOS, and it is added as well: take it out of the "
                    f"template, or set add_bos_token to false in tokenizer_config.json, in {reference.name}",
                )
            if got == [bos, *wanted]:
                notes["the chat template writes no BOS; the runtime adds it, transformers does not"] = None
            elif got != wanted:
                raise self._difference(Case(f"the chat {name!r}", text), got, wanted)
        return tuple(notes)

    def _rendered_otherwise(self, name: str, got: str | None, text: str | None) -> ExportError:
        if got is None or text is None:
            whose = "the export's" if got is None else "the checkpoint's"
            return ExportError(
                f"{self.path}: {whose} chat template refuses {name!r}, and the other one does not",
                hint=f"the export does not carry the template of {self.exam.reference.name}",
            )
        at = first_difference(got, text)
        return ExportError(
            f"{self.path}: the chat template renders {name!r} otherwise: at character {at} "
            f"{got[at : at + _SHOWN_CHARACTERS]!r}; the checkpoint's {text[at : at + _SHOWN_CHARACTERS]!r}",
            hint="make tokenizer_config.json, chat_template.jinja and the ids of BOS and EOS in config.json "
            f"agree in {self.exam.reference.name}, then export again",
        )

    def _difference(self, case: Case, got: list[int], wanted: list[int]) -> ExportError:
        at = first_difference(got, wanted)
        starts = self.exam.reference.starts(case.text)
        start = starts[at] if at < len(starts) else len(case.text)
        piece = case.text[start : start + _SHOWN_CHARACTERS]
        return ExportError(
            f"{self.path}: {case.name}: {self.runtime} splits {piece!r} (from character {start}) into "
            f"{_shown(got, at)}; tokenizer.json into {_shown(wanted, at)}",
            hint=f"the export does not carry the tokenizer of {self.exam.reference.name}: try another "
            "--format, and report the checkpoint's name",
        )


def rendered(tokenizer: TokenizerReference, messages: Sequence[Mapping[str, str]]) -> str | None:
    """The prompt's text; None where the template refuses the messages."""
    assert tokenizer.template is not None
    try:
        return tokenizer.template.render(messages)
    except ChatTemplateError:
        return None


def first_difference(a: Sequence[object], b: Sequence[object]) -> int:
    """Index from which on two sequences differ."""
    pairs = enumerate(zip(a, b, strict=False))
    return next((index for index, (x, y) in pairs if x != y), min(len(a), len(b)))


def _shown(ids: Sequence[int], at: int) -> str:
    part = ", ".join(str(index) for index in ids[at : at + _SHOWN_TOKENS])
    return f"[{'… ' if at else ''}{part}{' …' if len(ids) > at + _SHOWN_TOKENS else ''}]"
