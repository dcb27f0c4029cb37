"""Compiles a constraint in a process of its own, which may hang or die of it in the server's place.

llguidance bounds most of what a grammar can cost, but not all: a schema whose `$ref`s form a long chain ends
the process (its stack overflows), and a dozen patterns in one `allOf` take hours.

Run as a script, with a job as JSON on its standard input; it imports nothing of edgekit's. It writes an
outcome as JSON to its standard output, or dies.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, Literal, TypedDict

__all__ = ["Job", "Outcome", "Vocabulary", "first_error", "native_matcher"]

_CPU_S: Final = 5
_MEMORY_BYTES: Final = 32 * 2**20
"""What compiling may add. A schema with 2,000 properties takes 12 MiB."""
_STACK_BYTES: Final = 2 * 2**20
"""A quarter of what a thread of the server has: what passes here does not overflow there."""
_LEXER_STATES: Final = 32_768
"""Of 1 KiB about, for each stream. Strings of bounded length take one for each character."""
_WHITESPACE: Final = r"\x20|\n\x20{0,32}"
"""Between the tokens of JSON: nothing, a space, or a new line with its indentation. So models write JSON,
on one line or on many, and held to less they write it worse. Left without bounds, a small model may write
blank lines until its tokens are used up."""


class Job(TypedDict):
    kind: Literal["json_schema", "lark", "regex"]
    text: str
    vocabulary: int
    specials: dict[str, str]
    """Token id, in decimal, to its text."""
    path: list[str]
    """sys.path."""


class Vocabulary:
    """What llguidance.TokenizerWrapper reads."""

    bos_token_id = None

    def __init__(
        self,
        tokens: list[bytes],
        specials: list[int],
        end: int,
        tokenize: Callable[[bytes], list[int]],
    ) -> None:
        self.tokens = tokens
        self.special_token_ids = specials
        self.eos_token_id = end
        self._tokenize = tokenize

    def __call__(self, text: bytes) -> list[int]:
        return self._tokenize(text)


class Outcome(TypedDict):
    error: str | None
    """Why the constraint is not valid."""
    memory_kib: int
    """What it takes once it is compiled."""


def native_matcher(llguidance: Any, tokenizer: Any, kind: str, text: str) -> Any:
    """An LLMatcher, which may be in an error state.

    Raises:
        ValueError: the text cannot be read at all.
    """
    try:
        grammar = _grammar(llguidance.LLMatcher, kind, text)
        limits = llguidance.LLParserLimits(max_lexer_states=_LEXER_STATES, verbose_errors=False)
        return llguidance.LLMatcher(tokenizer, grammar, limits=limits, log_level=0)
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # of Rust; it is no Exception
            raise
        raise ValueError(f"llguidance failed: {error}") from error


def _grammar(matcher: Any, kind: str, text: str) -> Any:
    if kind == "lark":
        return matcher.grammar_from_lark(text)
    if kind == "regex":
        return matcher.grammar_from_regex(text)
    schema = json.loads(text)
    if isinstance(schema, dict):
        # What the schema itself says here are options of llguidance's, no part of JSON Schema.
        schema["x-guidance"] = {"whitespace_pattern": _WHITESPACE}
    return matcher.grammar_from_json_schema(json.dumps(schema))


def first_error(matcher: Any) -> str | None:
    """What is wrong with a new matcher. The first mask shows whether any text is allowed at all."""
    if not matcher.is_error():
        matcher.compute_bitmask()
    if not matcher.is_error():
        return None
    message = str(matcher.get_error()).partition("<non-verbose/>")[0].strip()
    return "no text is allowed" if message.startswith("NoExtension") else message


def _tokenizer(llguidance: Any, vocabulary: int, specials: dict[str, str]) -> Any:
    """One with a token for each byte, and the special tokens where the model has them."""
    tokens = [b""] * vocabulary
    for token, text in specials.items():
        tokens[int(token)] = b"\xff" + text.encode()
    free = [index for index, piece in enumerate(tokens) if not piece]
    for byte, index in zip(range(256), free, strict=False):
        tokens[index] = bytes([byte])

    ends = [int(token) for token in specials] or [0]
    source = Vocabulary(tokens, list(map(int, specials)), ends[0], lambda text: list(text))
    return llguidance.LLTokenizer(
        llguidance.TokenizerWrapper(source), n_vocab=vocabulary, eos_token=ends[:1], slices=[]
    )


def _address_space_bytes() -> int:
    pages = Path("/proc/self/statm").read_text().split()[0]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def _try(job: Job, outcome: Outcome) -> None:
    import llguidance

    tokenizer = _tokenizer(llguidance, job["vocabulary"], job["specials"])
    before_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    limit = _address_space_bytes() + _MEMORY_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    try:
        outcome["error"] = first_error(native_matcher(llguidance, tokenizer, job["kind"], job["text"]))
    except ValueError as error:
        outcome["error"] = str(error)
    outcome["memory_kib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kib


def _main() -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CPU, (_CPU_S, _CPU_S + 1))
    job: Job = json.load(sys.stdin)
    sys.path[:] = job["path"]
    outcome: Outcome = {"error": "it was not compiled", "memory_kib": -1}
    threading.stack_size(_STACK_BYTES)
    thread = threading.Thread(target=_try, args=(job, outcome))
    thread.start()
    thread.join()
    if outcome["memory_kib"] >= 0:
        json.dump(outcome, sys.stdout)
        sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    _main()
