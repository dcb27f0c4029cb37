from __future__ import annotations

import random

import pytest

from edgekit.engine.onnx.rows import Rows


class Memory:
    """What rows hold, and what moving it has cost."""

    def __init__(self, sequences: int) -> None:
        self.tokens: dict[int, list[int]] = {sequence: [] for sequence in range(sequences)}
        self.held: list[tuple[int, ...] | None] = [None] * (sequences + 1)
        self.moved = 0
        self.rows = Rows(sequences, self.move)

    def move(self, source: int, target: int, tokens: int) -> None:
        held = self.held[source]
        assert self.held[target] is None and held is not None and len(held) == tokens
        self.held[source], self.held[target] = None, held
        self.moved += tokens

    def write(self, sequence: int, count: int) -> None:
        row = self.rows[sequence]
        self.tokens[sequence] += [random.getrandbits(30) for _ in range(count)]
        self.held[row] = tuple(self.tokens[sequence])

    def release(self, sequence: int) -> None:
        row = self.rows.release(sequence)
        assert row is not None
        self.held[row] = None
        self.tokens[sequence] = []

    def line_up(self, sequences: list[int]) -> list[int]:
        first = self.rows.line_up(sequences, lambda sequence: len(self.tokens[sequence]))
        rows = [self.rows[sequence] for sequence in sequences]
        assert sorted(rows) == list(range(first, first + len(rows)))
        assert [self.held[row] for row in rows] == [tuple(self.tokens[sequence]) for sequence in sequences]
        return rows


def test_rows__streams_that_start_one_after_another_lie_side_by_side() -> None:
    memory = Memory(6)
    for count in range(1, 5):
        memory.write(count - 1, 10)
        memory.line_up(list(range(count)))
    assert memory.moved == 0


def test_rows__a_stream_at_the_end_of_the_batch_leaves_no_gap() -> None:
    memory = Memory(6)
    for sequence in range(4):
        memory.write(sequence, 10)
    memory.line_up([0, 1, 2, 3])
    memory.line_up([1, 2, 3])
    memory.line_up([1, 2])
    assert memory.moved == 0


def test_rows__the_shortest_stream_fills_a_gap() -> None:
    memory = Memory(6)
    for sequence, count in enumerate((100, 50, 90, 7)):
        memory.write(sequence, count)
    memory.line_up([0, 1, 2, 3])
    memory.release(1)
    memory.line_up([0, 2, 3])
    assert memory.moved == 7


def test_rows__a_parked_sequence_makes_way_when_that_is_cheaper() -> None:
    memory = Memory(6)
    for sequence, count in enumerate((100, 5, 90)):
        memory.write(sequence, count)
    memory.line_up([0, 1, 2])
    memory.line_up([0, 2])
    assert memory.moved == 5 + 90
    memory.line_up([0, 2])
    assert memory.moved == 5 + 90


@pytest.mark.parametrize("seed", range(4))
def test_rows__whatever_comes_and_goes_every_row_keeps_its_tokens(seed: int) -> None:
    world = random.Random(seed)
    memory = Memory(7)
    held: set[int] = set()
    for _ in range(400):
        sequence = world.randrange(7)
        if sequence in held and world.random() < 0.3:
            memory.release(sequence)
            held.discard(sequence)
        else:
            memory.write(sequence, world.randrange(1, 9))
            held.add(sequence)
        if held:
            memory.line_up(world.sample(sorted(held), world.randint(1, len(held))))
    assert {sequence for sequence in range(7) if memory.tokens[sequence]} == held
