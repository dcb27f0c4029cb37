from __future__ import annotations

from edgekit.engine.base import Request
from edgekit.engine.kv_cache import Lease
from edgekit.engine.stream import Stream
from edgekit.engine.waiting_line import WaitingLine


def stream(client: str, *, stepped_back: bool = False) -> Stream:
    made = Stream(Request((1,), client=client), lambda event: None, now=0.0, wake=lambda: None)
    if stepped_back:
        made.start(Lease(0), now=0.0)
    return made


def test_in_turn__client_with_the_fewest_running_streams_is_next() -> None:
    line = WaitingLine()
    waiting = [stream("a"), stream("a"), stream("b"), stream("c")]
    for one in waiting:
        line.join(one)
    assert line.in_turn([]) == waiting
    assert line.in_turn([stream("a")]) == [waiting[2], waiting[3], waiting[0], waiting[1]]
    assert line.in_turn([stream("a"), stream("b")]) == [waiting[3], waiting[0], waiting[1], waiting[2]]


def test_in_turn__who_stepped_back_comes_before_all_others() -> None:
    line = WaitingLine()
    new, back = stream("a"), stream("b", stepped_back=True)
    line.join(new)
    line.join(back)
    assert line.in_turn([stream("b"), stream("b")]) == [back, new]
