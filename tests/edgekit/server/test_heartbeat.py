from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from front_server import HandEngine, HandStream, wait_until
from notify_socket import NotifySocket, notify_socket

from edgekit.errors import EngineBusyError, EngineStoppedError
from edgekit.server.heartbeat import Heartbeat
from edgekit.server.systemd import Systemd

INTERVAL_S = 0.2


@contextmanager
def beating(tmp_path: Path, engine: HandEngine | None, *, watchdog: bool = True) -> Iterator[NotifySocket]:
    """A heart that beats on a loop of its own."""
    with notify_socket(tmp_path / "notify") as told:
        environ = {"NOTIFY_SOCKET": told.name}
        if watchdog:
            environ["WATCHDOG_USEC"] = str(round(2 * INTERVAL_S * 1e6))
        heartbeat = Heartbeat(Systemd(environ), lambda: engine, max_step_s=5.0)
        loop = asyncio.new_event_loop()
        task = loop.create_task(heartbeat.run())

        def run() -> None:
            with suppress(asyncio.CancelledError):
                loop.run_until_complete(task)

        thread = threading.Thread(target=run)
        thread.start()
        try:
            yield told
        finally:
            loop.call_soon_threadsafe(task.cancel)
            thread.join(30)
            loop.close()


def first_beat(told: NotifySocket) -> None:
    """The first look at an engine finds steps that have ended: those before it."""
    assert told.next() == {"WATCHDOG": "1"}


def test_heartbeat__idle_engine_decodes_a_token_for_each_beat(tmp_path: Path) -> None:
    engine = HandEngine(on_submit=lambda stream: stream.give("x"))
    with beating(tmp_path, engine) as told:
        first_beat(told)
        for count in (1, 2):
            assert told.next() == {"WATCHDOG": "1"}
            assert len(engine.streams) >= count
    assert all(stream.cancelled.is_set() for stream in engine.streams[:2])
    assert engine.streams[0].request.client == "edgekit"


def test_heartbeat__idle_engine_that_does_not_answer_is_dead(tmp_path: Path) -> None:
    engine = HandEngine()
    with beating(tmp_path, engine) as told:
        first_beat(told)
        engine.stream(2)  # it was asked three times
        assert told.next(0) is None
        engine.on_submit = lambda stream: stream.give("x")
        assert told.next() == {"WATCHDOG": "1"}


def test_heartbeat__failed_engine_is_dead(tmp_path: Path) -> None:
    asked = threading.Semaphore(0)

    class Failing(HandEngine):
        def submit(self, request: object, sink: object) -> object:
            asked.release()
            raise EngineStoppedError("it is over")

    with beating(tmp_path, Failing()) as told:
        first_beat(told)
        assert asked.acquire(timeout=30)
        assert asked.acquire(timeout=30)
        assert told.next(0) is None


def test_heartbeat__busy_engine_is_asked_nothing(tmp_path: Path) -> None:
    engine = HandEngine(refusal=EngineBusyError(64, 3.0))
    with beating(tmp_path, engine) as told:
        first_beat(told)
        for _ in range(3):
            engine.steps += 1
            assert told.next() == {"WATCHDOG": "1"}
    assert engine.streams == []


def test_heartbeat__full_queue_and_no_steps_is_dead(tmp_path: Path) -> None:
    engine = HandEngine(refusal=EngineBusyError(64, 3.0))
    with beating(tmp_path, engine) as told:
        first_beat(told)
        assert told.next(4 * INTERVAL_S) is None


def test_heartbeat__long_step_is_life_until_it_is_too_long(tmp_path: Path) -> None:
    engine = HandEngine(step_age=4.0)
    with beating(tmp_path, engine) as told:
        first_beat(told)
        assert told.next() == {"WATCHDOG": "1"}
        engine.step_age = 6.0
        told.next(2 * INTERVAL_S)  # one may be under way
        assert told.next(4 * INTERVAL_S) is None
    assert engine.streams == []


def test_heartbeat__asks_for_time_while_loading_and_beats_only_if_asked_to(tmp_path: Path) -> None:
    with beating(tmp_path, None) as told:
        assert told.next() == {"EXTEND_TIMEOUT_USEC": "20000000"}
    (tmp_path / "notify").unlink()
    with beating(tmp_path, HandEngine(), watchdog=False) as told:
        assert told.next(2 * INTERVAL_S) is None


def test_heartbeat__stream_of_a_beat_ends_at_its_first_token(tmp_path: Path) -> None:
    tokens: list[int] = []

    def answer(stream: HandStream) -> None:
        def work() -> None:
            while not stream.cancelled.is_set():
                tokens.append(1)
                stream.give("x")

        thread = threading.Thread(target=work)
        thread.start()

    engine = HandEngine(on_submit=answer)
    with beating(tmp_path, engine) as told:
        first_beat(told)
        assert told.next() == {"WATCHDOG": "1"}
        wait_until(engine.streams[0].cancelled.is_set)
