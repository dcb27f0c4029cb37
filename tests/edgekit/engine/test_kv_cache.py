from __future__ import annotations

import random

from edgekit.engine.kv_cache import KvCache, Lease


def test_lease__parked_sequence_with_the_longest_common_beginning_is_taken() -> None:
    cache = KvCache(cells=1000, sequences=4)
    history = list(range(40))
    first, second = cache.lease([1]), cache.lease([1])
    cache.extend(first, history[:20])
    cache.extend(second, [*history[:30], 999])
    cache.park(first)
    cache.park(second)
    lease = cache.lease(history)
    assert lease is second
    assert lease.tokens == history[:30]
    assert cache.used == 50


def test_lease__last_prompt_token_is_left_to_compute() -> None:
    cache = KvCache(cells=100, sequences=2)
    lease = cache.lease([1])
    cache.extend(lease, list(range(20)))
    cache.park(lease)
    assert len(cache.lease(list(range(20))).tokens) == 19


def test_lease__short_common_beginning_does_not_cost_a_parked_sequence() -> None:
    cache = KvCache(cells=100, sequences=2)
    lease = cache.lease([1])
    cache.extend(lease, [5, 6, 7, 8])
    cache.park(lease)
    assert cache.lease([5, 6, 9]) is not lease


def test_evict__parked_longest_goes_first() -> None:
    cache = KvCache(cells=100, sequences=3)
    leases = [cache.lease([index]) for index in range(3)]
    for index, lease in enumerate(leases):
        cache.extend(lease, [index] * 10)
    for index in (1, 0, 2):
        cache.park(leases[index])
    assert cache.evict() is leases[1]
    assert cache.evict() is leases[0]
    assert cache.used == 10
    assert cache.evict() is leases[2]
    assert cache.evict() is None


def test_evict_surplus__oldest_go_until_the_rest_fits_its_share_and_the_newest_stays() -> None:
    cache = KvCache(cells=100, sequences=4)
    leases = [cache.lease([index]) for index in range(4)]
    for index, lease in enumerate(leases):
        cache.extend(lease, [index] * 10)
        cache.park(lease)
    assert cache.evict_surplus() is leases[0]
    assert cache.evict_surplus() is leases[1]
    assert cache.evict_surplus() is None
    longest = cache.lease([7])
    cache.extend(longest, [7] * 60)
    cache.park(longest)
    assert cache.evict_surplus() is leases[2]
    assert cache.evict_surplus() is leases[3]
    assert cache.evict_surplus() is None


def test_books__balance_over_random_operations() -> None:
    draw = random.Random(7)
    cache = KvCache(cells=10_000, sequences=8)
    held: list[Lease] = []
    for _ in range(3000):
        action = draw.random()
        if action < 0.4 and cache.has_sequence:
            held.append(cache.lease([draw.randint(0, 2) for _ in range(draw.randint(1, 40))]))
        elif action < 0.7 and held:
            cache.extend(draw.choice(held), [draw.randint(0, 2) for _ in range(draw.randint(1, 5))])
        elif action < 0.85 and held:
            cache.park(held.pop(draw.randrange(len(held))))
        elif action < 0.95 and held:
            cache.release(held.pop(draw.randrange(len(held))))
        else:
            cache.evict()
        everything = [*held, *cache._parked, *cache._free]
        assert sorted(lease.sequence for lease in everything) == list(range(8))
        assert cache.used == sum(len(lease.tokens) for lease in everything)
        assert cache.available == cache.cells - sum(len(lease.tokens) for lease in held)
