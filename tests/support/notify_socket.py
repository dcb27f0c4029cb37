"""The end of sd_notify(3) that systemd holds."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

Message = dict[str, str]


class NotifySocket:
    """A real datagram socket; `name` is for NOTIFY_SOCKET."""

    def __init__(self, receiver: socket.socket, name: str) -> None:
        self._receiver = receiver
        self.name = name
        self.messages: list[Message] = []

    def next(self, timeout_s: float = 30.0) -> Message | None:
        """The next message; None when none comes in time."""
        self._receiver.settimeout(timeout_s)
        try:
            data = self._receiver.recv(8192).decode()
        except (TimeoutError, BlockingIOError):
            return None
        message = dict(line.split("=", 1) for line in data.splitlines())
        self.messages.append(message)
        return message

    def wait_for(self, condition: Callable[[Message], bool], timeout_s: float = 60.0) -> Message:
        """The first message to come that is meant."""
        end_s = time.monotonic() + timeout_s
        while True:
            left_s = end_s - time.monotonic()
            assert left_s > 0, f"only these came: {self.messages}"
            message = self.next(left_s)
            if message is not None and condition(message):
                return message


@contextmanager
def notify_socket(path: Path | str) -> Iterator[NotifySocket]:
    """Listen at a path, or at an abstract name, which begins with @."""
    name = str(path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind("\0" + name[1:] if name.startswith("@") else name)
        yield NotifySocket(receiver, name)
