"""Reads a YAML file into a pydantic model, and says what is wrong with it like a compiler does.

All problems of a file are reported at once, one a line: `file:line: key: what; did you mean 'nearest'?`.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Iterator
from types import MappingProxyType, UnionType
from typing import Any, Final, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails, PydanticCustomError

from edgekit.errors import EdgekitError
from edgekit.strict_yaml import Document, KeyPath, Problem, read_strict_yaml

__all__ = ["key_error", "nearest", "parse_yaml_model"]

Model = TypeVar("Model", bound=BaseModel)

_KEY_ERROR: Final = "key"
_UNIT_SUFFIX: Final = re.compile(
    r"_(?:(?P<size>bytes|[kmgt]i?b)|(?P<bandwidth>[kmgt]i?b_?(?:per_s|s|ps)|gbps|mbps)|(?P<time>[mun]?s|minutes))$"
)
_QUANTITY: Final = re.compile(r"\s*(?P<number>[0-9]+(?:\.[0-9]+)?)\s*(?P<unit>[A-Za-z/]+)\s*")
_UNION_MEMBERS: Final = frozenset({"bool", "int", "str"})
_MIB_PER_UNIT: Final = MappingProxyType({"MiB": 1.0, "GiB": 1024.0, "TiB": 1024.0**2, "KiB": 1 / 1024})


def key_error(key: str, what: str) -> PydanticCustomError:
    """For a model's validators: a problem that belongs to one key of the section being validated."""
    return PydanticCustomError(_KEY_ERROR, "{what}", {"key": key, "what": what})


def nearest(word: str, choices: Iterable[str]) -> str | None:
    """The choice that `word` was likely meant to be, or None."""
    by_folded = {choice.lower(): choice for choice in choices}
    close = difflib.get_close_matches(word.lower(), by_folded, n=1, cutoff=0.55)
    return by_folded[close[0]] if close else None


def parse_yaml_model(text: str, model: type[Model], *, source: str, error: type[EdgekitError]) -> Model:
    """Validate a YAML document strictly: no unknown keys, no conversions between types.

    Args:
        text: the document.
        model: what it describes; its sections are models too.
        source: the file's name, for messages.
        error: the class to raise.

    Raises:
        error: with all problems, in the order of their lines.
    """
    document = read_strict_yaml(text)
    problems = list(document.problems)
    if document.value is None or not isinstance(document.value, dict):
        problems = problems or [Problem(document.line(()), (), "the file is not a mapping of keys to values")]
        raise error("\n".join(problem.render(source) for problem in problems))
    parsed = None
    try:
        parsed = model.model_validate_json(json.dumps(document.value), strict=True)
    except ValidationError as caught:
        reported = {problem.path for problem in problems}
        for problem in _explain(caught, document, model):
            # One message a key: a union reports each of its members, and a trap is a wrong type as well.
            # A list that lost all its items to their own problems is not empty in the file.
            echo = any(path[: len(problem.path)] == problem.path for path in reported)
            if not echo:
                reported.add(problem.path)
                problems.append(problem)
    if problems or parsed is None:
        problems.sort(key=lambda problem: problem.line)
        raise error("\n".join(problem.render(source) for problem in problems))
    return parsed


def _explain(caught: ValidationError, document: Document, model: type[BaseModel]) -> Iterator[Problem]:
    for detail in caught.errors(include_url=False):
        path = detail["loc"]
        if detail["type"] == "extra_forbidden":
            yield Problem(document.line(path), path, _unknown_key(path, detail["input"], model))
        elif detail["type"] == "missing":
            yield Problem(document.line(path), path, "missing")
        elif detail["type"] == _KEY_ERROR:
            context = detail["ctx"]
            here = (*path, str(context["key"]))
            yield Problem(document.line(here), here, str(context["what"]))
        else:
            # pydantic appends the member of a union, or "[key]", to the path: keep what the file has.
            member = None
            while path and path not in document.lines:
                member, path = path[-1], path[:-1]
            what = _wrong_member(detail) if member in _UNION_MEMBERS else _wrong_value(path, detail)
            yield Problem(document.line(path), path, what)


def _unknown_key(path: KeyPath, value: object, model: type[BaseModel]) -> str:
    key = str(path[-1])
    section = _section_at(model, path[:-1])
    known = section.model_fields if section is not None else {}
    scalar = not isinstance(value, dict | list)
    here = [name for name, field in known.items() if not (scalar and _section_of(field.annotation))]
    guess = _same_quantity(key, here) or nearest(key, here)
    if guess is None and scalar:
        # The right key in the wrong place: `total_mib: 8192` beside `memory:` instead of in it.
        elsewhere = dict(_all_keys(model, ""))
        dotted = _same_quantity(key, elsewhere) or nearest(key, elsewhere)
        guess = dotted or nearest(key, {name.rpartition(".")[2]: name for name in elsewhere})
    if guess is None:
        return f"unknown key; known here: {', '.join(known)}" if known else "unknown key"
    wanted = _UNIT_SUFFIX.search(guess)
    unit = f" (in {_unit_name(guess)})" if wanted and not key.endswith(wanted.group()) else ""
    return f"unknown key; did you mean '{guess}'?{unit}"


def _same_quantity(key: str, choices: Iterable[str]) -> str | None:
    """The key for the same thing in another unit: `memory_gb` and `memory.total_mib` are both sizes."""
    unit = _UNIT_SUFFIX.search(key)
    if unit is None:
        return None
    stem = key[: unit.start()]
    stems = {}
    for choice in choices:
        other = _UNIT_SUFFIX.search(choice)
        if other is not None and other.lastgroup == unit.lastgroup:
            stems[choice[: other.start()]] = choice
            stems.setdefault(choice.partition(".")[0], choice)
    close = nearest(stem, stems)
    return stems[close] if close else None


def _wrong_member(detail: ErrorDetails) -> str:
    value = detail["input"]
    hint = f'; quote it: "{json.dumps(value)}"' if isinstance(value, float) else ""
    return f"expected text, a whole number, or true or false, got {_describe(value)}{hint}"


def _wrong_value(path: KeyPath, detail: ErrorDetails) -> str:
    value, kind = detail["input"], detail["type"]
    given = json.dumps(value, ensure_ascii=False) if isinstance(value, str) else _describe(value)
    if kind == "literal_error":
        choices = re.findall(r"'([^']*)'", str(detail["ctx"]["expected"]))
        guess = nearest(value, choices) if isinstance(value, str) else None
        hint = f"; did you mean '{guess}'?" if guess else f"; one of {', '.join(choices)}"
        return f"{given} is not known here{hint}"
    if kind in ("int_type", "int_from_float", "float_type", "int_parsing", "float_parsing"):
        number = "a whole number" if kind.startswith("int") else "a number"
        return f"expected {number}{_in_unit(path)}, got {given}{_unit_hint(path, value)}"
    if kind == "bool_type":
        return f"expected true or false, got {given}"
    if kind == "string_type":
        if isinstance(value, bool | int | float):
            return f'expected text, got {given}; quote it: "{json.dumps(value)}"'
        return f"expected text, got {given}"
    if kind in ("tuple_type", "list_type"):
        return f"expected a list, got {given}; write [{value}]" if value is not None else "expected a list"
    if kind in ("model_type", "model_attributes_type", "dict_type"):
        return f"expected a section of keys, got {given}"
    if kind == "too_short":
        return "expected at least one item"
    if kind == "value_error":
        return detail["msg"].removeprefix("Value error, ")
    message = detail["msg"].removeprefix("Input ").removeprefix("String ")
    return f"{message}, got {given}" if isinstance(value, str | int | float) else message


def _in_unit(path: KeyPath) -> str:
    name = _unit_name(str(path[-1])) if path else None
    return f" in {name}" if name else ""


def _unit_hint(path: KeyPath, value: object) -> str:
    if not isinstance(value, str) or not path:
        return ""
    quantity = _QUANTITY.fullmatch(value)
    if quantity is None:
        return "; write it without quotes" if re.fullmatch(r"[0-9.]+", value) else ""
    if str(path[-1]).endswith("_mib") and quantity["unit"] in _MIB_PER_UNIT:
        return f"; write {float(quantity['number']) * _MIB_PER_UNIT[quantity['unit']]:g}"
    return "; write the number alone"


def _unit_name(key: str) -> str | None:
    for suffix, name in (
        ("_gb_per_s", "GB/s"),
        ("_mib", "MiB"),
        ("_bytes", "bytes"),
        ("_w", "watts"),
        ("_s", "s"),
    ):
        if key.endswith(suffix):
            return name
    return None


def _describe(value: object) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, dict):
        return "a section of keys"
    if isinstance(value, list):
        return "a list"
    return json.dumps(value)


def _section_at(model: type[BaseModel], path: KeyPath) -> type[BaseModel] | None:
    section: type[BaseModel] | None = model
    for part in path:
        field = section.model_fields.get(str(part)) if section is not None else None
        section = _section_of(field.annotation) if field is not None else None
    return section


def _section_of(annotation: Any) -> type[BaseModel] | None:
    """The model behind `Section` or `Section | None`."""
    members = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
    for member in members:
        if isinstance(member, type) and issubclass(member, BaseModel):
            return member
    return None


def _all_keys(model: type[BaseModel], prefix: str) -> Iterator[tuple[str, Any]]:
    for name, field in model.model_fields.items():
        section = _section_of(field.annotation)
        if section is None:
            yield prefix + name, field
        else:
            yield from _all_keys(section, f"{prefix}{name}.")
