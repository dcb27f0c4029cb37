"""Topic names: edgekit/v1/<fleet>/<device>/{status,telemetry,event}."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from edgekit.errors import TelemetryError

__all__ = ["KINDS", "Kind", "Topic", "check_name", "parse_topic", "subscription"]

Kind = Literal["status", "telemetry", "event"]
KINDS: tuple[Kind, ...] = get_args(Kind)

_PREFIX = ("edgekit", "v1")
_MAX_NAME_BYTES = 64


def check_name(name: str, *, what: str) -> str:
    """Give `name` back if it can be one level of a topic.

    Args:
        what: what the name is for, e.g. "device".

    Raises:
        TelemetryError: it is empty, longer than 64 bytes of UTF-8, starts or ends with a space, or holds
            '/', '+', '#' or a control character (MQTT 5.0, sections 1.5.4 and 4.7).
    """
    problem = _problem(name)
    if problem is None:
        return name
    raise TelemetryError(
        f"{name!r} cannot be the name of a {what}: {problem}",
        hint="use letters, digits, '-', '_' and '.', at most 64 of them",
    )


def _problem(name: str) -> str | None:
    if not name:
        return "it is empty"
    try:
        length = len(name.encode())
    except UnicodeEncodeError:
        return "it is not valid Unicode"
    if length > _MAX_NAME_BYTES:
        return f"it has {length} bytes"
    for character in name:
        if character in "/+#":
            return f"{character!r} has a meaning in MQTT topics"
        if not character.isprintable():
            return f"it holds the character {character!r}"
    if name != name.strip():
        return "it starts or ends with a space"
    return None


@dataclass(frozen=True, slots=True)
class Topic:
    """Where one kind of a device's messages goes. `str(topic)` is its MQTT name."""

    fleet: str
    device: str
    kind: Kind

    def __post_init__(self) -> None:
        check_name(self.fleet, what="fleet")
        check_name(self.device, what="device")

    def __str__(self) -> str:
        return "/".join((*_PREFIX, self.fleet, self.device, self.kind))


def parse_topic(name: str) -> Topic:
    """The topic of an MQTT topic name.

    Raises:
        TelemetryError: it is none of edgekit's, or of another version.
    """
    levels = name.split("/")
    if len(levels) == 5 and tuple(levels[:2]) == _PREFIX:
        for kind in KINDS:
            if levels[4] == kind:
                return Topic(levels[2], levels[3], kind)
    raise TelemetryError(f"{name!r} is not a topic of edgekit/v1")


def subscription(fleet: str = "+", device: str = "+", kind: Kind | Literal["+"] = "+") -> str:
    """The MQTT topic filter for the given levels; "+" takes all.

    Raises:
        TelemetryError: a name is not valid.
    """
    for name, what in ((fleet, "fleet"), (device, "device")):
        if name != "+":
            check_name(name, what=what)
    return "/".join((*_PREFIX, fleet, device, kind))
