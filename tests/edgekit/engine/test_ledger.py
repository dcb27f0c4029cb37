from __future__ import annotations

from edgekit.engine.base import FinishReason, RequestRecord
from edgekit.engine.ledger import Ledger


def record(busy_s: float) -> RequestRecord:
    return RequestRecord(
        prompt_tokens=4,
        cached_tokens=0,
        completion_tokens=8,
        queue_s=9.0,
        prefill_s=busy_s / 4,
        decode_s=busy_s * 3 / 4,
    )


def test_expected_wait__from_what_requests_took_and_how_many_are_ahead() -> None:
    ledger = Ledger(lambda: 0.0)
    for _ in range(3):
        ledger.note_request(record(4.0), FinishReason.STOP)
    assert ledger.expected_wait_s(7, streams=2) == 16.0
    assert ledger.expected_wait_s(0, streams=8) == 1.0


def test_expected_wait__cancelled_requests_say_nothing_about_it() -> None:
    ledger = Ledger(lambda: 0.0)
    ledger.note_request(record(4.0), FinishReason.STOP)
    ledger.note_request(record(0.1), FinishReason.CANCELLED)
    assert ledger.expected_wait_s(1, streams=1) == 8.0


def test_note_gap__counts_fall_into_their_bounds() -> None:
    ledger = Ledger(lambda: 0.0)
    for seconds in (0.001, 0.002, 0.0021, 9.0, None):
        ledger.note_gap(seconds)
    gaps = ledger.snapshot(active=0, queued=0, kv_cells_used=0, kv_cells_total=0).gaps
    assert gaps.bounds_s[0] == 0.002
    assert (gaps.counts[0], gaps.counts[1], gaps.counts[-1], sum(gaps.counts)) == (2, 1, 1, 4)
