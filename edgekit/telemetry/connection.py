"""One MQTT session, held open by one thread for as long as it takes.

The thread alone touches paho's client, through the calls that paho has for foreign event loops: nothing that
other threads do here can wait for the network. Each connection is a new client, so no state of a lost one
can leak into the next.
"""

from __future__ import annotations

import contextlib
import logging
import random
import selectors
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, Protocol

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

from edgekit.telemetry.address import BrokerAddress
from edgekit.telemetry.outbox import Outgoing

__all__ = ["Backoff", "Connection", "Peer", "Session"]

logger = logging.getLogger(__name__)

_UNSUPPORTED_PROTOCOL: Final = 132  # MQTT 5.0, table 3-1
_SESSION_TAKEN_OVER: Final = 142  # MQTT 5.0, table 3-10
_TICK_S: Final = 1.0
# A broker that does not answer in time may be slow, or may be waiting for the rest of what it cannot read
# (amqtt does so with a will of MQTT 5): the other version is tried, then this one with twice the patience.
_FIRST_ANSWER_S: Final = 3.0
_LONGEST_ANSWER_S: Final = 30.0
_HUNG_UP: Final = "the broker hung up"
_SILENT: Final = "the broker does not answer"
# After so many sessions in a row that did not last, something is wrong with more than the network.
_FLAPPING: Final = 3
# A session that lasted this long was a good one: the next try begins with the shortest wait again.
_GOOD_SESSION_S: Final = 30.0
_VERSION_NAMES: Final = {MQTTProtocolVersion.MQTTv5: "MQTT 5", MQTTProtocolVersion.MQTTv311: "MQTT 3.1.1"}


@dataclass(frozen=True, slots=True)
class Backoff:
    """Waits between tries, in seconds: doubling from `first_s` to `longest_s`, each shortened at random by
    up to a half so that a fleet does not come back all at once."""

    first_s: float = 1.0
    longest_s: float = 60.0

    def waits_s(self) -> Iterator[float]:
        wait_s = self.first_s
        while True:
            yield wait_s * random.uniform(0.5, 1.0)  # noqa: S311 - spreads load, keeps no secret
            wait_s = min(self.longest_s, wait_s * 2)


class Session:
    """What a peer can do while it is online. Only for use on the connection's thread."""

    def __init__(self, client: mqtt.Client) -> None:
        self._client = client

    def publish(self, message: Outgoing) -> int:
        """Hand a message to the client; gives the ticket under which it will be acknowledged."""
        return self._client.publish(message.topic, message.payload, qos=1, retain=message.retain).mid

    def subscribe(self, topic_filter: str) -> None:
        self._client.subscribe(topic_filter, qos=1)


class Peer(Protocol):
    """What a connection is for. All methods are called on the connection's thread and must not block."""

    def will(self) -> Outgoing | None:
        """The message that the broker publishes when the connection to come is lost."""

    def online(self, session: Session) -> None:
        """The broker has let us in."""

    def pump(self, session: Session) -> None:
        """Send what waits. Called after all that happens, while online."""

    def acknowledged(self, ticket: int, refusal: str | None) -> None:
        """The broker has a published message, or says why it does not take it."""

    def subscribed(self, refusal: str | None) -> None:
        """The broker answered a subscription."""

    def received(self, topic: str, payload: bytes, *, retained: bool) -> None:
        """A message came."""

    def offline(self, reason: str) -> None:
        """A try failed or the session ended. What was not acknowledged may not have arrived."""

    def farewell(self, session: Session) -> None:
        """The connection is being closed: the last chance to publish."""

    def settled(self) -> bool:
        """Whether nothing is left to wait for before disconnecting."""


@dataclass(slots=True)
class _Attempt:
    """How far a try to connect came, as the callbacks tell it."""

    online_at_s: float | None = None
    refusal: str | None = None
    refusal_code: int | None = None
    ending: str | None = None
    ending_code: int | None = None


class Connection:
    """Keeps a session with a broker open until it is closed. Never gives up.

    Args:
        address: the broker.
        client_id: the client's name; a broker closes an older connection of the same name.
        peer: what to do with the session.
        keepalive_s: a broker that is silent for longer than this, twice, is taken for gone.

    Raises:
        TelemetryError: a certificate file of the address cannot be read.
    """

    def __init__(
        self,
        address: BrokerAddress,
        *,
        client_id: str,
        peer: Peer,
        keepalive_s: int = 30,
        backoff: Backoff | None = None,
    ) -> None:
        self._address = address
        self._client_id = client_id
        self._peer = peer
        self._keepalive_s = keepalive_s
        self._backoff = backoff or Backoff()
        self._tls = address.tls_context()
        self._wake_reader, self._wake_writer = socket.socketpair()
        self._wake_reader.setblocking(False)
        self._wake_writer.setblocking(False)
        self._closing = threading.Event()
        self._close_by_s = 0.0
        self._version = MQTTProtocolVersion.MQTTv5
        self._answer_s = _FIRST_ANSWER_S
        self._told_version = False
        self._told_reasons: set[str] = set()
        self._short_sessions = 0
        self._is_online = threading.Event()
        self._thread = threading.Thread(target=self._run, name="edgekit-mqtt", daemon=True)

    @property
    def is_online(self) -> bool:
        """Whether the broker has let us in and the connection was not lost since."""
        return self._is_online.is_set()

    def start(self) -> None:
        self._thread.start()

    def wake(self) -> None:
        """Have the peer's `pump` called soon. Never blocks; callable from any thread."""
        # Full: it will wake anyway. Closed: nobody is left to wake.
        with contextlib.suppress(OSError):
            self._wake_writer.send(b"\0")

    def close(self, timeout_s: float = 3.0) -> None:
        """Say farewell and disconnect, within `timeout_s`; at once when there is no connection."""
        self._close_by_s = time.monotonic() + timeout_s
        self._closing.set()
        self.wake()
        if self._thread.ident is None:
            self._wake_reader.close()
        elif self._thread is not threading.current_thread():
            # A try to connect cannot be interrupted: the thread is left to end by itself.
            self._thread.join(timeout_s + _TICK_S if self.is_online else min(timeout_s, _TICK_S))
        self._wake_writer.close()

    def _run(self) -> None:
        waits_s = self._backoff.waits_s()
        while not self._closing.is_set():
            attempt = self._attempt()
            self._is_online.clear()
            reason = attempt.refusal or attempt.ending or "the connection was closed"
            self._peer.offline(reason)
            if self._closing.is_set():
                break
            if self._change_version(attempt):
                continue
            if attempt.online_at_s is not None:
                self._version = MQTTProtocolVersion.MQTTv5  # the broker may come back as a newer one
                self._short_sessions += 1
                if time.monotonic() - attempt.online_at_s > _GOOD_SESSION_S:
                    self._short_sessions = 0
                    self._told_reasons.clear()
                    waits_s = self._backoff.waits_s()
            self._tell_offline(attempt, reason)
            self._closing.wait(next(waits_s))
        self._wake_reader.close()

    def _attempt(self) -> _Attempt:
        attempt = _Attempt()
        try:
            client = self._client(attempt)
            client.connect(self._address.host, self._address.port, keepalive=self._keepalive_s)
            try:
                self._hold(client, attempt)
            finally:
                if (
                    sock := client.socket()
                ) is not None:  # given up by us: without DISCONNECT, so the will holds
                    sock.close()
        except OSError as error:  # of the name look-up, of TCP or of TLS
            attempt.ending = (
                getattr(error, "verify_message", None) or error.strerror or str(error) or type(error).__name__
            )
        except Exception as error:  # telemetry must not end while the service goes on
            logger.debug("unexpected error on the connection to %s", self._address, exc_info=True)
            attempt.ending = f"{type(error).__name__}: {error}"
        return attempt

    def _client(self, attempt: _Attempt) -> mqtt.Client:
        client = mqtt.Client(
            CallbackAPIVersion.VERSION2,
            client_id=self._client_id,
            protocol=self._version,
            reconnect_on_failure=False,
        )
        if self._address.username is not None:
            client.username_pw_set(self._address.username, self._address.password)
        if self._tls is not None:
            client.tls_set_context(self._tls)
        will = self._peer.will()
        if will is not None:
            client.will_set(will.topic, will.payload, qos=1, retain=will.retain)

        def on_connect(_c: Any, _u: Any, _flags: Any, reason: Any, _properties: Any) -> None:
            if reason.is_failure:
                attempt.refusal, attempt.refusal_code = str(reason), reason.value
                return
            attempt.online_at_s = time.monotonic()
            self._tell_online()
            self._is_online.set()
            self._peer.online(Session(client))

        def on_disconnect(_c: Any, _u: Any, flags: Any, reason: Any, _properties: Any) -> None:
            if flags.is_disconnect_packet_from_server:
                attempt.ending, attempt.ending_code = f"the broker says: {reason}", reason.value
            elif attempt.ending is None:  # paho calls a second time when the socket is closed after that
                attempt.ending = "the connection was lost" if attempt.online_at_s else _HUNG_UP

        def on_publish(_c: Any, _u: Any, ticket: int, reason: Any, _properties: Any) -> None:
            self._peer.acknowledged(ticket, str(reason) if reason.is_failure else None)

        def on_subscribe(_c: Any, _u: Any, _ticket: int, reasons: Any, _properties: Any) -> None:
            refusals = [str(reason) for reason in reasons if reason.is_failure]
            self._peer.subscribed(refusals[0] if refusals else None)

        def on_message(_c: Any, _u: Any, message: mqtt.MQTTMessage) -> None:
            self._peer.received(message.topic, bytes(message.payload), retained=message.retain)

        client.on_connect = on_connect
        client.on_disconnect = on_disconnect
        client.on_publish = on_publish
        client.on_subscribe = on_subscribe
        client.on_message = on_message
        return client

    def _hold(self, client: mqtt.Client, attempt: _Attempt) -> None:
        """Serve the client's socket until it is closed, by the broker or by us."""
        answer_by_s = time.monotonic() + self._answer_s
        saying_farewell = False
        disconnecting = False
        with selectors.DefaultSelector() as selector:
            selector.register(self._wake_reader, selectors.EVENT_READ)
            if (sock := client.socket()) is not None:
                selector.register(sock, selectors.EVENT_READ)
            while (sock := client.socket()) is not None:
                writing = selectors.EVENT_WRITE if client.want_write() else 0
                selector.modify(sock, selectors.EVENT_READ | writing)
                # TLS may have read more from the socket than it has given us yet.
                unread = getattr(sock, "pending", lambda: 0)() > 0
                ready = {key.fileobj: mask for key, mask in selector.select(0 if unread else _TICK_S)}
                if self._wake_reader in ready:
                    self._wake_reader.recv(4096)
                mask = ready.get(sock, 0)
                if mask & selectors.EVENT_READ or unread:
                    client.loop_read()
                if mask & selectors.EVENT_WRITE:
                    client.loop_write()
                client.loop_misc()
                online = attempt.online_at_s is not None
                if not online and time.monotonic() > answer_by_s:
                    attempt.ending = attempt.ending or _SILENT
                    return
                if online and not disconnecting:
                    self._peer.pump(Session(client))
                if not self._closing.is_set() or disconnecting:
                    continue
                if not online:
                    return
                if not saying_farewell:
                    self._peer.farewell(Session(client))
                    saying_farewell = True
                if self._peer.settled() or time.monotonic() > self._close_by_s:
                    client.disconnect()
                    disconnecting = True

    def _change_version(self, attempt: _Attempt) -> bool:
        """Take the other version of MQTT if the broker seems not to speak this one. True: try it at once."""
        if attempt.online_at_s is not None:
            return False
        if self._version is MQTTProtocolVersion.MQTTv5:
            # MQTT 3.1.1 brokers say "unsupported protocol", or hang up, or wait for the rest of it.
            if attempt.refusal_code == _UNSUPPORTED_PROTOCOL or attempt.ending in (_HUNG_UP, _SILENT):
                self._version = MQTTProtocolVersion.MQTTv311
                return True
            return False
        if attempt.ending == _SILENT:
            self._answer_s = min(_LONGEST_ANSWER_S, 2 * self._answer_s)
        self._version = MQTTProtocolVersion.MQTTv5
        return False

    def _tell_online(self) -> None:
        if self._short_sessions >= _FLAPPING:
            return  # it has been said; the next lines come when a session lasts
        self._told_reasons.clear()
        logger.info("connected to the broker %s (%s)", self._address, _VERSION_NAMES[self._version])
        if self._version is not MQTTProtocolVersion.MQTTv5 and not self._told_version:
            self._told_version = True
            logger.warning("the broker %s does not speak MQTT 5: going on with MQTT 3.1.1", self._address)

    def _tell_offline(self, attempt: _Attempt, reason: str) -> None:
        """One line for each reason of an outage, however many tries it takes."""
        flapping = attempt.online_at_s is not None and self._short_sessions == _FLAPPING
        if reason in self._told_reasons and not flapping:
            return
        self._told_reasons.add(reason)
        did = "lost the broker" if attempt.online_at_s is not None else "cannot reach the broker"
        hint = ""
        # Some brokers say why they close a connection (mosquitto 2.0 does not).
        if attempt.ending_code == _SESSION_TAKEN_OVER or flapping:
            hint = f": is there another client that calls itself {self._client_id!r}, a name used twice?"
        logger.warning("%s %s: %s; trying until it is back%s", did, self._address, reason, hint)
