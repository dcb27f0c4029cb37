"""Signs of life for systemd: given on the loop that serves, and only while the engine is proven to work."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Final

from edgekit.engine.base import Engine
from edgekit.errors import EdgekitError, EngineBusyError
from edgekit.server.proof import decode_one_token
from edgekit.server.systemd import Systemd

__all__ = ["Heartbeat"]

log = logging.getLogger(__name__)

_EXTEND_EVERY_S: Final = 5.0
_EXTEND_BY_S: Final = 20.0
_LONGEST_LOAD_S: Final = 30 * 60.0
"""A load that takes longer is not waited for: systemd's own limit holds again."""


class Heartbeat:
    """Tells systemd that the service loads, then that it lives.

    An engine lives when steps have ended since the last look, when the step under way is not older than a
    step may be (past that the step watchdog ends the process), or else, when nothing was asked of it, when it
    decodes a token now.

    Args:
        systemd: who is told.
        engine: the engine once its model is ready, None before.
        max_step_s: how long a step may take.
    """

    def __init__(self, systemd: Systemd, engine: Callable[[], Engine | None], *, max_step_s: float) -> None:
        self._systemd = systemd
        self._engine = engine
        self._max_step_s = max_step_s
        self._steps = -1

    async def run(self) -> None:
        """Until cancelled."""
        if not self._systemd.present:
            return
        engine = await self._loaded()
        if self._systemd.watchdog_s is None:
            return
        interval_s = self._systemd.watchdog_s / 2
        while True:
            began_s = time.monotonic()
            if await self._is_alive(engine, timeout_s=interval_s * 0.8):
                self._systemd.alive()
            await asyncio.sleep(max(0.0, interval_s - (time.monotonic() - began_s)))

    async def _loaded(self) -> Engine:
        give_up_s = time.monotonic() + _LONGEST_LOAD_S
        extend_at_s = 0.0
        while (engine := self._engine()) is None:
            now_s = time.monotonic()
            if extend_at_s <= now_s < give_up_s:
                self._systemd.extend(_EXTEND_BY_S)
                extend_at_s = now_s + _EXTEND_EVERY_S
            await asyncio.sleep(0.1)
        return engine

    async def _is_alive(self, engine: Engine, *, timeout_s: float) -> bool:
        steps = engine.stats().steps
        if steps != self._steps:
            self._steps = steps
            return True
        age_s = engine.step_age_s()
        if age_s is not None:
            return age_s <= self._max_step_s
        try:
            await asyncio.to_thread(decode_one_token, engine, timeout_s=timeout_s)
        except EngineBusyError:
            # Its queue is full and no step ends: the next look will tell.
            return False
        except EdgekitError as error:
            log.error("no sign of life for systemd: %s", error.message)
            return False
        self._steps = engine.stats().steps
        return True
