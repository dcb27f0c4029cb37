"""Has SIGTERM end a verb as Ctrl-C does: what it made is removed, what it started is stopped."""

from __future__ import annotations

import signal
from typing import NoReturn

__all__ = ["interrupt_on_sigterm"]


def interrupt_on_sigterm() -> None:
    """Raise KeyboardInterrupt in the main thread on SIGTERM, which service managers send."""
    signal.signal(signal.SIGTERM, _interrupt)


def _interrupt(_number: int, _frame: object) -> NoReturn:
    # A second one must not interrupt the clearing up; who cannot wait has SIGKILL.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise KeyboardInterrupt
