from __future__ import annotations

from edgekit.telemetry.outbox import Outbox, Outgoing


def message(name: str, *, keep: bool = False, size: int = 10) -> Outgoing:
    return Outgoing(name, b"x" * size, keep=keep)


def drain(outbox: Outbox) -> list[str]:
    names = []
    while (waiting := outbox.peek()) is not None:
        names.append(waiting.topic)
        outbox.sent(waiting, len(names))
    return names


def test_full__drops_the_oldest_telemetry_and_keeps_events() -> None:
    outbox = Outbox(max_messages=3)
    for name, keep in [("event-1", True), ("t-1", False), ("t-2", False), ("t-3", False), ("event-2", True)]:
        outbox.put(message(name, keep=keep))
    assert drain(outbox) == ["event-1", "t-3", "event-2"]
    assert outbox.dropped == 2


def test_full__of_events_drops_the_oldest_of_them() -> None:
    outbox = Outbox(max_messages=2)
    for number in range(4):
        outbox.put(message(f"event-{number}", keep=True))
    assert drain(outbox) == ["event-2", "event-3"]


def test_bytes__are_bounded_too() -> None:
    outbox = Outbox(max_messages=1000, max_bytes=100)
    for number in range(30):
        outbox.put(message(f"t-{number}"))
    assert len(outbox) == 10
    outbox.put(message("too large", size=101))
    assert len(outbox) == 0
    outbox.put(message("fits"))
    assert drain(outbox) == ["fits"]


def test_requeue__puts_unacknowledged_messages_first_and_in_order() -> None:
    outbox = Outbox()
    for number in range(4):
        outbox.put(message(f"t-{number}"))
    for ticket in (11, 12, 13):
        waiting = outbox.peek()
        assert waiting is not None
        outbox.sent(waiting, ticket)
    acknowledged = outbox.acknowledge(12)
    assert acknowledged is not None
    assert acknowledged.topic == "t-1"
    assert outbox.acknowledge(12) is None
    assert outbox.in_flight == 2
    outbox.requeue()
    assert drain(outbox) == ["t-0", "t-2", "t-3"]


def test_acknowledged__frees_its_bytes() -> None:
    outbox = Outbox(max_bytes=20)
    for number in range(100):
        outbox.put(message(f"t-{number}"))
        waiting = outbox.peek()
        assert waiting is not None
        outbox.sent(waiting, number)
        outbox.acknowledge(number)
    assert outbox.dropped == 0
    assert len(outbox) == 0


def test_sent__message_that_was_dropped_meanwhile_is_not_kept() -> None:
    outbox = Outbox(max_messages=1)
    outbox.put(message("old"))
    waiting = outbox.peek()
    assert waiting is not None
    outbox.put(message("new"))
    outbox.sent(waiting, 1)
    assert outbox.in_flight == 0
    assert drain(outbox) == ["new"]
