from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from edgekit.server.watchdog import STUCK_EXIT_CODE, StepWatchdog


class Clock:
    """Time that passes when the watchdog waits."""

    def __init__(self, until_s: float) -> None:
        self.now_s = 0.0
        self.until_s = until_s
        self.over = threading.Event()

    def wait(self, seconds: float) -> bool:
        self.now_s += seconds
        if self.now_s > self.until_s:
            self.over.set()
            return True
        return False


def watch(
    age_s: Callable[[float], float | None],
    on_stuck: Callable[[float], None] = lambda age_s: None,
    *,
    until_s: float = 100,
) -> tuple[list[int], Clock]:
    """Watch steps of an age that time decides; gives the exit codes and the clock."""
    clock = Clock(until_s)
    codes: list[int] = []

    def leave(code: int) -> None:
        codes.append(code)
        clock.over.set()

    watchdog = StepWatchdog(
        lambda: age_s(clock.now_s), limit_s=8.0, on_stuck=on_stuck, leave=leave, wait=clock.wait, grace_s=3.0
    )
    watchdog.start()
    assert clock.over.wait(30)
    return codes, clock


def test_watchdog__a_step_that_is_too_old_ends_the_process(caplog: pytest.LogCaptureFixture) -> None:
    told: list[float] = []
    heard = threading.Event()

    def on_stuck(age_s: float) -> None:
        told.append(age_s)
        heard.set()

    codes, clock = watch(lambda now_s: now_s - 10 if now_s > 10 else None, on_stuck)
    assert codes == [STUCK_EXIT_CODE]
    assert heard.wait(30)
    assert 8 < told[0] <= 10
    # Seen a quarter of the limit late at most; then comes the grace.
    assert 18 < clock.now_s <= 10 + 8 + 2 + 3
    assert "may take 8 s" in caplog.text


@pytest.mark.parametrize("age_s", [None, 0.0, 7.9, 8.0])
def test_watchdog__steps_that_end_in_time_are_let_be(age_s: float | None) -> None:
    codes, _ = watch(lambda _now_s: age_s)
    assert codes == []


def test_watchdog__ends_the_process_though_telling_fails(caplog: pytest.LogCaptureFixture) -> None:
    def on_stuck(_age_s: float) -> None:
        raise RuntimeError("the broker is on fire")

    codes, _ = watch(lambda now_s: now_s, on_stuck)
    assert codes == [STUCK_EXIT_CODE]


def test_watchdog__ends_the_process_though_telling_hangs() -> None:
    never = threading.Event()
    codes, _ = watch(lambda now_s: now_s, lambda _age_s: never.wait(60) and None)
    assert codes == [STUCK_EXIT_CODE]
    never.set()


def test_stop__ends_the_watch() -> None:
    looked = threading.Event()

    def age_s() -> float | None:
        looked.set()
        return None

    watchdog = StepWatchdog(age_s, limit_s=0.02, leave=lambda code: pytest.fail("the process has ended"))
    watchdog.start()
    assert looked.wait(30)
    watchdog.stop()
    watchdog._thread.join(30)
    assert not watchdog._thread.is_alive()
