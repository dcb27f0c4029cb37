"""Calibration: the tokens that an importance matrix is computed on, and the matrix itself, cached by content.

The tokens come from a text, or they are the student's own answers to the prompts that ship: what the model
will say on the device is what its columns should be weighed by. A thousand tokens give nearly all of the
effect: Llama 3 8B as Q2_K has a KL divergence of 0.445 without, 0.337 with 1,000 and 0.332 with 10 million
tokens (llama.cpp, tools/perplexity/README.md).
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from edgekit.errors import ExportError, ModelFileError, UsageError
from export.cache import cache_directory, locked, scratch_directory
from export.calibration.imatrix import Imatrix, compute_imatrix, read_imatrix, write_imatrix
from export.progress import Progress, silent
from export.prompts import (
    SEQUENCE_TOKENS,
    calibration_prompts,
    prompts_sha256,
    student_tokenizer,
    tokenize_dialogue,
)
from export.runtimes.llama_session import LlamaSession
from export.student.base import DecoderStudent
from export.student.gguf_names import gguf_name

__all__ = ["DEFAULT_TOKENS", "Calibration", "calibrate", "calibration_tokens", "text_sequences"]

DEFAULT_TOKENS: Final = 4096
"""Budget of calibration tokens: 170 for each prompt that ships, its answer included."""
VERSION: Final = 1
"""Grows when the same inputs would give other tokens or another matrix."""

# Together they are what DeepSeek recommends for R1 and its students (model card, "Usage Recommendations").
_TEMPERATURE, _TOP_P = 0.6, 0.95
_SEED: Final = 20250120
_TOGETHER: Final = 24
"""Answers that are decoded together: a step reads all weights once, for however many. Their KV cache takes
13,056 tokens, 1.7 GB for an 8B Llama whose weights take 16."""
_LEAST_TOKENS: Final = 32
"""A shorter piece of text at the end is left out: its tokens have seen too little."""
_BYTES_PER_TOKEN: Final = 16
_LABEL: Final = "asking the student"


@dataclass(frozen=True, slots=True)
class Calibration:
    """Token sequences of at most 512 tokens, and what they are called."""

    sequences: tuple[tuple[int, ...], ...]
    dataset: str

    @property
    def tokens(self) -> int:
        return sum(map(len, self.sequences))

    @property
    def sha256(self) -> str:
        return _sha256([list(sequence) for sequence in self.sequences])


def calibration_tokens(
    student: DecoderStudent,
    *,
    text: Path | None = None,
    model: Path | Callable[[], Path] | None = None,
    student_sha256: str | None = None,
    tokens: int = DEFAULT_TOKENS,
    cache: Path | None = None,
    progress: Progress = silent,
) -> Calibration:
    """What a student is calibrated on.

    Args:
        text: a UTF-8 text; its first `tokens` tokens are taken.
        model: where there is no text, a GGUF of the student that answers the prompts that ship: its float
            weights, or a repack of its own integers. A function is called where it is needed.
        student_sha256: checksum of the student's files. With it, answers are kept in the cache, and asked for
            once only.
        tokens: a budget; fewer where answers end early.
        cache: None takes the user's cache.

    Raises:
        UsageError: neither text nor model, or the text cannot be read or is too short.
        ModelFileError, EngineError, ExportError: llama.cpp cannot run the model, or there is no cache.
        ChatTemplateError: the student's chat template refuses a question.
    """
    if tokens < _LEAST_TOKENS:
        raise UsageError(f"{tokens} calibration tokens are too few; {_LEAST_TOKENS} is the least")
    if text is not None:
        return text_sequences(student, text, tokens=tokens)
    if model is None:
        raise UsageError("no text to calibrate on, and no GGUF of the student that could write some")
    key = _sha256(["answers", VERSION, student_sha256, prompts_sha256(), tokens, _SEED, _TEMPERATURE, _TOP_P])
    directory = (cache or cache_directory()) / "calibration"
    path = directory / f"{key}.json"
    if student_sha256 is None:
        return _answers(student, model, tokens, progress)
    with _cached(directory, key, progress) as scratch:
        kept = _read_sequences(path)
        if kept is None:
            kept = _answers(student, model, tokens, progress)
            written = scratch / path.name
            with _kept_if_possible():
                written.write_text(json.dumps(kept.sequences), encoding="utf-8")
                _publish(written, path)
        return kept


def text_sequences(student: DecoderStudent, path: Path, *, tokens: int = DEFAULT_TOKENS) -> Calibration:
    """The first tokens of a text in pieces of 512, as llama-imatrix cuts them: where the student's tokenizer
    begins a text with BOS, BOS takes the place of each piece's first token.

    Raises:
        UsageError: the text cannot be read, is not UTF-8, or has too few tokens.
    """
    try:
        with path.open("rb") as file:
            # No tokenizer needs more bytes a token on average; a text of gigabytes is not read to its end.
            data = file.read(tokens * _BYTES_PER_TOKEN)
        # What was read may end within a character.
        content = data.decode("utf-8", "strict" if len(data) < tokens * _BYTES_PER_TOKEN else "ignore")
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: not UTF-8: {error.reason} at byte {error.start}") from error
    tokenizer = student_tokenizer(student)
    ids = tokenizer.encode(content, add_special=True)[:tokens]
    plain = tokenizer.encode("a", add_special=False)
    marked = tokenizer.encode("a", add_special=True)
    first = marked[0] if marked[:1] != plain[:1] else None
    pieces = [ids[start : start + SEQUENCE_TOKENS] for start in range(0, len(ids), SEQUENCE_TOKENS)]
    kept = [piece for piece in pieces if len(piece) >= _LEAST_TOKENS]
    if not kept:
        raise UsageError(
            f"{path}: {len(ids)} tokens are too few to calibrate on; {_LEAST_TOKENS} is the least",
            hint="give a text of some pages that looks like what the model will read and write",
        )
    if first is not None:
        kept = [[first, *piece[1:]] for piece in kept]
    return Calibration(tuple(map(tuple, kept)), path.name)


def calibrate(
    student: DecoderStudent,
    calibration: Calibration,
    *,
    student_sha256: str | None = None,
    cache: Path | None = None,
    progress: Progress = silent,
) -> Imatrix:
    """The importance matrix of a student. Kept in the cache under the checksums of student and tokens.

    Args:
        student_sha256: None computes it anew.
        cache: None takes the user's cache.

    Raises:
        ModelFileError: the student computes NaN or infinity.
        ExportError: there is no cache.
    """
    if student_sha256 is None:
        return compute_imatrix(
            student, calibration.sequences, datasets=[calibration.dataset], progress=progress
        )
    directory = (cache or cache_directory()) / "imatrix"
    key = _sha256(["imatrix", VERSION, student_sha256, calibration.sha256])
    path = directory / f"{key}.gguf"
    with _cached(directory, key, progress) as scratch:
        kept = _read_kept(path, student)
        if kept is None:
            kept = compute_imatrix(
                student, calibration.sequences, datasets=[calibration.dataset], progress=progress
            )
            written = scratch / path.name
            with _kept_if_possible():
                write_imatrix(kept, written)
                _publish(written, path)
        return kept


def _answers(
    student: DecoderStudent, model: Path | Callable[[], Path], tokens: int, progress: Progress
) -> Calibration:
    tokenizer = student_tokenizer(student)
    prompts = [list(tokenize_dialogue(tokenizer, prompt).tokens) for prompt in calibration_prompts()]
    each = min(SEQUENCE_TOKENS, max(_LEAST_TOKENS, tokens // len(prompts)))
    sequences: list[tuple[int, ...]] = []
    path = model if isinstance(model, Path) else model()
    progress(_LABEL, 0, len(prompts))
    with LlamaSession(path, cells=_TOGETHER * (SEQUENCE_TOKENS + _LEAST_TOKENS)) as session:
        for start in range(0, len(prompts), _TOGETHER):
            wave = prompts[start : start + _TOGETHER]
            longest = max(map(len, wave))
            answers = session.answers(
                wave,
                answer_tokens=max(1, each - longest) if longest < each else _LEAST_TOKENS,
                temperature=_TEMPERATURE,
                top_p=_TOP_P,
                seed=_SEED + start,
            )
            sequences += [
                tuple([*prompt, *answer][:SEQUENCE_TOKENS])
                for prompt, answer in zip(wave, answers, strict=True)
            ]
            progress(_LABEL, min(start + _TOGETHER, len(prompts)), len(prompts))
    return Calibration(tuple(sequences), "answers of the student")


def _read_sequences(path: Path) -> Calibration | None:
    """What the cache has; None where it has nothing, or something damaged."""
    try:
        sequences = json.loads(path.read_bytes())
        return Calibration(tuple(tuple(map(int, s)) for s in sequences), "answers of the student")
    except (OSError, ValueError, TypeError):
        return None


def _read_kept(path: Path, student: DecoderStudent) -> Imatrix | None:
    if not path.is_file():
        return None
    shapes = {gguf_name(tensor.name): tensor.shape for tensor in student.tensors()}
    try:
        kept = read_imatrix(path)
        kept.check(shapes, str(path))
    except ModelFileError:
        return None
    return kept


@contextmanager
def _cached(directory: Path, key: str, progress: Progress) -> Iterator[Path]:
    """Hold an entry of the cache alone; gives an empty directory to write it in."""
    with ExitStack() as stack:
        try:
            waiting = partial(progress, "waiting: the same is computed elsewhere", 0, None)
            stack.enter_context(locked(directory / f"{key}.lock", on_wait=waiting))
            scratch = stack.enter_context(scratch_directory(directory, key))
        except OSError as error:
            raise ExportError(
                f"{directory}: the cache cannot be written: {error.strerror or error}",
                hint="free some space there, or name another directory in XDG_CACHE_HOME",
            ) from error
        yield scratch


@contextmanager
def _kept_if_possible() -> Iterator[None]:
    """What was computed for hours is of use even if the cache has no room for it."""
    with suppress(OSError, ExportError):
        yield


def _publish(written: Path, final: Path) -> None:
    """Sync a file and give it its name: it is there as a whole or not at all."""
    with written.open("rb") as file:
        os.fsync(file.fileno())
    written.replace(final)


def _sha256(value: Sequence[object]) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
