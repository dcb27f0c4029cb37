from __future__ import annotations

import json
from typing import Any

import pytest

from edgekit.server.tools.cursor import Cursor
from edgekit.server.tools.json_reader import JsonReader, NotJsonError


def read(text: str) -> tuple[str, str]:
    """What a reader passes on of a text, and what it leaves."""
    cursor, pieces = Cursor(), []
    cursor.text, cursor.ended = text, True
    try:
        for _ in JsonReader(cursor, pieces.append).value():
            pytest.fail("it waits for more of a text that has ended")
    except NotJsonError:
        pieces.append("!")
    return "".join(pieces), cursor.rest


@pytest.mark.parametrize(
    "text",
    [
        '{"a": [1, -2.5e+3, "x\\u00e9\\n\\"", true, false, null, {}, []], "b": {"c": ""}}',
        "[ ]",
        '"\\ud83d\\ude00"',
        "0",
        '{ "a" :\t1 ,\n"b":2 }',
    ],
)
def test_value__json_is_passed_on_as_it_is(text: str) -> None:
    assert read(text + " rest") == (text, " rest")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('"one\ntwo\ttabbed\x01"', "one\ntwo\ttabbed\x01"),
        ('"\\d+ \\alpha \\underline \\\'"', "\\d+ \\alpha \\underline '"),
        ("'say \"hi\"'", 'say "hi"'),
        ("{'a': None, 'b': [True, False,],}", {"a": None, "b": [True, False]}),
    ],
)
def test_value__slips_are_put_right(text: str, value: Any) -> None:
    passed_on, rest = read(text)

    assert json.loads(passed_on) == value
    assert rest == ""


@pytest.mark.parametrize(
    ("text", "passed_on", "rest"),
    [
        ("{a: 1}", "{", "a: 1}"),
        ('{"a": 01}', '{"a": ', "01}"),
        ('{"a": NaN}', '{"a": ', "NaN}"),
        ('{"a": 1 "b": 2}', '{"a": 1', ' "b": 2}'),
        ('{"a": 1]', '{"a": 1', "]"),
        ("[1, , 2]", "[1, ", ", 2]"),
        ("", "", ""),
        ('{"a', '{"a', ""),
    ],
)
def test_value__stops_where_it_cannot_go_on(text: str, passed_on: str, rest: str) -> None:
    assert read(text) == (passed_on + "!", rest)


def test_value__depth_has_a_limit() -> None:
    assert read("[" * 100 + "]" * 100) == ("[" * 100 + "]" * 100, "")
    assert read("[" * 100_000)[0].endswith("!")
