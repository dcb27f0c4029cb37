from __future__ import annotations

from itertools import takewhile

import pytest
from timed_sse import Script, TimedServer

from edgekit.errors import EdgekitError, UsageError
from edgekit.http_load import Ask, ClosedLoop, Numbered, RandomWords, Target, measure, words_of_length


def common_words(one: str, other: str) -> int:
    pairs = zip(one.split(), other.split(), strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


def test_numbered__a_number_of_its_own_each() -> None:
    assert Numbered("Say %d.").prompt(7) == "Say 7."
    assert Numbered("100 % sure").prompt(7) == "100 % sure"


def test_random_words__same_number_same_prompt_and_no_two_alike() -> None:
    words = RandomWords(40, shared=10, seed=1)
    prompts = [words.prompt(number) for number in range(50)]
    assert prompts == [words.prompt(number) for number in range(50)]
    assert len(set(prompts)) == 50
    assert all(common_words(prompts[0], prompt) >= 10 for prompt in prompts)
    assert max(common_words(prompts[0], prompt) for prompt in prompts[1:]) <= 14
    assert RandomWords(40, shared=10, seed=2).prompt(0) != prompts[0]


def test_words_of_length__what_the_server_counts_is_what_was_wanted(server_url: str) -> None:
    target = Target.parse(server_url)
    words = words_of_length(target, 200, shared_tokens=120)
    figures = measure(target, ClosedLoop(1, 3, Ask(max_tokens=2, prompts=words))).figures
    assert figures.prompt_tokens == pytest.approx(200, rel=0.06)
    assert figures.cached_tokens is not None
    # The first one computes what the others share.
    assert 120 * 2 / 3 * 0.85 <= figures.cached_tokens <= 200


def test_words_of_length__shorter_than_the_template() -> None:
    script = Script(answer=lambda body: 30 + len(body["messages"][0]["content"].split()))
    with TimedServer(lambda number: script) as server:
        target = Target.parse(server.url)
        assert words_of_length(target, 137).count == 100
        with pytest.raises(UsageError, match="the chat template takes 37") as caught:
            words_of_length(target, 20)
        assert "45 or more" in str(caught.value.hint)
        with pytest.raises(UsageError, match="cannot share"):
            words_of_length(target, 100, shared_tokens=101)


def test_words_of_length__server_that_does_not_count() -> None:
    with TimedServer(lambda number: Script(status=500)) as server:
        target = Target.parse(server.url)
        with pytest.raises(EdgekitError, match="answers 500"):
            words_of_length(target, 100)
    with (
        TimedServer(lambda number: Script(answer=lambda body: 5)) as server,
        pytest.raises(EdgekitError, match="counts no tokens"),
    ):
        words_of_length(Target.parse(server.url), 100)
