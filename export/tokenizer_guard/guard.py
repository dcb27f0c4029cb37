"""Checks that an exported tokenizer yields what the checkpoint's tokenizer.json yields.

A wrong pre-tokenizer, a lost merge or a doubled BOS does not stop a model from answering: it makes it worse,
and no test of the weights shows it. So the runtime itself tokenizes hard texts, every token of the
vocabulary, every special token amid text, and whole chats, in a child process; the reference is Hugging
Face's own library on the checkpoint's own files.
"""

from __future__ import annotations

import importlib.util
import json
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Protocol

from edgekit.errors import ExportError
from edgekit.gguf_header import read_gguf_header
from export.quantize import require_llama_cpp
from export.tokenizer_guard.exam import Answer, Exam, Judge, first_difference, rendered
from export.tokenizer_guard.hard_text import CONVERSATIONS
from export.tokenizer_guard.reference import TokenizerReference
from export.tokenizer_guard.worker import BEGUN_TEXT

__all__ = ["TokenizerSource", "check_gguf_tokenizer", "check_onnx_tokenizer"]

_TIMEOUT_S: Final = 600
# llama.h, enum llama_token_type: those that are found in text before it is split.
_CONTROL, _USER_DEFINED = 3, 4
_TOKENIZER_PATTERNS: Final = ("tokenizer*.json", "special_tokens_map.json", "chat_template.*")


class TokenizerSource(Protocol):
    """A checkpoint, as far as its tokenizer goes."""

    @property
    def path(self) -> Path: ...

    def tokenizer_files(self) -> dict[str, bytes]:
        """tokenizer.json and what else of its kind there is: name to content."""


def check_gguf_tokenizer(gguf: Path, checkpoint: TokenizerSource) -> tuple[str, ...]:
    """Compare the tokenizer and the chat template in a GGUF, as llama.cpp reads them, with the checkpoint's.

    Returns:
        What llama.cpp is known to do otherwise with any file of this tokenizer, for the bundle's notes.

    Raises:
        ExportError: a text, a chat or a prompt's beginning differs, or llama.cpp cannot load the vocabulary.
        ModelFileError: the checkpoint's tokenizer files are damaged.
        MissingExtraError: llama-cpp-python is not installed.
    """
    require_llama_cpp("checking the exported tokenizer")
    exam = Exam(TokenizerReference(str(checkpoint.path), checkpoint.tokenizer_files()))
    reference = exam.reference
    kinds = read_gguf_header(gguf).metadata.get("tokenizer.ggml.token_type")
    types = kinds if isinstance(kinds, tuple) else ()
    _check_types(gguf, types, reference)

    answer = _ask_runtime("llama.cpp", gguf, exam)
    control = set(answer["control"]) - reference.added_tokens.keys()

    def limitation(text: str, got: list[int], wanted: list[int]) -> str | None:
        # llama.cpp makes control tokens of some by their text; the file has been seen to be right.
        if len(got) == 1 and got[0] in control and exam.token_texts.get(got[0]) == text:
            return f"llama.cpp takes {text!r} in a text for a control token; tokenizer.json spells it out"
        return _normalizes_not("llama.cpp", reference, text, got)

    judge = Judge("llama.cpp", gguf, exam, limitation)
    return (*judge.texts(answer), *judge.beginning(answer), *judge.chats(answer))


def check_onnx_tokenizer(directory: Path, checkpoint: TokenizerSource) -> tuple[str, ...]:
    """Compare the tokenizer files of an ONNX export with the checkpoint's.

    What follows from the files themselves, by jinja and Hugging Face's library, must be equal. Where there is
    a genai_config.json and onnxruntime-genai is installed, it must load them and find the same tokens; it has
    code of its own for it, and its known limits are returned.

    Returns:
        What onnxruntime-genai is known to do otherwise, for the bundle's notes.

    Raises:
        ExportError: a text or a chat differs, or onnxruntime-genai cannot load the tokenizer.
        ModelFileError: tokenizer files are damaged.
    """
    exam = Exam(TokenizerReference(str(checkpoint.path), checkpoint.tokenizer_files()))
    reference = exam.reference
    paths = {path for pattern in _TOKENIZER_PATTERNS for path in directory.glob(pattern)}
    exported = TokenizerReference(str(directory), {path.name: path.read_bytes() for path in paths})
    judge = Judge("tokenizers", directory, exam, lambda *_: None)
    answer = _answer_of(exported, exam)
    notes = (*judge.texts(answer), *judge.beginning(answer), *judge.chats(answer))
    configured = (directory / "genai_config.json").is_file()
    if not configured or importlib.util.find_spec("onnxruntime_genai") is None:
        return notes

    def limitation(text: str, got: list[int], wanted: list[int]) -> str | None:
        if "\0" in text and got == reference.encode(text.partition("\0")[0]):
            return "onnxruntime-genai ends a text at a NUL character"
        note = _normalizes_not("onnxruntime-genai", reference, text, got)
        if note is not None or min(got, default=0) < 0 or reference.decode(got) != reference.decode(wanted):
            return note
        if _differs_in_white_space_only(reference, got, wanted):
            return "onnxruntime-genai splits some runs of white space otherwise than tokenizer.json"
        if any(not character.isascii() and character.isnumeric() for character in text):
            return "onnxruntime-genai splits text at numerals such as \u00bd otherwise than tokenizer.json"
        return None

    answer = _ask_runtime("onnxruntime-genai", directory, exam)
    notes += Judge("onnxruntime-genai", directory, exam, limitation).texts(answer)
    prompts = [rendered(reference, messages) for messages in CONVERSATIONS.values()]
    if reference.template and [prompt.get("text") for prompt in answer["prompts"]] != prompts:
        notes += (
            "onnxruntime-genai renders the chat template otherwise than jinja: give it rendered prompts",
        )
    return notes


def _ask_runtime(runtime: str, path: Path, exam: Exam) -> Answer:
    """Let a child process tokenize; meanwhile the reference does."""
    # -P: without it `-m` looks for modules in the working directory first.
    command = [sys.executable, "-P", "-m", "export.tokenizer_guard.worker", runtime, str(path)]
    with tempfile.TemporaryFile() as asked, tempfile.TemporaryFile() as said, tempfile.TemporaryFile() as out:
        asked.write(json.dumps(exam.asked).encode())
        asked.seek(0)
        child = subprocess.Popen(command, stdin=asked, stdout=out, stderr=said)
        try:
            _ = exam.wanted
            status = child.wait(_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            raise ExportError(f"{path}: {runtime} gave no tokens in {_TIMEOUT_S} s") from None
        finally:
            child.kill()
            child.wait()
        said.seek(0)
        out.seek(0)
        if status == 0:
            answer: Answer = json.loads(out.read())
            return answer
        last = (said.read().decode("utf-8", "replace").strip().splitlines() or ["it said nothing"])[-1]
    how = f"{runtime} died of {signal.Signals(-status).name}: " if status < 0 else ""
    raise ExportError(
        f"{path}: the tokenizer cannot be checked: {how}{last}",
        hint=f"a device could not load it either: check the tokenizer files of {exam.reference.name}",
    )


def _check_types(gguf: Path, types: Sequence[int], reference: TokenizerReference) -> None:
    found = {index for index, kind in enumerate(types) if kind in (_CONTROL, _USER_DEFINED)}
    wrong = sorted(found ^ reference.added_tokens.keys())
    if not wrong:
        return
    special, plain = "special", "an ordinary piece of text"
    here, there = (special, plain) if wrong[0] in found else (plain, special)
    raise ExportError(
        f"{gguf}: token {wrong[0]} {reference.decode([wrong[0]])!r} is {here} in the export, and {there} in "
        f"tokenizer.json ({len(wrong)} such tokens)",
        hint=f"tokenizer.ggml.token_type does not fit added_tokens in {reference.name}/tokenizer.json",
    )


def _answer_of(tokenizer: TokenizerReference, exam: Exam) -> Answer:
    """What a server answers that reads the tokenizer's files itself."""
    same = tokenizer.has_the_vocabulary_of(exam.reference)
    prompts: list[Answer] | None = None
    if tokenizer.template is not None:
        prompts = []
        for messages in CONVERSATIONS.values():
            text = rendered(tokenizer, messages)
            if text is None:
                prompts.append({"refused": ""})
                continue
            begun = bool(tokenizer.bos_text) and text.startswith(tokenizer.bos_text)
            prompts.append({"text": text, "ids": tokenizer.encode(text, add_special=not begun)})
    bos = tokenizer.encode(tokenizer.bos_text) if tokenizer.bos_text else []
    return {
        "ids": exam.wanted if same else tokenizer.encode_all(exam.asked["texts"]),
        "begun_ids": tokenizer.encode(BEGUN_TEXT, add_special=True),
        "prompts": prompts,
        "bos": bos[0] if len(bos) == 1 else None,
    }


def _normalizes_not(runtime: str, reference: TokenizerReference, text: str, got: list[int]) -> str | None:
    if reference.normalized(text) != text and got == reference.encode_unnormalized(text):
        return (
            f"{runtime} does not normalize a text before it splits it, as tokenizer.json asks for: "
            "combining marks and the like come out in other tokens unless clients send Unicode's NFC"
        )
    return None


def _differs_in_white_space_only(reference: TokenizerReference, got: list[int], wanted: list[int]) -> bool:
    first, last = first_difference(got, wanted), first_difference(got[::-1], wanted[::-1])
    parts = [reference.decode(ids[first : len(ids) - last]) for ids in (got, wanted)]
    return parts[0] == parts[1] and parts[0].isspace()
