"""Grammars go through llguidance itself, with a tokenizer of bytes and that of DeepSeek-R1's students."""

from __future__ import annotations

import json
import lzma
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper

from edgekit.errors import ConstraintError
from edgekit.server.tools import NamedTool, ToolFormat

R1 = Path(__file__).parents[3] / "fixtures" / "r1-tokenizer" / "tokenizer.json.xz"

PARIS = '{"city": "Paris", "days": 3}'
CALLS = {
    "generic": ('<tool_call>\n{"name": "get_weather", "arguments": ', "}\n</tool_call>", "\n", "", ""),
    "deepseek": (
        "<｜tool▁call▁begin｜>function<｜tool▁sep｜>get_weather\n```json\n",
        "\n```<｜tool▁call▁end｜>",
        "\n",
        "<｜tool▁calls▁begin｜>",
        "<｜tool▁calls▁end｜>",
    ),
    "deepseek-v3.1": (
        "<｜tool▁call▁begin｜>get_weather<｜tool▁sep｜>",
        "<｜tool▁call▁end｜>",
        "",
        "<｜tool▁calls▁begin｜>",
        "<｜tool▁calls▁end｜>",
    ),
    "mistral": ('{"name": "get_weather", "arguments": ', "}", ", ", "[TOOL_CALLS][", "]"),
    "mistral-id": ("[TOOL_CALLS]get_weather[CALL_ID]abcdefghi[ARGS]", "", "", "", ""),
    "mistral-args": ("[TOOL_CALLS]get_weather[ARGS]", "", "", "", ""),
    "llama3": ('{"name": "get_weather", "parameters": ', "}", None, "", ""),
}


def written(name: str, *arguments: str) -> str:
    head, tail, between, before, after = CALLS[name]
    return before + (between or "").join(f"{head}{text}{tail}" for text in arguments) + after


@pytest.fixture(scope="module")
def by_bytes() -> LLTokenizer:
    return LLTokenizer("byte")


@pytest.fixture(scope="module")
def r1_tokenizer() -> LLTokenizer:
    """The students' tokenizer, with control tokens alone as special ones: `<tool_call>` is text."""
    spec = json.loads(lzma.decompress(R1.read_bytes()))
    # Byte-level BPE writes the bytes that are no printable characters as those from 256 on.
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    bytes_of = {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}
    tokens = {
        number: bytes(bytes_of[char] for char in text) for text, number in spec["model"]["vocab"].items()
    }
    tokens |= {entry["id"]: entry["content"].encode() for entry in spec["added_tokens"]}
    number_of = {token: number for number, token in tokens.items()}

    class ByteForByte(SimpleNamespace):
        def __call__(self, text: bytes) -> list[int]:
            return [number_of[bytes([byte])] for byte in text]

    wrapper = TokenizerWrapper(
        ByteForByte(
            eos_token_id=number_of["<｜end▁of▁sentence｜>".encode()],
            bos_token_id=number_of["<｜begin▁of▁sentence｜>".encode()],
            tokens=[tokens[number] for number in range(len(tokens))],
            special_token_ids=[entry["id"] for entry in spec["added_tokens"] if entry["special"]],
        )
    )
    return LLTokenizer(wrapper)


def matches(tokenizer: LLTokenizer, grammar: str, text: str) -> bool:
    matcher = LLMatcher(tokenizer, LLMatcher.grammar_from_lark(grammar))
    tokens = tokenizer.greedy_tokenize(text)
    taken = matcher.try_consume_tokens(tokens)
    assert not matcher.is_error(), matcher.get_error()
    return taken == len(tokens) and bool(matcher.is_accepting())


@pytest.fixture(scope="module")
def grammar(family: Callable[[str], ToolFormat], tools: list[dict[str, Any]]) -> Callable[..., str]:
    def make(name: str, choice: Any = "required", *, parallel: bool = True) -> str:
        made = family(name).constraint(tools, choice, parallel)
        assert made.kind == "lark"
        assert LLMatcher.validate_grammar(LLMatcher.grammar_from_lark(made.text)) == ""
        return made.text

    return make


@pytest.mark.parametrize("name", CALLS)
def test_constraint__lets_calls_by_the_schema_through_and_nothing_else(
    name: str, grammar: Callable[..., str], by_bytes: LLTokenizer
) -> None:
    text = grammar(name)

    assert matches(by_bytes, text, written(name, PARIS))
    assert matches(by_bytes, text, written(name, '{"city": "é\\n", "unit": "C"}'))
    assert matches(by_bytes, text, written(name, "{}").replace("get_weather", "get_time"))
    for wrong in (
        written(name, "{}"),
        written(name, '{"city": 3}'),
        written(name, '{"city": "Paris", "sky": "blue"}'),
        written(name, '{"city": "Paris", "unit": "K"}'),
        written(name, PARIS).replace("get_weather", "get_wind"),
        written(name, PARIS).replace("get_weather", "get_time"),
        "Sure. " + written(name, PARIS),
        written(name, PARIS)[:-1],
        "Paris is sunny.",
        "",
    ):
        assert not matches(by_bytes, text, wrong), wrong


@pytest.mark.parametrize("name", CALLS)
def test_constraint__several_calls_only_if_they_are_asked_for(
    name: str, grammar: Callable[..., str], by_bytes: LLTokenizer
) -> None:
    two = written(name, PARIS, '{"city": "Rome"}')

    assert matches(by_bytes, grammar(name), two) is (CALLS[name][2] is not None)
    assert not matches(by_bytes, grammar(name, parallel=False), two)
    assert not matches(by_bytes, grammar(name, NamedTool("get_weather")), two)


@pytest.mark.parametrize("name", CALLS)
def test_constraint__named_tool_is_the_only_one(
    name: str, grammar: Callable[..., str], by_bytes: LLTokenizer
) -> None:
    text = grammar(name, NamedTool("get_time"))

    assert matches(by_bytes, text, written(name, "{}").replace("get_weather", "get_time"))
    assert not matches(by_bytes, text, written(name, PARIS))


@pytest.mark.parametrize("name", CALLS)
def test_constraint__what_it_allows_the_parser_reads(name: str, read: Callable[[str, str], Any]) -> None:
    answer = read(name, written(name, PARIS))

    assert (answer.content, answer.calls) == ("", (("call_0", "get_weather", PARIS),))


def test_constraint__xml_by_the_schema(grammar: Callable[..., str], by_bytes: LLTokenizer) -> None:
    text = grammar("qwen3-coder")
    call = (
        "<tool_call>\n<function=get_weather>\n<parameter=city>\nNew\nYork\n</parameter>\n"
        "<parameter=days>\n3\n</parameter>\n<parameter=unit>\nF\n</parameter>\n</function>\n</tool_call>"
    )

    assert matches(by_bytes, text, call)
    assert matches(by_bytes, text, f"{call}\n{call}")
    assert matches(by_bytes, text, "<tool_call>\n<function=get_time>\n</function>\n</tool_call>")
    for wrong in (
        call.replace("3", "three"),
        call.replace("\nF\n", "\nK\n"),
        call.replace("<parameter=city>\nNew\nYork\n</parameter>\n", ""),
        call.replace("days", "weeks"),
        call.replace("get_weather", "get_wind"),
    ):
        assert not matches(by_bytes, text, wrong), wrong


def test_constraint__a_tag_that_is_one_token_is_taken_as_one(
    grammar: Callable[..., str], r1_tokenizer: LLTokenizer
) -> None:
    call = written("generic", PARIS)

    assert r1_tokenizer.greedy_tokenize(call)[0] == 151657
    assert matches(r1_tokenizer, grammar("generic"), call)
    assert matches(r1_tokenizer, grammar("deepseek"), written("deepseek", PARIS))


def test_constraint__schemas_with_definitions_of_their_own(
    family: Callable[[str], ToolFormat], by_bytes: LLTokenizer
) -> None:
    schema = {
        "$defs": {"Node": {"type": "object", "properties": {"next": {"$ref": "#/$defs/Node"}}}},
        "type": "object",
        "properties": {"list": {"$ref": "#/$defs/Node"}},
        "required": ["list"],
    }
    tools = [{"type": "function", "function": {"name": "get_weather", "parameters": schema}}]

    for name in CALLS:
        text = family(name).constraint(tools, "required", False).text
        assert matches(by_bytes, text, written(name, '{"list": {"next": {"next": {}}}}'))
        assert not matches(by_bytes, text, written(name, '{"list": {"next": 1}}'))


@pytest.mark.parametrize("strict", [False, True])
def test_constraint__unsupported_keywords_matter_to_strict_tools_only(
    strict: bool, family: Callable[[str], ToolFormat]
) -> None:
    schema = {"type": "object", "properties": {"n": {"type": "string", "format": "uint128"}}}
    function = {"name": "f", "parameters": schema, "strict": strict}

    text = family("generic").constraint([{"type": "function", "function": function}], "required", False).text

    error = LLMatcher.validate_grammar(LLMatcher.grammar_from_lark(text))
    assert ("uint128" in error) is strict


def test_constraint__tool_that_is_not_there(
    family: Callable[[str], ToolFormat], tools: list[dict[str, Any]]
) -> None:
    with pytest.raises(ConstraintError, match="'get_wind'"):
        family("generic").constraint(tools, NamedTool("get_wind"), True)
    with pytest.raises(ConstraintError, match="no tools"):
        family("generic").constraint([], "required", True)
