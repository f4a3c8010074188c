"""One connection: a stream, a codec, and the tasks that move bytes between them."""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING, Final

import trio

from traksense.errors import BrokerError, BrokerRefusedError, ConnectionLostError, SessionTakenOverError
from traksense.mqtt.codec import Connected, Disconnected, ProtocolError
from traksense.mqtt.stream import reason, root

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from traksense.mqtt.codec import Codec, Event
    from traksense.mqtt.stream import Stream

READ_BYTES: Final = 64 * 1024
HANDSHAKE_TIMEOUT_SECONDS: Final = 15.0
FAREWELL_TIMEOUT_SECONDS: Final = 2.0
"""How long we wait, after DISCONNECT, for the broker to close: long enough for it to read our last PUBACKs."""

SILENCE: Final = 1.5
"""In keepalives: no byte for so long, although we ping twice in each, means a dead peer. Source: MQTT 5.0 §3.1.2.10
gives the server the same measure for us."""

SESSION_TAKEN_OVER: Final = 0x8E
OTHER_VERSION: Final = {
    "5": "if it speaks MQTT 3.1.1 only, set MQTT_VERSION=3.1.1",
    "3.1.1": "if it speaks MQTT 5 only, set MQTT_VERSION=5",
}
TLS_PORT: Final = "if this is its port for TLS, write mqtts:// in MQTT_URL"
_CREDENTIALS: Final = "check this name and MQTT_PASSWORD, or user and password in MQTT_URL where they are not set"
REFUSED_CONFIGURATION: Final = {
    0x84: ("MQTT_VERSION", ""),
    0x85: ("MQTT_CLIENT_ID", "every broker takes up to 23 letters and digits"),
    0x86: ("MQTT_USERNAME", _CREDENTIALS),
    0x87: ("MQTT_USERNAME", f"{_CREDENTIALS}; this user may also be bound to another MQTT_CLIENT_ID"),
    0x8A: ("MQTT_CLIENT_ID", "the broker's list of bans has it, or the user or address of this service"),
    0x8C: ("MQTT_USERNAME", "traksense shows a user name with a password, and a certificate (MQTT_CERT_FILE)"),
}
"""CONNACK reasons that no waiting mends, the variable to look at, and what to do: unsupported version, invalid client
identifier, bad user name or password, not authorized, banned, bad authentication method. Sources: MQTT 5.0 §3.2.2.2;
[MQTT-3.1.3-5] for the client identifier."""


class Connection:
    """Runs a body with the tasks that it needs beside it: one that writes, one that pings."""

    def __init__(self, stream: Stream, codec: Codec, *, keepalive: float) -> None:
        self.codec = codec
        self._stream = stream
        self._keepalive = keepalive
        self._agreed = trio.Event()
        self._queued = trio.Event()
        self._sending_bytes = 0
        self._heard_at = trio.current_time()
        self._paused = False
        self._farewell = False
        self._failure: BrokerError | None = None

    @property
    def unsent_bytes(self) -> int:
        """What the peer has not taken yet, as far as we can see."""
        return self._sending_bytes + self.codec.outgoing_bytes

    @property
    def paused(self) -> bool:
        """Whether reading is paused by backpressure."""
        return self._paused

    async def run(self, body: Callable[[], Awaitable[None]], *beside: Callable[[], Awaitable[None]]) -> None:
        """Run the body until it returns, and other tasks beside it; the stream is closed then.

        Error handling: a BrokerError or ProtocolError in the body or in one of the tasks ends all of them and is raised
        as a BrokerError. Anything else is a bug, and comes in an exception group.
        """
        try:
            async with trio.open_nursery() as nursery:
                for task in (self._write, self._ping, *beside):
                    nursery.start_soon(self._guard, task, nursery.cancel_scope)
                await self._guard(body, nursery.cancel_scope)
                nursery.cancel_scope.cancel()
        finally:
            await trio.aclose_forcefully(self._stream)
        if self._failure is not None:
            raise self._failure

    async def handshake(self) -> Connected:
        """Send CONNECT and wait for CONNACK.

        Messages may come right behind it: they are in `codec.messages`.

        Raises:
            BrokerRefusedError: The broker refuses for a reason that no waiting mends.
            BrokerError: It does not answer, or refuses for now.
            ProtocolError: Something else comes first [MQTT-3.2.0-1]. Nobody takes messages out of memory yet.
        """
        self.codec.connect()
        self.wake()
        with trio.move_on_after(HANDSHAKE_TIMEOUT_SECONDS):
            while True:
                try:
                    events = await self.receive()
                except ConnectionLostError as error:
                    if isinstance(root(error), ssl.SSLError):
                        raise
                    # Some do that to a version that they do not speak; all do, to what is not TLS where it should be.
                    hint = OTHER_VERSION[self.codec.version]
                    if not isinstance(self._stream, trio.SSLStream):
                        hint = f"{TLS_PORT}; {hint}"
                    raise BrokerError(f"{error} instead of answering CONNECT: {hint}") from error
                for event in events:
                    if isinstance(event, Connected):
                        if event.reason in REFUSED_CONFIGURATION:
                            variable, hint = REFUSED_CONFIGURATION[event.reason]
                            hint = hint or OTHER_VERSION[self.codec.version]
                            raise BrokerRefusedError(
                                f"the broker refuses the connection: {event.reason_text}: {hint}", variable
                            )
                        if event.reason:
                            raise BrokerError(f"the broker refuses the connection for now: {event.reason_text}")
                        self._keepalive = min(self._keepalive, event.keepalive or self._keepalive)
                        self._agreed.set()
                        return event
                    raise ProtocolError(f"{type(event).__name__} before CONNACK")
                if self.codec.messages:
                    raise ProtocolError("PUBLISH before CONNACK")
        raise BrokerError(f"no CONNACK within {HANDSHAKE_TIMEOUT_SECONDS:.0f} s")

    async def receive(self) -> list[Event]:
        """Wait for bytes and feed them to the codec; messages are in `codec.messages` then, other events are returned.

        Raises:
            SessionTakenOverError: Another client connected with our client id.
            ConnectionLostError: The connection ended without a word.
            BrokerError: The broker said goodbye.
            ProtocolError: What it said is not MQTT.
        """
        try:
            data = await self._stream.receive_some(READ_BYTES)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise ConnectionLostError(f"connection lost: {reason(root(error))}") from error
        if not data:
            raise ConnectionLostError("the broker closed the connection")
        self._heard_at = trio.current_time()
        events = self.codec.feed(bytes(data))
        for event in events:
            if isinstance(event, Disconnected):
                if event.reason == SESSION_TAKEN_OVER:
                    raise SessionTakenOverError("another client connected with our client id")
                raise BrokerError(f"the broker disconnects: {event.reason_text}")
        return events

    def wake(self) -> None:
        """There is something to send. Never blocks; what is queued meanwhile goes out in one piece."""
        self._queued.set()

    def acknowledge(self, packet_ids: Iterable[int]) -> None:
        """Queue PUBACKs, in this order. Never blocks."""
        self.codec.acknowledge(packet_ids)
        self.wake()

    def pause(self, paused: bool) -> None:  # noqa: FBT001  (it is the state itself)
        """Say whether reading is paused by backpressure: then PINGRESP may sit unread, and silence means nothing."""
        self._paused = paused
        self._heard_at = trio.current_time()

    async def close(self) -> None:
        """Send what is queued and DISCONNECT, then read on until the broker closes, for a moment.

        Closing a socket with unread bytes resets the connection, and a reset can overtake our last PUBACKs; so we only
        say that we are done, and drop what still comes: it is not acknowledged.
        """
        self.codec.disconnect()
        with trio.move_on_after(FAREWELL_TIMEOUT_SECONDS):
            try:
                # The writing task may be in the middle of a piece: it sends DISCONNECT behind it, then half-closes.
                self._farewell = True
                self.wake()
                while await self._stream.receive_some(READ_BYTES):
                    pass
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                pass

    async def _write(self) -> None:
        while True:
            await self._queued.wait()
            self._queued = trio.Event()
            farewell = self._farewell
            try:
                if data := self.codec.take():
                    self._sending_bytes = len(data)
                    await self._stream.send_all(data)
                    self._sending_bytes = 0
                if farewell and isinstance(self._stream, trio.SocketStream):
                    await self._stream.send_eof()
            except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
                if farewell:
                    return
                raise ConnectionLostError(f"connection lost: {reason(root(error))}") from error

    async def _ping(self) -> None:
        # The broker may want to hear from us more often than we meant to.
        await self._agreed.wait()
        while True:
            await trio.sleep(self._keepalive / 2)
            if not self._paused and trio.current_time() - self._heard_at > SILENCE * self._keepalive:
                raise BrokerError(f"no answer from the broker for {SILENCE * self._keepalive:.0f} s")
            self.codec.ping()
            self.wake()

    async def _guard(self, task: Callable[[], Awaitable[None]], scope: trio.CancelScope) -> None:
        failure: BrokerError
        try:
            await task()
            return
        except BrokerError as error:
            failure = error
        except ProtocolError as error:
            failure = BrokerError(f"the broker broke the protocol: {error}")
            failure.__cause__ = error
        # The first failure is the cause; what the others say after it is its echo.
        self._failure = self._failure or failure
        scope.cancel()
