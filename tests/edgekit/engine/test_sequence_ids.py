from __future__ import annotations

import random

from edgekit.engine.sequence_ids import SequenceIds


def test_make_computable__every_sequence_keeps_what_it_holds() -> None:
    held: dict[int, str] = {number: f"of {number}" for number in range(9)}
    held[9] = ""

    def move(source: int, target: int) -> None:
        assert held[target] == ""
        held[target], held[source] = held[source], ""

    ids = SequenceIds(9, 3, move)
    draw = random.Random(1)
    for _ in range(300):
        wanted = draw.sample(range(9), draw.randint(1, 3))
        ids.make_computable(wanted)
        assert all(ids[sequence] < 3 for sequence in wanted)
        assert [held[ids[sequence]] for sequence in range(9)] == [f"of {number}" for number in range(9)]


def test_make_computable__low_ids_stay_where_they_are() -> None:
    def move(source: int, target: int) -> None:
        raise AssertionError("nothing has to move")

    ids = SequenceIds(9, 3, move)
    ids.make_computable([2, 0])
    assert (ids[0], ids[2]) == (0, 2)
