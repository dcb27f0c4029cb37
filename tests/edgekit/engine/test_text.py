from __future__ import annotations

import random

import pytest

from edgekit.engine.text import StopFilter, adds_special, longest_overlap


def test_push__stop_string_over_several_tokens_is_cut() -> None:
    stream = StopFilter(["</answer>"])
    assert stream.push("42</ans") == "42"
    assert not stream.stopped
    assert stream.push("wer> and more") == ""
    assert stream.stopped
    assert stream.finish() == ""


def test_push__beginning_of_a_stop_string_that_goes_on_otherwise_is_released() -> None:
    stream = StopFilter(["END"])
    assert stream.push("E") == ""
    assert stream.push("N") == ""
    assert stream.push("ough") == "ENough"
    assert not stream.stopped


def test_push__earliest_of_several_stops_wins() -> None:
    stream = StopFilter(["later", "soon"])
    assert stream.push("very soon or later") == "very "


def test_push__empty_stop_strings_are_ignored() -> None:
    stream = StopFilter(["", ""])
    assert stream.push("text") == "text"


def test_finish__held_text_is_given_out() -> None:
    stream = StopFilter(["STOP"])
    assert stream.push("go STO") == "go "
    assert stream.finish() == "STO"


@pytest.mark.parametrize("seed", range(20))
def test_push__cut_does_not_depend_on_how_text_is_split(seed: int) -> None:
    draw = random.Random(seed)
    text = "".join(draw.choices("ab✂é", k=60))
    stops = ["".join(draw.choices("ab✂é", k=draw.randint(2, 4))) for _ in range(3)]
    ends = [at for stop in stops if (at := text.find(stop)) >= 0]
    expected = text[: min(ends)] if ends else text

    stream, pieces, data = StopFilter(stops), [], text
    while data and not stream.stopped:
        size = draw.randint(1, 5)
        pieces.append(stream.push(data[:size]))
        data = data[size:]
    pieces.append(stream.finish())
    assert "".join(pieces) == expected


def test_longest_overlap__is_shorter_than_the_stop() -> None:
    assert longest_overlap("xxab", "abc") == 2
    assert longest_overlap("abc", "abc") == 0


@pytest.mark.parametrize(
    ("prompt", "bos_text", "adds"),
    [("<s>Hello", "<s>", False), ("Hello<s>", "<s>", True), ("Hello", "", True), ("", "<s>", True)],
)
def test_adds_special__a_bos_that_the_template_wrote_is_not_doubled(
    prompt: str, bos_text: str, adds: bool
) -> None:
    assert adds_special(prompt, bos_text) is adds
