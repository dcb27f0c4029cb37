"""What holds for any text at all, cut in any way."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable
from typing import Any

import pytest

FRAGMENTS = [
    *(
        "<tool_call>",
        "</tool_call>",
        "\n",
        " ",
        "{",
        "}",
        "[",
        "]",
        ",",
        ":",
        '"',
        "'",
        "\\",
        "```json",
        "```",
    ),
    *('"name"', '"arguments"', '"get_weather"', '"city"', "get_time", "null", "12", "é", "<function=", ">"),
    *("<parameter=", "</parameter>", "</function>", "[TOOL_CALLS]", "[ARGS]", "[CALL_ID]", "<|python_tag|>"),
    *("<｜tool▁calls▁begin｜>", "<｜tool▁call▁begin｜>", "function", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>"),
    *('{"name": "get_weather", "arguments": {"city": "Paris"}}', '{"name": "x", "arguments": {', "words"),
]
FAMILIES = ["generic", "deepseek", "llama3", "mistral", "qwen3-coder"]


@pytest.mark.parametrize("name", FAMILIES)
def test_push__how_a_text_is_cut_makes_no_difference_and_nothing_raises(
    name: str, read_pieces: Callable[[str, Iterable[str]], Any]
) -> None:
    chance = random.Random(name)
    for _ in range(400):
        text = "".join(chance.choices(FRAGMENTS, k=chance.randrange(1, 25)))
        cuts = sorted(chance.choices(range(len(text) + 1), k=chance.randrange(1, 8)))
        pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]

        whole = read_pieces(name, [text])

        assert read_pieces(name, pieces) == whole, (text, pieces)
        assert read_pieces(name, text) == whole, text


@pytest.mark.parametrize("name", FAMILIES)
def test_push__words_are_never_lost(name: str, read_pieces: Callable[[str, Iterable[str]], Any]) -> None:
    chance = random.Random(name)
    for _ in range(400):
        pieces = chance.choices(FRAGMENTS, k=chance.randrange(1, 25))
        marked = [f"w{index}w" if piece == "words" else piece for index, piece in enumerate(pieces)]

        answer = read_pieces(name, ["".join(marked)])

        told = answer.content + "".join(arguments for _, _, arguments in answer.calls)
        in_names = "".join(called for _, called, _ in answer.calls)
        for index, piece in enumerate(pieces):
            if piece == "words":
                assert f"w{index}w" in told + in_names, "".join(marked)


@pytest.mark.parametrize("name", FAMILIES)
def test_push__plain_text_comes_out_at_once_but_for_space_at_its_end(
    name: str, family: Callable[[str], Any], tools: list[dict[str, Any]]
) -> None:
    parser = family(name).parser(tools)

    assert parser.push("Hello").content == "Hello"
    assert parser.push(" there ").content == " there"
    assert parser.push("you").content == " you"
    opening = parser.openings[0]
    assert parser.push(f" {opening[:-1]}").content == ""
    assert parser.push("!").content == f" {opening[:-1]}!"
    assert parser.finish().content == ""


def test_push__long_text_takes_time_in_proportion(family: Callable[[str], Any]) -> None:
    # A call of 400 kB in pieces of 8: reading again from its beginning each time would take minutes.
    parser = family("hermes").parser([])
    began = time.monotonic()

    parser.push('<tool_call>\n{"name": "write", "arguments": {"text": "')
    for _ in range(50_000):
        parser.push("12345678")
    parser.push('"}}\n</tool_call>')

    assert time.monotonic() - began < 10
