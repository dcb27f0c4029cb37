from __future__ import annotations

import pytest

from edgekit.engine.pace import PrefillPace


def taught(*, decode_step_s: float, token_s: float) -> PrefillPace:
    pace = PrefillPace(128)
    for _ in range(20):
        pace.note(decode_step_s, decoded=4, prefilled=0)
        pace.note(decode_step_s + 32 * token_s, decoded=4, prefilled=32)
    return pace


def test_budget__unknown_cost_is_bounded_by_what_the_profile_says() -> None:
    assert PrefillPace(128).budget() == 128


@pytest.mark.parametrize(
    ("decode_step_s", "token_s", "tokens"),
    [
        (0.1, 0.002, 50),  # as long again as a step
        (0.1, 0.02, 16),  # so slow that fewer at a time would only cost more
        (0.004, 0.0005, 30),  # so short that nobody notices
        (0.1, 0.0001, 128),
    ],
)
def test_budget__prompts_cost_as_long_again_as_a_step_or_a_moment(
    decode_step_s: float, token_s: float, tokens: int
) -> None:
    pace = taught(decode_step_s=decode_step_s, token_s=token_s)
    assert abs(pace.budget() - tokens) <= 1


def test_note__pure_prefill_teaches_the_cost_of_a_token() -> None:
    pace = PrefillPace(256)
    pace.note(0.128, decoded=0, prefilled=128)
    pace.note(0.050, decoded=1, prefilled=0)
    assert pace.budget() == 50
