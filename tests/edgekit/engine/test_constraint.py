"""Constraints on what the real model writes, checked by another package, and constraints made to do harm."""

from __future__ import annotations

import json
import random
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jsonschema
import psutil
import pytest

from edgekit.engine.base import Constraint, Sampling
from edgekit.engine.constraint import ConstraintCompiler, ConstraintMatcher
from edgekit.engine.llama import LlamaRunner
from edgekit.engine.runner import Slice
from edgekit.errors import ConstraintError
from edgekit.profiles import ServeSettings

STREAMS = 4
PROMPT = "<|im_start|>user\nAnswer in JSON.<|im_end|>\n<|im_start|>assistant\n"


@pytest.fixture(scope="module")
def runner(student: Path) -> Iterator[LlamaRunner]:
    settings = ServeSettings(threads=1, context_tokens=512, kv_cells=2048, slots=STREAMS)
    runner = LlamaRunner(student, settings, repack=False)
    yield runner
    runner.close()


@pytest.fixture(scope="module")
def compiler(runner: LlamaRunner) -> ConstraintCompiler:
    return ConstraintCompiler(
        runner.vocabulary,
        piece=runner.piece,
        special=lambda token: "" if runner.piece(token) else runner._token_text(token),
        ends=[token for token in range(runner.vocabulary) if runner.ends_generation(token)],
        tokenize=lambda text: tokens_of(runner, text.decode()),
    )


def tokens_of(runner: LlamaRunner, text: str) -> list[int]:
    return runner.tokenize(text, add_special=False, parse_special=False)


def tokens_in(mask: bytes) -> set[int]:
    return {8 * index + bit for index, byte in enumerate(mask) for bit in range(8) if byte >> bit & 1}


def schema(text: Any) -> Constraint:
    return Constraint("json_schema", text if isinstance(text, str) else json.dumps(text))


def fits(runner: LlamaRunner, matcher: ConstraintMatcher, text: str) -> bool:
    """Whether a text is a whole answer."""
    for token in tokens_of(runner, text):
        if not matcher.allows(token):
            return False
        matcher.accept(token)
    return any(runner.ends_generation(token) for token in tokens_in(matcher.allowed()))


def complete(
    runner: LlamaRunner, matchers: Sequence[ConstraintMatcher], sampling: Sampling, limit: int = 450
) -> list[str]:
    """What the model writes under each constraint, up to the end of its turn; all in the same steps."""
    assert len(matchers) <= STREAMS
    prompt = runner.tokenize(PROMPT, add_special=True, parse_special=True)
    samplers = [runner.open_sampler(sampling, prompt) for _ in matchers]
    for index, (sampler, matcher) in enumerate(zip(samplers, matchers, strict=True)):
        sampler.constrain(matcher)
        runner.forget(index, 0)
    written: list[list[int]] = [[] for _ in matchers]
    running = dict.fromkeys(range(len(matchers)), prompt)
    while running:
        slices = [
            Slice(index, 0 if not written[index] else len(prompt) + len(written[index]) - 1, tokens, True)
            for index, tokens in running.items()
        ]
        rows = runner.run(slices)
        for index, row in zip(list(running), rows, strict=True):
            token = samplers[index].sample(row)
            if runner.ends_generation(token):
                del running[index]
                continue
            written[index].append(token)
            running[index] = [token]
            assert len(written[index]) < limit, b"".join(map(runner.piece, written[index])).decode()
    for sampler in samplers:
        sampler.close()
    return [b"".join(map(runner.piece, tokens)).decode() for tokens in written]


# What the model writes.


def random_schema(rng: random.Random, depth: int = 0) -> dict[str, Any]:
    """A JSON Schema whose instances have an end, even where the model would rather go on."""
    kinds = ["integer", "string", "pattern", "enum", "boolean", "format"]
    if depth < 2:
        kinds += ["object", "array", "anyOf", "tuple"]
    kind = "object" if depth == 0 else rng.choice(kinds)
    inner = [random_schema(rng, depth + 1) for _ in range(2)] if kind in ("array", "anyOf", "tuple") else []
    low = rng.randrange(-5000, 5000)
    names = rng.sample(["id", "größe", "a b", 'quo"te', "tags"], rng.randrange(1, 4))
    return {
        "integer": {"type": "integer", "minimum": low, "exclusiveMaximum": low + rng.randrange(1, 900)},
        "string": {"type": "string", "minLength": low % 4, "maxLength": low % 4 + rng.randrange(9)},
        "pattern": {
            "type": "string",
            "pattern": rng.choice([r"^[A-Z]{2}-\d{3,5}$", "^(red|dark blue){1,2}$"]),
        },
        "format": {"type": "string", "format": rng.choice(["date", "ipv4", "uuid"])},
        "enum": {"enum": rng.sample([1, "two", None, True, "fünf", 6.5, ["x", {"y": 0}], "ACHT"], 3)},
        "boolean": {"type": ["boolean", "null"]},
        "array": {"type": "array", "items": inner[0] if inner else {}, "minItems": low % 2, "maxItems": 2},
        "tuple": {"type": "array", "prefixItems": inner, "items": False, "minItems": 2},
        "anyOf": {"anyOf": [*inner, {"type": "null"}]},
        "object": {
            "type": "object",
            "properties": {name: random_schema(rng, depth + 1) for name in names} if kind == "object" else {},
            "required": rng.sample(names, rng.randrange(1, len(names) + 1)),
            "additionalProperties": False,
        },
    }[kind]


@pytest.mark.parametrize("seed", range(3))
def test_json_schema__what_a_hot_model_writes_is_valid(
    runner: LlamaRunner, compiler: ConstraintCompiler, seed: int
) -> None:
    rng = random.Random(seed)
    schemas = [random_schema(rng) for _ in range(STREAMS)]
    matchers = [compiler.compile(schema(each)) for each in schemas]
    texts = complete(runner, matchers, Sampling(temperature=1.6, top_p=0.99, seed=seed))
    for each, text in zip(schemas, texts, strict=True):
        checker = jsonschema.Draft202012Validator(each, format_checker=jsonschema.FormatChecker())
        checker.validate(json.loads(text))


def test_json_schema__recursion_through_ref(runner: LlamaRunner, compiler: ConstraintCompiler) -> None:
    tree = {
        "$defs": {
            "node": {
                "type": "object",
                "properties": {
                    "value": {"type": "integer"},
                    "children": {"type": "array", "items": {"$ref": "#/$defs/node"}},
                },
                "required": ["value", "children"],
                "additionalProperties": False,
            }
        },
        "$ref": "#/$defs/node",
    }
    matcher = compiler.compile(schema(tree))
    leaf = {"value": 3, "children": []}
    good = {"value": 1, "children": [{"value": 2, "children": [leaf, leaf]}, leaf]}
    bad = {"value": 1, "children": [{"value": 2, "children": [leaf, {"value": "3", "children": []}]}]}
    assert fits(runner, matcher, json.dumps(good))
    assert not fits(runner, compiler.compile(schema(tree)), json.dumps(bad))


@pytest.mark.parametrize(
    "bounds",
    [
        {"minimum": -3, "maximum": 12.5},
        {"exclusiveMinimum": 0, "exclusiveMaximum": 1},
        {"minimum": 0.05},
        {"type": "integer", "minimum": -17, "exclusiveMaximum": 203},
        {"type": "integer", "multipleOf": 7},
    ],
)
def test_json_schema__bounds_of_numbers_are_kept(
    runner: LlamaRunner, compiler: ConstraintCompiler, bounds: dict[str, Any]
) -> None:
    rng = random.Random(0)
    validator = jsonschema.Draft202012Validator({"type": "number"} | bounds)
    numbers = [round(rng.uniform(-30, 30), digits) for digits in (0, 1, 2) for _ in range(12)]
    texts = {str(int(number)) if number.is_integer() else str(number) for number in numbers}
    texts |= {"0", "-3", "-3.01", "12.5", "12.51", "1", "0.05", "0.049", "-17", "-18", "202", "203", "21"}
    for text in texts:
        matcher = compiler.compile(schema({"type": "number"} | bounds))
        assert fits(runner, matcher, text) == validator.is_valid(json.loads(text)), text


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(temperature=0),
        Sampling(temperature=1.0, top_k=40, top_p=0.95, seed=2),
        Sampling(temperature=1.2, presence_penalty=0.5, repeat_penalty=1.1, seed=2),
    ],
    ids=["greedy", "usual", "penalties"],
)
def test_json_schema__holds_with_every_kind_of_sampling(
    runner: LlamaRunner, compiler: ConstraintCompiler, sampling: Sampling
) -> None:
    person = {
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 20},
            "age": {"type": "integer", "minimum": 0, "maximum": 150},
            "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 3},
        },
        "required": ["name", "age", "tags"],
        "additionalProperties": False,
    }
    (text,) = complete(runner, [compiler.compile(schema(person))], sampling)
    jsonschema.validate(json.loads(text), person)


def test_regex_and_lark__the_whole_answer_matches(runner: LlamaRunner, compiler: ConstraintCompiler) -> None:
    expressions = [r"(yes|no|perhaps), because [a-z ]{5,40}\.", r"\d{4}-\d\d-\d\d", "[äöü]{3}😀"]
    lark = r"""
        start: sum "=" NUMBER
        sum: NUMBER ("+" NUMBER){1,3}
        NUMBER: /[1-9][0-9]{0,2}/
    """
    matchers = [compiler.compile(Constraint("regex", each)) for each in expressions]
    matchers.append(compiler.compile(Constraint("lark", lark)))
    texts = complete(runner, matchers, Sampling(temperature=1.5, seed=1))
    for expression, text in zip([*expressions, r"\d+(\+\d+){1,3}=\d+"], texts, strict=True):
        assert re.fullmatch(expression, text), text


# What a matcher says.


def test_allows__says_what_the_mask_says_all_the_way(
    runner: LlamaRunner, compiler: ConstraintCompiler
) -> None:
    matcher = compiler.compile(schema({"type": "object", "properties": {"a": {"type": "string"}}}))
    rng = random.Random(0)
    for token in tokens_of(runner, '{"a": "größer\\n", "b": [1.5, null, {}]}'):
        mask = matcher.allowed()
        assert len(mask) == (runner.vocabulary + 7) // 8
        allowed = tokens_in(mask)
        for other in [*rng.sample(range(runner.vocabulary), 200), token]:
            assert matcher.allows(other) == (other in allowed)
        matcher.accept(token)


def test_allowed__a_finished_answer_allows_what_ends_it_and_nothing_else(
    runner: LlamaRunner, compiler: ConstraintCompiler
) -> None:
    ends = {token for token in range(runner.vocabulary) if runner.ends_generation(token)}
    matcher = compiler.compile(schema({"enum": [[1]]}))
    for token in tokens_of(runner, "[1]"):
        assert not any(matcher.allows(end) for end in ends)
        assert not tokens_in(matcher.allowed()) & ends
        matcher.accept(token)
    assert tokens_in(matcher.allowed()) == ends
    assert all(matcher.allows(end) for end in ends)
    assert not matcher.allows(tokens_of(runner, " ")[0])
    matcher.accept(min(ends))
    assert tokens_in(matcher.allowed()) == ends


def test_allowed__an_answer_that_may_go_on_may_also_end(
    runner: LlamaRunner, compiler: ConstraintCompiler
) -> None:
    matcher = compiler.compile(Constraint("regex", "a+"))
    end = next(token for token in range(runner.vocabulary) if runner.ends_generation(token))
    (letter,) = tokens_of(runner, "a")
    assert not matcher.allows(end)
    matcher.accept(letter)
    assert matcher.allows(end)
    assert {end, letter} <= tokens_in(matcher.allowed())


def test_accept__a_token_that_is_not_allowed_is_an_error(
    runner: LlamaRunner, compiler: ConstraintCompiler
) -> None:
    matcher = compiler.compile(schema({"type": "integer"}))
    with pytest.raises(ConstraintError):
        matcher.accept(tokens_of(runner, "hello")[0])
    with pytest.raises(ConstraintError):
        matcher.allowed()


def test_compile__matchers_of_one_constraint_do_not_touch_each_other(
    runner: LlamaRunner, compiler: ConstraintCompiler
) -> None:
    constraint = schema({"enum": ["ab", "cd"]})
    first = compiler.compile(constraint)
    for token in tokens_of(runner, '"ab"'):
        first.accept(token)
    beginnings = (b'"', b'"a', b'"ab', b'"c', b'"cd')
    assert tokens_in(compiler.compile(constraint).allowed()) == {
        token for token in range(runner.vocabulary) if runner.piece(token) in beginnings
    }


def test_compile__special_tokens_come_only_where_a_grammar_names_them(
    runner: LlamaRunner, compiler: ConstraintCompiler
) -> None:
    (start,) = runner.tokenize("<|im_start|>", add_special=False, parse_special=True)
    named = compiler.compile(Constraint("lark", 'start: <|im_start|> "x"'))
    assert tokens_in(named.allowed()) == {start}
    assert not compiler.compile(Constraint("lark", 'start: "<|im_start|>"')).allows(start)
    string = compiler.compile(schema({"type": "string"}))
    string.accept(tokens_of(runner, '"')[0])
    assert not string.allows(start)


@pytest.mark.parametrize(
    ("text", "fits"),
    [
        ('{"a":1,"b":[2,3]}', True),
        ('{"a": 1, "b": [2, 3]}', True),
        ('{\n    "a": 1,\n    "b": [\n        2,\n        3\n    ]\n}', True),
        ('{"a":\n\n1', False),
        ('{"a":  1', False),
        ('\n{"a"', False),
    ],
)
def test_json_schema__white_space_is_as_models_write_it_and_has_an_end(
    runner: LlamaRunner, compiler: ConstraintCompiler, text: str, fits: bool
) -> None:
    # Options for llguidance inside the schema change nothing.
    matcher = compiler.compile(
        schema({"type": "object", "required": ["a"], "x-guidance": {"whitespace_pattern": "[ \n]*"}})
    )
    for token in tokens_of(runner, text):
        if not matcher.allows(token):
            assert not fits
            return
        matcher.accept(token)
    assert fits


# What cannot be met.


@pytest.mark.parametrize(
    ("constraint", "message"),
    [
        (schema("{bad"), "is not JSON"),
        (schema("[]"), "is an object"),
        (schema({"type": "nothing"}), "Invalid type: nothing"),
        (schema({"type": "array", "uniqueItems": True}), "uniqueItems"),
        (schema({"type": "string", "format": "poem"}), "Unknown format: poem"),
        (schema({"type": "integer", "minimum": 5, "maximum": 3}), r"minimum \(5\) is greater"),
        (schema("false"), "schema is false"),
        (schema({"$ref": "#"}), "no text is allowed"),
        (schema({"$ref": "#/$defs/nowhere"}), "nowhere"),
        (schema({"$ref": "http://127.0.0.1:9/schema.json"}), "does not fetch"),
        (schema({"$ref": "file:///etc/passwd"}), "does not fetch"),
        (Constraint("lark", 'start: "a" | nope'), 'unknown name: "nope"'),
        (Constraint("lark", "start: <nothing>"), "unknown special token"),
        (Constraint("lark", "start: start"), "no text is allowed"),
        (Constraint("regex", "(a"), "unclosed group"),
        (Constraint("regex", "(?=a)b"), "look-around"),
        (Constraint("regex", r"(a)\1"), "backreferences"),
        (Constraint("regex", "\ud800"), "surrogate"),
    ],
)
def test_compile__what_cannot_be_met_is_refused_with_a_reason(
    compiler: ConstraintCompiler, constraint: Constraint, message: str
) -> None:
    with pytest.raises(ConstraintError, match=message) as caught:
        compiler.compile(constraint)
    assert caught.value.hint
    assert len(str(caught.value)) < 900


# What is made to do harm.


def chain(length: int) -> dict[str, Any]:
    links = {f"d{index}": {"$ref": f"#/$defs/d{index + 1}"} for index in range(length)}
    return {"$defs": links | {f"d{length}": {"type": "string"}}, "$ref": "#/$defs/d0"}


def rules(name: str, count: int, body: str) -> Constraint:
    """A grammar of rules, or of terminals, that follow on each other."""
    lines = [f"{name}{index}: " + body.replace("NEXT", f"{name}{index + 1}") for index in range(count)]
    return Constraint("lark", "\n".join([f"start: {name}0", *lines, f'{name}{count}: "a"']))


MANY_PATTERNS = {"allOf": [{"type": "string", "pattern": f".*{chr(97 + index)}.*"} for index in range(20)]}

HOSTILE = {
    "stack overflow by references": schema(chain(3000)),
    "stack overflow by rules": rules("x", 6000, '"a" NEXT'),
    "patterns in one allOf": schema(MANY_PATTERNS),
    "the same in a default": schema({"default": MANY_PATTERNS, "$ref": "#/default"}),
    "the same in a grammar": Constraint("lark", f"start: %json {json.dumps(MANY_PATTERNS)}"),
    "factors in one allOf": schema(
        {"allOf": [{"type": "integer", "multipleOf": factor} for factor in (97, 89, 83, 79)]}
    ),
    "many factors": schema(
        {"properties": {f"p{index}": {"type": "integer", "multipleOf": 9973 + index} for index in range(60)}}
    ),
    "optional letters": Constraint("regex", "a?" * 30_000),
    "doubling terminals": rules("X", 60, "NEXT NEXT"),
    "deep nesting": schema('{"items":' * 10_000 + "{}" + "}" * 10_000),
    "deep parentheses": Constraint("regex", "(" * 20_000 + "a" + ")" * 20_000),
    "long text": schema({"enum": ["a" * 200_000]}),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_compile__harm_is_refused_soon_and_costs_no_memory(compiler: ConstraintCompiler, name: str) -> None:
    compiler.compile(schema({"type": "object"}))
    process = psutil.Process()
    before_bytes, started = process.memory_info().rss, time.monotonic()
    with pytest.raises(ConstraintError):
        compiler.compile(HOSTILE[name])
    assert time.monotonic() - started < 35
    assert process.memory_info().rss - before_bytes < 16 * 2**20


@pytest.mark.parametrize(
    "constraint",
    [
        schema({"type": "string", "minLength": 10**9, "maxLength": 10**9}),
        schema({"type": "array", "items": {"type": "integer"}, "minItems": 10**9}),
        schema({"type": "string", "pattern": "^((((a{1,100}){1,100}){1,100}){1,100}){1,100}$"}),
        schema({"type": "string", "pattern": "^.*a.{1000}$"}),
        Constraint("lark", 'start: ("a"{1000000}){1000000}'),
        Constraint(
            "lark", "start: x0\n" + "".join(f"x{i}: x{i + 1} x{i + 1}\n" for i in range(60)) + 'x60: "a"'
        ),
        Constraint("regex", "(.*a.{250}){250}"),
    ],
    ids=["length", "items", "nested repeats", "states", "rule repeats", "doubling rules", "more states"],
)
def test_sample__harm_while_drawing_ends_in_an_error_or_goes_on_fast(
    runner: LlamaRunner, compiler: ConstraintCompiler, constraint: Constraint
) -> None:
    prompt = runner.tokenize(PROMPT, add_special=True, parse_special=True)
    runner.forget(0, 0)
    (row,) = runner.run([Slice(0, 0, prompt, sample=True)])
    process = psutil.Process()
    before_bytes, started = process.memory_info().rss, time.thread_time()
    matcher = compiler.compile(constraint)
    sampler = runner.open_sampler(Sampling(temperature=2.0, seed=1), prompt)
    sampler.constrain(matcher)
    try:
        for _ in range(60):
            sampler.sample(row)
    except ConstraintError as error:
        assert error.hint
    sampler.close()
    assert time.thread_time() - started < 8
    assert process.memory_info().rss - before_bytes < 64 * 2**20


def test_compile__from_many_threads_at_once(compiler: ConstraintCompiler) -> None:
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for index in range(4):
                constraint = schema({"enum": [f"{number % 3}-{index}"]})
                assert tokens_in(compiler.compile(constraint).allowed())
                with pytest.raises(ConstraintError):
                    compiler.compile(schema({"type": f"{number}"}))
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_compiler__costs_nothing_before_the_first_constraint() -> None:
    script = """
import sys
from edgekit.engine.constraint import ConstraintCompiler
def no(*_): raise AssertionError
ConstraintCompiler(10**9, piece=no, special=no, ends=[0], tokenize=no)
assert "llguidance" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)
