"""Publishes a device's status, telemetry and events, in the background.

Two threads: one samples the device and closes a window every interval, the other owns the connection. The
engine's thread does no more than append a record to a deque, whatever the broker does.
"""

from __future__ import annotations

import itertools
import logging
import os
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType, TracebackType
from typing import Any, Final, Literal, TypeVar

from edgekit import __version__
from edgekit.device import Board, PowerMeter, Readings, Sensors, detect_board, read_boot_id
from edgekit.engine.base import Engine, EngineStats, RequestRecord
from edgekit.errors import TelemetryError
from edgekit.telemetry.address import parse_broker_url
from edgekit.telemetry.connection import Backoff, Connection, Session
from edgekit.telemetry.messages import (
    BoardInfo,
    Event,
    MemoryUse,
    ServedModel,
    Status,
    Telemetry,
    ThrottleState,
    encode_message,
)
from edgekit.telemetry.outbox import Outbox, Outgoing
from edgekit.telemetry.plausible import is_plausible_power, plausible
from edgekit.telemetry.topics import Topic
from edgekit.telemetry.window import (
    PowerSample,
    WindowFigures,
    mean_power_w,
    summarize_window,
    tokens_per_joule,
)

__all__ = ["Clock", "Publisher"]

logger = logging.getLogger(__name__)

_MAX_IN_FLIGHT: Final = 20
_MAX_RECORDS: Final = 4096
_POWER_INTERVAL_S: Final = 1.0
_MAX_POWER_SAMPLES: Final = 4096
"""A longer window has the mean of its last hour."""

T = TypeVar("T")
Severity = Literal["info", "warning", "error"]
Detail = Mapping[str, "str | int | float | bool | None"]


@dataclass(frozen=True, slots=True)
class Clock:
    """Seconds of the clocks that messages are stamped with."""

    monotonic: Callable[[], float] = time.monotonic
    utc: Callable[[], float] = time.time


class Publisher:
    """Tells a broker how this device serves.

    Args:
        url: the broker; see `parse_broker_url`.
        fleet: name of the fleet, one topic level.
        device: name of the device, one topic level, unique in the fleet.
        engine: what is observed; None when there is none to observe: then only status and events are told.
        sensors: what is read once each interval.
        model: what is served; None when nothing is.
        interval_s: length of a window in seconds, more than 0.
        board: what the device is; found out when None.
        boot_id: name of this boot; the kernel's when None.
        clock: where times come from.
        backoff: waits between tries to connect.
        outbox: where messages wait while the broker is away.

    Raises:
        TelemetryError: the URL, a name or the interval is not valid, or a certificate cannot be read. A
            broker that cannot be reached is no error: it is tried for until `close`.
    """

    def __init__(
        self,
        url: str,
        *,
        fleet: str,
        device: str,
        engine: Engine | None,
        sensors: Sensors,
        model: ServedModel | None,
        interval_s: float = 10.0,
        board: Board | None = None,
        boot_id: str | None = None,
        clock: Clock | None = None,
        backoff: Backoff | None = None,
        outbox: Outbox | None = None,
    ) -> None:
        if not interval_s > 0:
            raise TelemetryError(
                f"a telemetry interval of {interval_s} s is not possible",
                hint="use a number above 0, such as 10",
            )
        self._topics = {kind: Topic(fleet, device, kind) for kind in ("status", "telemetry", "event")}
        self._engine = engine
        self._sensors = sensors
        self._model = model
        self._interval_s = interval_s
        self._board = _board_info(board or detect_board())
        self._clock = clock or Clock()
        self._sender: dict[str, Any] = {
            "fleet": fleet,
            "device": device,
            "boot_id": boot_id or read_boot_id() or str(uuid.uuid4()),
            "agent_version": __version__,
        }
        self._started_utc_ms = round(self._clock.utc() * 1000)
        # An agent that restarts within a boot goes on above the numbers of the last one.
        self._seq = itertools.count(round(self._clock.monotonic() * 1000))
        self._outbox = outbox if outbox is not None else Outbox()
        self._link = _Link(self._outbox, self._status)
        self._connection = Connection(
            parse_broker_url(url),
            client_id=f"edgekit-{fleet}-{device}",
            peer=self._link,
            backoff=backoff,
        )
        self._records: deque[RequestRecord] = deque(maxlen=_MAX_RECORDS)
        self._failures: set[str] = set()
        self._throttled: tuple[str, ...] = ()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="edgekit-telemetry", daemon=True)
        self._window_from_s = self._clock.monotonic()
        self._stats = EngineStats()
        self._power: deque[PowerSample] = deque(maxlen=_MAX_POWER_SAMPLES)

    def __enter__(self) -> Publisher:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def is_online(self) -> bool:
        """Whether the broker is connected now."""
        return self._connection.is_online

    @property
    def pending(self) -> int:
        """Messages that the broker has not acknowledged."""
        return len(self._outbox)

    def start(self) -> None:
        """Begin to observe and to publish. Returns at once, whether the broker is there or not."""
        if self._engine is not None:
            self._stats = self._try("engine", self._engine.stats) or EngineStats()
            self._engine.observe(self._records.append)
        self._window_from_s = self._clock.monotonic()
        self._sample_power()
        self._connection.start()
        self._thread.start()

    def close(self, timeout_s: float = 3.0) -> None:
        """Publish the last window and "offline", and disconnect. Takes about `timeout_s` at most."""
        close_by_s = time.monotonic() + timeout_s
        self._stopping.set()
        if self._thread.ident is not None:
            # A sensor that hangs must leave time for the farewell.
            self._thread.join(timeout_s / 2)
        self._connection.close(max(0.0, close_by_s - time.monotonic()))

    def event(
        self, event: str, detail: Detail = MappingProxyType({}), *, severity: Severity = "info"
    ) -> None:
        """Publish that something happened. Returns at once; callable from any thread.

        Args:
            event: a name of lower-case letters, digits and '_'.
        """
        message = Event(
            **self._stamp(), seq=next(self._seq), event=event, severity=severity, detail=dict(detail)
        )
        self._outbox.put(Outgoing(str(self._topics["event"]), encode_message(message), keep=True))
        self._connection.wake()

    def _run(self) -> None:
        meters_power = bool(self._power)
        next_window_s = time.monotonic() + self._interval_s
        stopping = False
        while not stopping:
            wait_s = max(0.0, next_window_s - time.monotonic())
            stopping = self._stopping.wait(min(wait_s, _POWER_INTERVAL_S) if meters_power else wait_s)
            try:
                self._sample_power()
                if stopping or time.monotonic() >= next_window_s:
                    self._publish_window(final=stopping)
                    # After a suspend, go on from now: the windows missed are one long one.
                    next_window_s = max(next_window_s, time.monotonic() - self._interval_s) + self._interval_s
            except Exception as error:  # the service must go on without telemetry, but not in silence
                self._note_failure("telemetry", error)

    def _publish_window(self, *, final: bool) -> None:
        now_s = self._clock.monotonic()
        stats = None if self._engine is None else self._try("engine", self._engine.stats)
        if stats is None:
            return
        records = [self._records.popleft() for _ in range(len(self._records))]
        figures = summarize_window(
            self._stats, stats, records, window_s=max(0.0, now_s - self._window_from_s)
        )
        if final and figures.idle:
            return
        readings, odd = plausible(self._try("sensors", self._sensors.read) or Readings())
        for name in odd:
            self._note_failure("sensors", ValueError(f"{name} has a value that cannot be"))
        power_w = mean_power_w(tuple(self._power)) if len(self._power) > 1 else readings.power_total_w
        message = self._telemetry(figures, readings, power_w)
        self._outbox.put(Outgoing(str(self._topics["telemetry"]), encode_message(message)))
        self._stats, self._window_from_s = stats, now_s
        while len(self._power) > 1:
            self._power.popleft()
        self._connection.wake()
        self._tell_throttling(readings)

    def _telemetry(self, figures: WindowFigures, readings: Readings, power_w: float | None) -> Telemetry:
        throttle = readings.throttle
        return Telemetry(
            **self._stamp(),
            seq=next(self._seq),
            window_s=figures.window_s,
            model=self._model,
            decode=figures.decode,
            prefill=figures.prefill,
            busy_percent=figures.busy_percent,
            ttft_s=figures.ttft_s,
            inter_token_s=figures.inter_token_s,
            requests=figures.requests,
            kv_cells=figures.kv_cells,
            memory=MemoryUse(
                process_rss_bytes=readings.process_rss_bytes,
                process_private_bytes=readings.process_private_bytes,
                used_bytes=readings.memory_used_bytes,
                available_bytes=readings.memory_available_bytes,
            ),
            cpu_percent=readings.cpu_percent,
            cpu_frequency_mhz=readings.cpu_frequency_mhz,
            gpu_percent=readings.gpu_percent,
            temperatures_c=dict(readings.temperatures_c),
            power_w=dict(readings.power_w),
            power_total_w=power_w,
            tokens_per_joule=tokens_per_joule(figures.decode.tokens, power_w, figures.window_s),
            power_mode=readings.power_mode,
            throttle=None
            if throttle is None
            else ThrottleState(now=throttle.now, since_boot=throttle.since_boot),
            dropped_messages=self._outbox.dropped,
        )

    def _tell_throttling(self, readings: Readings) -> None:
        if readings.throttle is None or readings.throttle.now == self._throttled:
            return
        before, self._throttled = self._throttled, readings.throttle.now
        self.event(
            "throttle",
            {"causes": ",".join(self._throttled), "causes_before": ",".join(before)},
            severity="warning" if self._throttled else "info",
        )

    def _sample_power(self) -> None:
        if isinstance(self._sensors, PowerMeter):
            watts = self._try("power meter", self._sensors.read_power_w)
            if watts is not None and is_plausible_power(watts):
                self._power.append(PowerSample(self._clock.monotonic(), watts))

    def _status(
        self,
        state: Literal["online", "offline"],
        reason: Literal["started", "reconnected", "shutdown", "connection lost"],
    ) -> Outgoing:
        message = Status(
            **self._stamp(),
            state=state,
            reason=reason,
            started_utc_ms=self._started_utc_ms,
            interval_s=self._interval_s,
            model=self._model,
            board=self._board,
        )
        return Outgoing(str(self._topics["status"]), encode_message(message), retain=True)

    def _stamp(self) -> dict[str, Any]:
        return {
            **self._sender,
            "time_utc_ms": round(self._clock.utc() * 1000),
            "monotonic_ms": round(self._clock.monotonic() * 1000),
        }

    def _try(self, what: str, read: Callable[[], T]) -> T | None:
        try:
            return read()
        except Exception as error:  # a broken sensor must not take the rest of the message with it
            self._note_failure(what, error)
            return None

    def _note_failure(self, what: str, error: Exception) -> None:
        """One line for each kind of failure: what fails every second would fill the log."""
        line = f"{what}: {type(error).__name__}: {error}"
        if line not in self._failures and len(self._failures) < 20:
            self._failures.add(line)
            logger.warning("telemetry goes on without a reading of the %s", line)


class _Link:
    """The publisher's side of the connection. Runs on the connection's thread."""

    def __init__(self, outbox: Outbox, status: Callable[..., Outgoing]) -> None:
        self._outbox = outbox
        self._status = status
        self._was_online = False
        self._farewell_ticket: int | None = None
        self._refused: set[tuple[str, str]] = set()

    def will(self) -> Outgoing | None:
        return self._status("offline", "connection lost")

    def online(self, session: Session) -> None:
        session.publish(self._status("online", "reconnected" if self._was_online else "started"))
        self._was_online = True

    def pump(self, session: Session) -> None:
        while self._outbox.in_flight < _MAX_IN_FLIGHT and (message := self._outbox.peek()) is not None:
            self._outbox.sent(message, session.publish(message))

    def acknowledged(self, ticket: int, refusal: str | None) -> None:
        message = self._outbox.acknowledge(ticket)
        if ticket == self._farewell_ticket:
            self._farewell_ticket = None
        if refusal is not None:
            topic = message.topic if message is not None else "the status topic"
            if (topic, refusal) not in self._refused:
                self._refused.add((topic, refusal))
                logger.warning("the broker does not take messages on %s: %s", topic, refusal)

    def subscribed(self, refusal: str | None) -> None:
        pass

    def received(self, topic: str, payload: bytes, *, retained: bool) -> None:
        pass

    def offline(self, reason: str) -> None:
        self._outbox.requeue()

    def farewell(self, session: Session) -> None:
        self._farewell_ticket = session.publish(self._status("offline", "shutdown"))

    def settled(self) -> bool:
        return self._farewell_ticket is None and len(self._outbox) == 0


def _board_info(board: Board) -> BoardInfo:
    page_size_bytes = os.sysconf("SC_PAGE_SIZE")
    return BoardInfo(
        family=board.family, model=board.model, system=board.system, page_size_bytes=page_size_bytes
    )
