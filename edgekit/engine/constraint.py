"""Makes matchers of constraints: JSON Schemas, Lark grammars, regular expressions. Done by llguidance.

What it supports of JSON Schema: docs/json_schema.md in https://github.com/guidance-ai/llguidance.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final, cast

from edgekit.engine import constraint_trial
from edgekit.engine.base import Constraint
from edgekit.engine.constraint_trial import Job, Outcome, Vocabulary, first_error, native_matcher
from edgekit.errors import ConstraintError, EngineError

__all__ = ["ConstraintCompiler", "ConstraintMatcher"]

_TEXT_BYTES: Final = 128 * 2**10
_TRIAL_S: Final = 30.0
"""For the trial's 5 s of CPU time, on a device that is busy."""
_WAIT_S: Final = 60.0
_CACHED: Final = 32
_CACHED_KIB: Final = 4 * 2**10
"""What a constraint may take up to be kept for the next request."""
_PLAIN_LENGTH: Final = 16 * 2**10
_PLAIN_NODES: Final = 250
"""A chain of $ref through so many schemas does not come near to overflowing a thread's stack."""
_PLAIN_REF: Final = re.compile(r"#(/(\$defs|definitions)/[^/]+)?")
_NAMES: Final = {"json_schema": "JSON Schema", "lark": "grammar", "regex": "regular expression"}
_HINTS: Final = {
    "json_schema": "supported are type, enum, const, anyOf, $ref within the schema, properties, required, "
    "additionalProperties, items, prefixItems, bounds of numbers, lengths and items, pattern without "
    "look-around, and the common formats",
    "lark": "it has to be in llguidance's variant of Lark: rules in lower case, terminals in upper case, "
    "a rule named start",
    "regex": "it has to be in the syntax of Rust's regex crate, without look-around and back-references",
}
_PLAIN: Final = frozenset(
    {
        *("$schema", "$id", "$comment", "title", "description", "default", "examples", "deprecated"),
        *("$ref", "$defs", "definitions", "type", "enum", "const", "anyOf"),
        *("properties", "required", "additionalProperties"),
        *("items", "prefixItems", "minItems", "maxItems", "minLength", "maxLength"),
        *("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"),
    }
)
"""Keywords that cost no more than their text is long."""


class ConstraintCompiler:
    """Compiles constraints for one vocabulary. Callable from any thread.

    Nothing is imported or built before the first constraint; then, on a Xeon's core, 0.15 s and
    11 MiB for a vocabulary of 49,152 tokens, 0.5 s and 31 MiB for one of 151,936. A constraint that is not
    known takes 1 ms when it is plain, and 0.1 to 0.2 s when it has to be tried in another process first.

    Args:
        vocabulary: number of tokens.
        piece: the bytes that a token stands for; empty for control tokens.
        special: the text of a token that is more than the text it stands for ("<think>", "<|im_end|>");
            empty for plain ones. Special tokens appear only where a Lark grammar names them.
        ends: the tokens that end generation.
        tokenize: token ids of a text in UTF-8, special tokens not parsed.
    """

    def __init__(
        self,
        vocabulary: int,
        *,
        piece: Callable[[int], bytes],
        special: Callable[[int], str],
        ends: Sequence[int],
        tokenize: Callable[[bytes], list[int]],
    ) -> None:
        self._vocabulary = vocabulary
        self._piece = piece
        self._special = special
        self._ends = tuple(ends)
        self._tokenize = tokenize
        self._compiling = threading.Lock()
        """One constraint at a time: so it is bounded what they cost together."""
        self._keeping = threading.Lock()
        """Guards `_known`."""
        self._llguidance: Any = None
        self._tokenizer: Any = None
        self._specials: dict[str, str] = {}
        self._known: OrderedDict[Constraint, Any] = OrderedDict()
        """Matchers that nobody uses, to be copied; used last, last."""
        self._large: Any = None
        """The one of `_known` that takes much memory, if any."""

    def compile(self, constraint: Constraint) -> ConstraintMatcher:
        """A matcher at the beginning of an answer.

        Raises:
            ConstraintError: the constraint is not valid, not supported, or takes too much to compile.
            EngineError: llguidance is not installed, or the model does not say how an answer ends.
        """
        native = self._recall(constraint)
        if native is None:
            with self._turn():
                native = self._recall(constraint) or self._compile(constraint)
        return ConstraintMatcher(native, self._ends, self._vocabulary)

    def _recall(self, constraint: Constraint) -> Any:
        """A matcher of a constraint that was compiled lately, else None."""
        with self._keeping:
            if constraint not in self._known:
                return None
            self._known.move_to_end(constraint)
            return self._known[constraint].deep_copy()

    def _keep(self, constraint: Constraint, native: Any, *, large: bool) -> None:
        with self._keeping:
            # The newest is kept whatever it takes: it was checked, and its request comes next.
            self._known.pop(self._large, None)
            self._large = constraint if large else None
            self._known[constraint] = native.deep_copy()
            while len(self._known) > _CACHED:
                self._known.popitem(last=False)

    @contextmanager
    def _turn(self) -> Iterator[None]:
        if not self._compiling.acquire(timeout=_WAIT_S):
            raise ConstraintError(
                "other schemas and grammars are still being compiled", hint="try again in a minute"
            )
        try:
            yield
        finally:
            self._compiling.release()

    def _compile(self, constraint: Constraint) -> Any:
        kind, text = constraint.kind, constraint.text
        if len(text.encode("utf-8", "replace")) > _TEXT_BYTES:
            raise ConstraintError(
                f"the {_NAMES[kind]} is longer than {_TEXT_BYTES // 2**10} KiB", hint="ask for less at once"
            )
        plain = kind == "json_schema" and _is_plain(_parsed(text)) and len(text) <= _PLAIN_LENGTH
        self._load()
        memory_kib = 0 if plain else self._try(constraint)
        try:
            native = native_matcher(self._llguidance, self._tokenizer, kind, text)
        except ValueError as error:
            raise _invalid(constraint, str(error)) from error
        if reason := first_error(native):
            raise _invalid(constraint, reason)
        self._keep(constraint, native, large=memory_kib > _CACHED_KIB)
        return native

    def _load(self) -> None:
        if self._tokenizer is not None:
            return
        if not self._ends:
            raise EngineError("the model has no token that ends an answer, so none can be given a form")
        try:
            import llguidance
        except ImportError as error:
            raise EngineError(
                "giving an answer a form needs llguidance, which is not installed",
                hint="install it with: pip install llguidance",
            ) from error
        tokens: list[bytes] = []
        for token in range(self._vocabulary):
            if text := self._special(token):
                self._specials[str(token)] = text
            # llguidance's mark of a special token is a byte that UTF-8 does not have.
            tokens.append(b"\xff" + text.encode() if text else self._piece(token))
        source = Vocabulary(tokens, list(map(int, self._specials)), self._ends[0], self._tokenize)
        wrapper = llguidance.TokenizerWrapper(source)
        # Slices would make the few masks of strings faster (0.3 for 5 ms) and take 36 MiB more.
        self._tokenizer = llguidance.LLTokenizer(
            wrapper, n_vocab=self._vocabulary, eos_token=list(self._ends), slices=[]
        )
        wrapper.tokens = source.tokens = []  # it has been read
        self._llguidance = llguidance

    def _try(self, constraint: Constraint) -> int:
        """Compile it in another process first; returns the memory that it takes, in KiB."""
        job: Job = {
            "kind": constraint.kind,
            "text": constraint.text,
            "vocabulary": self._vocabulary,
            "specials": self._specials,
            "path": sys.path,
        }
        try:
            trial = subprocess.run(
                [sys.executable, "-I", "-S", constraint_trial.__file__],
                input=json.dumps(job).encode(),
                capture_output=True,
                timeout=_TRIAL_S,
                check=False,
            )
            output = trial.stdout
        except subprocess.TimeoutExpired:
            output = b""
        except OSError as error:
            raise EngineError(f"cannot start a process to check a constraint: {error}") from error
        if not output:
            raise ConstraintError(
                f"the {_NAMES[constraint.kind]} takes too much time or memory to compile",
                hint="make it simpler: fewer patterns for one string, shorter chains of $ref or of rules",
            )
        outcome = cast(Outcome, json.loads(output))
        if outcome["error"] is not None:
            raise _invalid(constraint, outcome["error"])
        return outcome["memory_kib"]


class ConstraintMatcher:
    """Follows one answer through its constraint. Implements `edgekit.engine.runner.Matcher`.

    Each method raises ConstraintError when following the constraint has become too costly.
    """

    def __init__(self, native: Any, ends: Sequence[int], vocabulary: int) -> None:
        self._native = native
        self._ends = frozenset(ends)
        self._mask_bytes = (vocabulary + 7) // 8

    def allows(self, token: int) -> bool:
        """Whether a token may come next. When the answer is complete, only tokens that end generation may."""
        if self._native.is_stopped():
            self._check()
            return token in self._ends
        if self._native.validate_tokens([token]):
            return True
        self._check()
        return False

    def allowed(self) -> bytes:
        """All tokens that may come next, as bits: token t is bit t % 8 of byte t // 8."""
        mask: bytes = self._native.compute_bitmask()
        self._check()
        return mask[: self._mask_bytes]

    def accept(self, token: int) -> None:
        """Take the token that came. It must be one that is allowed."""
        if not self._native.consume_token(token):
            self._check()
            raise ConstraintError(f"token {token} is not one that the constraint allows")

    def _check(self) -> None:
        if self._native.is_error():
            reason = str(self._native.get_error()).partition("<non-verbose/>")[0].strip()
            raise ConstraintError(
                f"the answer cannot be held to its schema or grammar any longer: {_clipped(reason)}",
                hint="make the schema or grammar simpler",
            )


def _parsed(text: str) -> Any:
    try:
        schema = json.loads(text)
    except RecursionError:
        raise ConstraintError("the JSON Schema is nested too deeply", hint="use $ref and $defs") from None
    except ValueError as error:
        raise ConstraintError(
            f"the JSON Schema is not JSON: {error}", hint="check its commas and quotes"
        ) from error
    if not isinstance(schema, dict | bool):
        raise ConstraintError(
            f"a JSON Schema is an object, not {json.dumps(schema)[:40]}",
            hint='for example {"type": "object"}',
        )
    return schema


def _is_plain(schema: Any) -> bool:
    """Whether a JSON Schema has nothing that might take long to compile."""
    nodes = 0
    waiting = [schema]
    while waiting and nodes <= _PLAIN_NODES:
        node = waiting.pop()
        if not isinstance(node, dict):
            continue
        nodes += 1
        if not node.keys() <= _PLAIN or not _PLAIN_REF.fullmatch(str(node.get("$ref", "#"))):
            return False
        waiting.append(node.get("additionalProperties"))
        items = node.get("items")
        waiting.extend(items if isinstance(items, list) else [items])
        for key in ("anyOf", "prefixItems", "properties", "$defs", "definitions"):
            waiting.extend(_values(node.get(key)))
    return nodes <= _PLAIN_NODES


def _values(node: Any) -> list[Any]:
    if isinstance(node, dict):
        return list(node.values())
    return node if isinstance(node, list) else []


def _invalid(constraint: Constraint, reason: str) -> ConstraintError:
    name = _NAMES[constraint.kind]
    return ConstraintError(f"the {name} cannot be met: {_clipped(reason)}", hint=_HINTS[constraint.kind])


def _clipped(reason: str) -> str:
    return reason if len(reason) <= 400 else reason[:400] + "…"
