from __future__ import annotations

import pytest

from edgekit.strict_yaml import read_strict_yaml, render_path

RADIX = "is an octal, hexadecimal or binary number to some YAML readers; write it in decimal, or quote it"


def problems(text: str) -> list[tuple[int, str]]:
    return [(problem.line, problem.what) for problem in read_strict_yaml(text).problems]


@pytest.mark.parametrize(
    ("scalar", "value"),
    [
        ("true", True),
        ("false", False),
        ("null", None),
        ("~", None),
        ("", None),
        ("0", 0),
        ("-12", -12),
        ("+3", 3),
        ("9.6", 9.6),
        (".5", 0.5),
        ("1e2", 100.0),
        ("1.5E-3", 0.0015),
        ('"8.7"', "8.7"),
        ("'on'", "on"),
        ("armv8.2-a+dotprod", "armv8.2-a+dotprod"),
        ("8.7.1", "8.7.1"),
        ("8 GiB", "8 GiB"),
        ("25W", "25W"),
        ("99999999999999999999", "99999999999999999999"),
        ("1e999", "1e999"),
    ],
)
def test_read_strict_yaml__scalar_has_its_yaml_1_2_type(scalar: str, value: object) -> None:
    document = read_strict_yaml(f"key: {scalar}\n")

    assert document.problems == ()
    assert document.value == {"key": value}
    assert type(document.value["key"]) is type(value)  # True == 1


@pytest.mark.parametrize(
    ("scalar", "what"),
    [
        ("on", "'on' is a boolean to some YAML readers; write true, or quote it as text"),
        ("No", "'No' is a boolean to some YAML readers; write false, or quote it as text"),
        ("TRUE", "'TRUE' is a boolean to some YAML readers; write true, or quote it as text"),
        ("Null", "'Null' is null to some YAML readers; write null, or quote it as text"),
        ("12:30", "'12:30' is a base-60 number to some YAML readers; quote it"),
        ("1:02:03.5", "'1:02:03.5' is a base-60 number to some YAML readers; quote it"),
        (
            "017",
            f"'017' {RADIX}",
        ),
        (
            "0x1F",
            f"'0x1F' {RADIX}",
        ),
        ("1_024", "'1_024' has underscores; write the digits alone, or quote it"),
        ("2024-01-31", "'2024-01-31' is a date to some YAML readers; quote it"),
        (".inf", "'.inf' is not a finite number"),
        ("-.NaN", "'-.NaN' is not a finite number"),
    ],
)
def test_read_strict_yaml__what_yaml_1_1_reinterprets_is_a_problem(scalar: str, what: str) -> None:
    assert problems(f"first: 1\nkey: {scalar}\n") == [(2, what)]


def test_read_strict_yaml__lines_of_keys_and_items() -> None:
    document = read_strict_yaml("# comment\na:\n  b: 1\n  c:\n    - x\n    - y\nd: [1, 2]\n")

    assert document.value == {"a": {"b": 1, "c": ["x", "y"]}, "d": [1, 2]}
    assert [document.line(path) for path in (("a",), ("a", "b"), ("a", "c", 1), ("d", 0))] == [2, 3, 6, 7]
    assert document.line(("a", "missing")) == 2


def test_read_strict_yaml__repeated_key_names_the_first() -> None:
    document = read_strict_yaml("a:\n  b: 1\n  c: 2\n  b: 3\n")

    assert [(p.line, render_path(p.path), p.what) for p in document.problems] == [
        (4, "a.b", "key given twice; the first is on line 2")
    ]
    assert document.value == {"a": {"b": 1, "c": 2}}


def test_read_strict_yaml__anchors_aliases_and_tags_are_refused() -> None:
    assert problems("a: &x 1\nb: *x\nc: !!python/name:os.system ''\n<<: {}\n") == [
        (1, "anchor '&x'; write the value out where it is used"),
        (2, "alias '*x'; write the value out"),
        (3, "tag 'tag:yaml.org,2002:python/name:os.system'; write the value without it"),
    ]


@pytest.mark.parametrize(
    ("text", "line", "what"),
    [
        ("", 1, "the file is empty"),
        ("# only a comment\n", 1, "the file is empty"),
        ("a: 1\n---\nb: 2\n", 2, "a second document starts here; a file holds one"),
        (
            "a: 1\nb: [1\nc: 2\n",
            3,
            "not YAML: while parsing a flow sequence, expected ',' or ']', but got ':'",
        ),
        (
            "a: 1\n\tb: 2\n",
            2,
            "not YAML: while scanning for the next token, found character '\\t' that cannot start any token",
        ),
        ("a: 1\nb: \x01\n", 2, "a character that YAML forbids: special characters are not allowed"),
        ("? [1, 2]\n: 3\n", 1, "a key must be plain text"),
        ("[" * 40, 1, "nested deeper than 32 levels"),
    ],
)
def test_read_strict_yaml__broken_file_is_one_problem_with_its_line(text: str, line: int, what: str) -> None:
    assert problems(text) == [(line, what)]


def test_read_strict_yaml__thousands_of_levels_do_not_exhaust_the_stack() -> None:
    assert problems("[" * 100_000) == [(1, "nested deeper than 32 levels")]
