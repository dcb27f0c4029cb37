"""Shows how far a long step is: a bar on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Final, Protocol, TextIO

__all__ = ["Progress", "silent", "stream_progress"]

_BAR_CELLS: Final = 28
_REDRAW_S: Final = 0.1


class Progress(Protocol):
    """Takes the state of a step. Cheap to call often."""

    def __call__(self, what: str, done: float, total: float | None) -> None:
        """`what` names the step; `total` None: not known how much there is to do; done == total ends it."""


def silent(what: str, done: float, total: float | None) -> None:
    """A Progress that shows nothing."""


def stream_progress(
    stream: TextIO | None = None, *, every_s: float = 30.0, clock: Callable[[], float] = time.monotonic
) -> Progress:
    """A Progress that writes to `stream` (default: standard error).

    A terminal gets a bar that is drawn over; anything else gets a line when a step begins, every `every_s`
    seconds, and when it ends.
    """
    out = sys.stderr if stream is None else stream
    return _Bar(out, clock) if out.isatty() else _Lines(out, every_s, clock)


class _Bar:
    def __init__(self, out: TextIO, clock: Callable[[], float]) -> None:
        self._out, self._clock = out, clock
        self._what, self._began, self._drawn = "", 0.0, 0.0

    def __call__(self, what: str, done: float, total: float | None) -> None:
        now = self._clock()
        if what != self._what:
            self._what, self._began, self._drawn = what, now, now - _REDRAW_S
        ended = total is not None and done >= total
        if not ended and now - self._drawn < _REDRAW_S:
            return
        self._drawn = now
        elapsed = _clock_time(now - self._began)
        bar = ""
        if total is not None:
            share = min(done / max(total, 1), 1.0)
            cells = int(_BAR_CELLS * share)
            bar = "█" * cells + "░" * (_BAR_CELLS - cells) + f" {100 * share:3.0f} %  "
        self._out.write(f"\r\x1b[K{what}  {bar}{elapsed}")
        if ended:
            self._out.write("\n")
            self._what = ""
        self._out.flush()


class _Lines:
    def __init__(self, out: TextIO, every_s: float, clock: Callable[[], float]) -> None:
        self._out, self._every_s, self._clock = out, every_s, clock
        self._what, self._began, self._written = "", 0.0, 0.0

    def __call__(self, what: str, done: float, total: float | None) -> None:
        now = self._clock()
        if what != self._what:
            self._what, self._began, self._written = what, now, now
            self._write(f"{what} ...")
            return
        elapsed = _clock_time(now - self._began)
        if total is not None and done >= total:
            self._write(f"{what}: done after {elapsed}")
            self._what = ""
        elif now - self._written >= self._every_s:
            self._written = now
            share = f"{100 * done / total:.0f} %, " if total else ""
            self._write(f"{what}: {share}{elapsed}")

    def _write(self, line: str) -> None:
        self._out.write(line + "\n")
        self._out.flush()


def _clock_time(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"
