"""Ends the process when a step of the engine hangs: a native call cannot be interrupted."""

from __future__ import annotations

import faulthandler
import logging
import os
import sys
import threading
from collections.abc import Callable
from typing import Final

__all__ = ["STUCK_EXIT_CODE", "StepWatchdog"]

log = logging.getLogger(__name__)

STUCK_EXIT_CODE: Final = 70
"""EX_SOFTWARE of sysexits.h: whoever watches the process starts a new one."""
_LONGEST_LOOK_S: Final = 5.0


class StepWatchdog:
    """Looks at the age of the engine's step from a thread of its own.

    A call that holds Python's interpreter lock stops this thread as well; systemd's watchdog ends such a
    process, since it gets no more signs of life.

    Args:
        step_age_s: seconds since the step under way began, None between steps; see `Engine.step_age_s`.
        limit_s: a step that is older is stuck.
        on_stuck: called once with the step's age, to tell whoever can be told. It may block.
        grace_s: how long `on_stuck` may take, and clients have to hear of it.
        leave: ends the process.
        wait: waits for so many seconds; true ends the watch.
    """

    def __init__(
        self,
        step_age_s: Callable[[], float | None],
        *,
        limit_s: float,
        on_stuck: Callable[[float], None] = lambda age_s: None,
        grace_s: float = 3.0,
        leave: Callable[[int], object] = os._exit,
        wait: Callable[[float], bool] | None = None,
    ) -> None:
        self._step_age_s = step_age_s
        self._limit_s = limit_s
        self._on_stuck = on_stuck
        self._grace_s = grace_s
        self._leave = leave
        self._stopping = threading.Event()
        self._wait = wait or self._stopping.wait
        self._thread = threading.Thread(target=self._run, name="step-watchdog", daemon=True)

    def start(self) -> None:
        """Begin to watch."""
        self._thread.start()

    def stop(self) -> None:
        """End the watch: the engine has been closed. Returns at once."""
        self._stopping.set()

    def _run(self) -> None:
        while not self._wait(min(self._limit_s / 4, _LONGEST_LOOK_S)):
            age_s = self._step_age_s()
            if age_s is not None and age_s > self._limit_s:
                self._end(age_s)
                return

    def _end(self, age_s: float) -> None:
        log.critical(
            "a step of the engine has been running for %.0f s, and may take %.0f s: the process ends",
            age_s,
            self._limit_s,
        )
        # Not daemon threads' manners, but what is told may block on whatever hangs.
        told = threading.Thread(target=self._tell, args=(age_s,), daemon=True)
        told.start()
        self._wait(self._grace_s)
        if sys.stderr is not None:
            faulthandler.dump_traceback(all_threads=True)
        for handler in logging.getLogger().handlers:
            handler.flush()
        self._leave(STUCK_EXIT_CODE)

    def _tell(self, age_s: float) -> None:
        try:
            self._on_stuck(age_s)
        except Exception:
            log.exception("nobody could be told of the step that hangs")
