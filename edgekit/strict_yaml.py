"""Reads YAML without surprises: every value keeps its line, and what YAML 1.1 would reinterpret is refused.

Plain scalars follow YAML 1.2's core schema, narrowed: `true` and `false` are the only booleans, `null` and
`~` (or nothing) the only nulls, decimal integers and floats the only numbers; all else is text. What a
YAML 1.1 reader takes for something else (`on`, `12:30`, `017`, `1_000`, `2024-01-31`) is a problem, so that a
file means the same in every reader. Anchors, aliases, tags and repeated keys are problems too.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

import yaml

__all__ = ["Document", "KeyPath", "Problem", "read_strict_yaml"]

KeyPath = tuple[str | int, ...]
"""Where a value stands: keys of mappings and indices of lists, from the root."""

MAX_DEPTH: Final = 32
"""Nesting that no file of ours comes near; a deeper one would exhaust the parser's stack."""

_INTEGER: Final = re.compile(r"[-+]?(0|[1-9][0-9]{0,17})")
_FLOAT: Final = re.compile(r"[-+]?([0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(?=[eE]))([eE][-+]?[0-9]+)?")
_NULL: Final = frozenset({"", "~", "null"})
# What YAML 1.1 (https://yaml.org/type/) or YAML 1.2's core schema resolve to something else than text.
_TRAPS: Final = (
    (re.compile(r"(?i:y|yes|on|true)"), "is a boolean to some YAML readers; write true, or quote it as text"),
    (
        re.compile(r"(?i:n|no|off|false)"),
        "is a boolean to some YAML readers; write false, or quote it as text",
    ),
    (re.compile(r"(?i:null)"), "is null to some YAML readers; write null, or quote it as text"),
    (
        re.compile(r"[-+]?[0-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9_]*)?"),
        "is a base-60 number to some YAML readers; quote it",
    ),
    (
        re.compile(r"[-+]?0([0-9_]+|[xX][0-9a-fA-F_]+|o[0-7_]+|b[01_]+)"),
        "is an octal, hexadecimal or binary number to some YAML readers; write it in decimal, or quote it",
    ),
    (
        re.compile(r"[-+]?[0-9][0-9_]*_[0-9_]*(\.[0-9_]*)?"),
        "has underscores; write the digits alone, or quote it",
    ),
    (re.compile(r"[0-9]{4}-[0-9]{1,2}-[0-9]{1,2}([Tt ].*)?"), "is a date to some YAML readers; quote it"),
    (re.compile(r"[-+]?\.(?i:inf|nan)"), "is not a finite number"),
)


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong with a file. `line` counts from 1; an empty `path` is the file as a whole."""

    line: int
    path: KeyPath
    what: str

    def render(self, source: str) -> str:
        """`file:line: key: what`, the form that editors and CI logs turn into links."""
        key = render_path(self.path)
        return f"{source}:{self.line}: {key}: {self.what}" if key else f"{source}:{self.line}: {self.what}"


@dataclass(frozen=True, slots=True)
class Document:
    """A file's contents as plain values (dict, list, str, int, float, bool, None), and where they stand."""

    value: object
    lines: Mapping[KeyPath, int]
    """The line of each key, list item, and of the root `()`."""
    problems: tuple[Problem, ...]

    def line(self, path: KeyPath) -> int:
        """The line of the value at `path`, or of the nearest thing around it."""
        while path and path not in self.lines:
            path = path[:-1]
        return self.lines.get(path, 1)


def render_path(path: KeyPath) -> str:
    """`("serve", "slots")` as `serve.slots`, `("formats", 0)` as `formats[0]`."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def read_strict_yaml(text: str) -> Document:
    """Read one YAML document.

    Problems are collected, never raised: `Document.problems` names each with its line. After a syntax error
    the value is None.
    """
    try:
        problems = list(_refuse_features(text))
        if problems:
            return Document(None, {(): 1}, tuple(problems))
        node = yaml.compose(text, Loader=yaml.BaseLoader)
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        return Document(None, {(): 1}, (Problem(line, (), f"a character that YAML forbids: {error.reason}"),))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        what = ", ".join(part for part in (error.context, error.problem) if part)
        return Document(None, {(): 1}, (Problem(mark.line + 1 if mark else 1, (), f"not YAML: {what}"),))
    if node is None:
        return Document(None, {(): 1}, (Problem(1, (), "the file is empty"),))
    reader = _Reader()
    value = reader.convert(node, ())
    return Document(value, reader.lines, tuple(reader.problems))


def _refuse_features(text: str) -> Iterator[Problem]:
    depth = documents = 0
    for event in yaml.parse(text, Loader=yaml.BaseLoader):
        line = event.start_mark.line + 1 if event.start_mark else 1
        if isinstance(event, yaml.DocumentStartEvent):
            documents += 1
            if documents > 1:
                yield Problem(line, (), "a second document starts here; a file holds one")
                return
        elif isinstance(event, yaml.AliasEvent):
            yield Problem(line, (), f"alias '*{event.anchor}'; write the value out")
        elif isinstance(event, yaml.NodeEvent) and event.anchor is not None:
            yield Problem(line, (), f"anchor '&{event.anchor}'; write the value out where it is used")
        if isinstance(event, yaml.ScalarEvent | yaml.CollectionStartEvent) and event.tag is not None:
            yield Problem(line, (), f"tag '{event.tag}'; write the value without it")
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > MAX_DEPTH:
                yield Problem(line, (), f"nested deeper than {MAX_DEPTH} levels")
                return
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1


class _Reader:
    def __init__(self) -> None:
        self.lines: dict[KeyPath, int] = {}
        self.problems: list[Problem] = []

    def convert(self, node: yaml.Node, path: KeyPath) -> object:
        self.lines.setdefault(path, node.start_mark.line + 1)
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, path)
        if isinstance(node, yaml.SequenceNode):
            return [self.convert(item, (*path, index)) for index, item in enumerate(node.value)]
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node, path)
        raise AssertionError(f"a YAML node of no known kind: {node}")

    def _mapping(self, node: yaml.MappingNode, path: KeyPath) -> dict[str, object]:
        values: dict[str, object] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode):
                self.problems.append(Problem(line, path, "a key must be plain text"))
                continue
            key = str(key_node.value)
            here = (*path, key)
            if key in values:
                first = self.lines[here]
                self.problems.append(Problem(line, here, f"key given twice; the first is on line {first}"))
                continue
            self.lines[here] = line
            values[key] = self.convert(value_node, here)
        return values

    def _scalar(self, node: yaml.ScalarNode, path: KeyPath) -> object:
        text = str(node.value)
        if node.style is not None:  # quoted or a block: text whatever it looks like
            return text
        if text in _NULL:
            return None
        if text in ("true", "false"):
            return text == "true"
        if _INTEGER.fullmatch(text):
            return int(text)
        if _FLOAT.fullmatch(text) and math.isfinite(float(text)):
            return float(text)
        for trap, what in _TRAPS:
            if trap.fullmatch(text):
                self.problems.append(Problem(node.start_mark.line + 1, path, f"'{text}' {what}"))
                break
        return text
