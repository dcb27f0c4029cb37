from __future__ import annotations

import random
from collections.abc import Sequence

import pytest

from edgekit.engine.kv_cache import KvCache, Lease, common_prefix


def filled(cache: KvCache, tokens: Sequence[int], *, parked: bool = False) -> Lease:
    lease = cache.lease()
    cache.extend(lease, tokens)
    if parked:
        cache.park(lease)
    return lease


def test_find__longest_common_beginning_wins() -> None:
    cache = KvCache(cells=1000, sequences=4)
    history = list(range(40))
    filled(cache, history[:20], parked=True)
    longer = filled(cache, [*history[:30], 999])
    found = cache.find(history)
    assert (found.lease, found.length) == (longer, 30)


def test_find__last_prompt_token_is_left_to_compute() -> None:
    cache = KvCache(cells=100, sequences=2)
    filled(cache, list(range(20)), parked=True)
    assert cache.find(list(range(20))).length == 19


def test_find__short_common_beginning_is_not_worth_it() -> None:
    cache = KvCache(cells=100, sequences=2)
    filled(cache, [5, 6, 7, 8], parked=True)
    assert cache.find([5, 6, 7, 8, 9]).lease is None


def test_take_over__parked_history_that_the_prompt_goes_on_from_is_taken_whole() -> None:
    cache = KvCache(cells=100, sequences=2)
    history = list(range(20))
    parked = filled(cache, [*history, 77], parked=True)
    lease = cache.take_over(cache.find([*history, 88, 99]))
    assert lease is parked
    assert lease.tokens == history
    assert cache.used == 20


def test_take_over__history_that_goes_on_otherwise_stays_for_its_chat() -> None:
    cache = KvCache(cells=100, sequences=2)
    filled(cache, list(range(40)), parked=True)
    assert cache.take_over(cache.find([*range(20), 88, 99])) is None


def test_take_over__running_sequence_is_never_taken() -> None:
    cache = KvCache(cells=100, sequences=2)
    filled(cache, list(range(20)))
    assert cache.take_over(cache.find([*range(20), 88])) is None


def test_share__common_cells_count_once_until_the_last_holder_goes() -> None:
    cache = KvCache(cells=100, sequences=4)
    first = filled(cache, list(range(40)))
    second = cache.lease()
    cache.share(first, second, 30, copied=False)
    cache.extend(second, [70, 71])
    assert (cache.used, cache.available) == (42, 58)
    cache.release(first)
    assert (cache.used, cache.available) == (32, 68)
    cache.park(second)
    assert (cache.used, cache.available) == (32, 100)
    cache.release(second)
    assert cache.used == 0


def test_share__copied_cells_count_for_both() -> None:
    cache = KvCache(cells=100, sequences=4)
    first = filled(cache, list(range(40)))
    cache.share(first, cache.lease(), 30, copied=True)
    assert cache.used == 70


def test_oldest__parked_longest_goes_first_and_one_can_be_spared() -> None:
    cache = KvCache(cells=100, sequences=3)
    leases = [filled(cache, [index] * 10) for index in range(3)]
    for index in (1, 0, 2):
        cache.park(leases[index])
    assert cache.oldest() is leases[1]
    assert cache.oldest(but=leases[1]) is leases[0]


def test_surplus__oldest_go_until_the_rest_fits_its_share_and_the_newest_stays() -> None:
    cache = KvCache(cells=100, sequences=4)
    leases = [filled(cache, [index] * 10, parked=True) for index in range(4)]
    gone = []
    while (surplus := cache.surplus()) is not None:
        gone.append(surplus)
        cache.release(surplus)
    assert gone == leases[:2]


class Cells:
    """The cells themselves, kept one by one: what the books must agree with."""

    def __init__(self) -> None:
        self.held: dict[int, list[int]] = {}
        self._next = 0

    def extend(self, sequence: int, count: int) -> None:
        self.held[sequence] += range(self._next, self._next + count)
        self._next += count

    def used(self, sequences: set[int]) -> int:
        return len({cell for sequence in sequences for cell in self.held[sequence]})


@pytest.mark.parametrize("seed", range(4))
def test_books__agree_with_the_cells_over_random_operations(seed: int) -> None:
    draw = random.Random(seed)
    cache, cells = KvCache(cells=10_000, sequences=8), Cells()
    running: list[Lease] = []
    parked: list[Lease] = []
    for _ in range(2500):
        action = draw.random()
        if action < 0.35 and cache.has_free_sequence:
            prompt = [draw.randint(0, 1)] * draw.randint(1, 60)
            found = cache.find(prompt)
            lease = cache.take_over(found)
            if lease is not None:
                parked.remove(lease)
                del cells.held[lease.sequence][len(lease.tokens) :]
            else:
                lease = cache.lease()
                cells.held[lease.sequence] = []
                if found.lease is not None:
                    cache.share(found.lease, lease, found.length, copied=False)
                    cells.held[lease.sequence] = cells.held[found.lease.sequence][: found.length]
            assert lease.tokens == prompt[: found.length]
            running.append(lease)
        elif action < 0.7 and running:
            lease, count = draw.choice(running), draw.randint(1, 20)
            cache.extend(lease, [draw.randint(0, 1)] * count)
            cells.extend(lease.sequence, count)
        elif action < 0.85 and running:
            lease = running.pop(draw.randrange(len(running)))
            cache.park(lease)
            parked.append(lease)
        elif running and action < 0.93:
            cache.release(running.pop(draw.randrange(len(running))))
        elif (oldest := cache.oldest()) is not None:
            parked.remove(oldest)
            cache.release(oldest)
        everybody = {lease.sequence for lease in [*running, *parked]}
        assert cache.used == cells.used(everybody)
        assert cache.available == cache.cells - cells.used({lease.sequence for lease in running})


@pytest.mark.parametrize("seed", range(50))
def test_common_prefix__agrees_with_a_loop(seed: int) -> None:
    draw = random.Random(seed)
    held = [draw.randint(0, 9) for _ in range(draw.randint(0, 200))]
    prompt = held[: draw.randint(0, 200)] + [draw.randint(0, 9) for _ in range(draw.randint(0, 50))]
    limit = draw.randint(-1, 250)
    count = 0
    while count < min(len(held), len(prompt), limit) and held[count] == prompt[count]:
        count += 1
    assert common_prefix(held, prompt, limit) == count
