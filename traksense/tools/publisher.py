"""A publisher that knows what the broker has confirmed: what the fleet simulator and `prove` send with.

A QoS 1 message is kept until its PUBACK. What a lost connection left unconfirmed is published again on the next one,
as a new PUBLISH, so the broker may have it twice; `outbox` has the rules.
"""

from __future__ import annotations

import contextlib
import logging
import math
from typing import TYPE_CHECKING, Any, Final

import trio

from traksense.errors import BrokerError, SessionTakenOverError
from traksense.ingest.backoff import Backoff
from traksense.mqtt.codec import Published
from traksense.mqtt.connection import Connection
from traksense.mqtt.stream import open_stream
from traksense.tools.counting_codec import CountingCodec
from traksense.tools.outbox import PACKET_TOO_LARGE, Counters, Link, Outbox, Outgoing

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncIterator, Awaitable, Callable

    from traksense.config import Broker, Secret
    from traksense.mqtt.codec import Connected
    from traksense.mqtt.stream import Stream

logger = logging.getLogger(__name__)

WINDOW_BYTES: Final = 16 * 1024 * 1024
"""Payloads under way at most: large messages must not make a large window a large memory. Chosen by guess."""

BUFFERED_BYTES: Final = 256 * 1024
"""QoS 0 messages that wait for the socket at most; nothing else would slow their publisher down."""

CHECKPOINT_EVERY: Final = 32
"""Messages between two checkpoints while nothing makes `publish` wait: the writing task sends them in one piece."""

RECONNECT_INITIAL_SECONDS: Final = 0.1
RECONNECT_MAXIMUM_SECONDS: Final = 5.0
QOS_0_ONLY: Final = "the broker takes QoS 0 only, which confirms nothing: allow QoS 1 there (Mosquitto: max_qos)"

STABLE_SECONDS: Final = 10.0
"""A connection that held this long was a success, as is one on which a message was settled: the next backoff starts
small again."""


class _QosRefusedError(BrokerError):
    """What waits cannot be published to this broker."""


class Publisher:
    """See `open_publisher`. Any task of the Trio run may publish; each task's messages keep their order.

    Attributes:
        fault: Why there is no connection; None while there is one.
        away: Whether the last attempt to connect has failed.
    """

    def __init__(
        self,
        outbox: Outbox,
        *,
        make_codec: Callable[[], CountingCodec],
        connect: Callable[[], Awaitable[Stream]],
        keepalive: int,
    ) -> None:
        self.fault: str | None = "not connected yet"
        self.away = False
        self._outbox = outbox
        self._make_codec = make_codec
        self._connect = connect
        self._keepalive = keepalive
        self._connection: Connection | None = None
        self._codec: CountingCodec | None = None
        self._link: Link | None = None
        self._qos_max: int | None = None
        self._connected_at = -math.inf
        self._changed = trio.Event()
        self._first = trio.Event()
        self._reading = trio.CancelScope()
        self._closing = trio.Event()
        self._until_checkpoint = CHECKPOINT_EVERY

    @property
    def counters(self) -> Counters:
        """What became of the messages so far."""
        return self._outbox.counters

    @property
    def unconfirmed(self) -> int:
        """QoS 1 messages taken over and neither confirmed nor refused."""
        return self._outbox.unconfirmed

    @property
    def in_flight_max(self) -> int:
        """How many may be under way on this connection: the window, or the broker's Receive Maximum if that is less."""
        return self._outbox.in_flight_max

    async def publish(self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False, tag: Any = None) -> None:
        """Take over a message; waits while too many are unconfirmed. It is confirmed later, see `on_confirmed`.

        QoS 0 waits for a connection and for room in the send buffer, and is never confirmed. A checkpoint only when it
        waits, and at every 32nd message.

        Raises:
            BrokerError: The broker takes QoS 0 only.
            ValueError: The topic is empty or has a wildcard, or `qos` is neither 0 nor 1.

        Cancellation: a message is taken over entirely or not at all.
        """
        _check(topic, qos)
        self._until_checkpoint -= 1
        if self._until_checkpoint <= 0:
            self._until_checkpoint = CHECKPOINT_EVERY
            await trio.lowlevel.checkpoint()
        message = Outgoing(topic, payload, retain, tag)
        if qos == 0:
            await self._publish_at_most_once(message)
            return
        if self._qos_max == 0:
            raise BrokerError(QOS_0_ONLY)
        while not self._outbox.has_room(len(payload)):
            await self._changed.wait()
        self._outbox.add(message)
        self._transmit()

    async def drain(self) -> None:
        """Wait until every message is confirmed or refused, however long the broker is away."""
        while self.unconfirmed:
            await self._changed.wait()
        await trio.lowlevel.checkpoint()

    async def wait_connected(self) -> None:
        """Wait for the first connection."""
        await self._first.wait()

    def close(self) -> None:
        """Send what is queued and DISCONNECT; `run` returns soon after. What is unconfirmed stays so."""
        self._closing.set()
        self._reading.cancel()

    async def _publish_at_most_once(self, message: Outgoing) -> None:
        while (codec := self._codec) is None or codec.buffered_bytes > BUFFERED_BYTES:
            await (self._changed if codec is None else codec.taken).wait()
        assert self._link is not None  # it lives as long as its codec
        assert self._connection is not None
        self.counters.published += 1
        if not self._link.takes(message):
            self._outbox.refuse(message, PACKET_TOO_LARGE)
            return
        codec.publish(message.topic, message.payload, qos=0, retain=message.retain)
        codec.buffered_bytes += message.packet_bytes
        self._connection.wake()

    def _transmit(self) -> None:
        self._outbox.transmit()
        if self._connection is not None:
            self._connection.wake()

    def _notify(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    # --- the connection -----------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Keep connected until `close`.

        Error handling: the first connection must succeed; a later one that is lost or refused is made again for ever,
        with jittered backoff.

        Raises:
            BrokerError: The first connection failed; or a later one takes QoS 0 only, while something waits.
            SessionTakenOverError: Another client uses our client id; to reconnect would start a tug of war.
        """
        backoff = Backoff(RECONNECT_INITIAL_SECONDS, RECONNECT_MAXIMUM_SECONDS)
        while not self._closing.is_set():
            started, settled = trio.current_time(), self._settled
            try:
                await self._run_connection()
            except (SessionTakenOverError, _QosRefusedError):
                raise
            except BrokerError as error:
                if not self._first.is_set():
                    raise
                self._lost(str(error))
                self.away = self._connected_at < started
            if trio.current_time() - started > STABLE_SECONDS or self._settled > settled:
                backoff.reset()
            with trio.move_on_after(backoff.next()):
                await self._closing.wait()

    async def _run_connection(self) -> None:
        stream: Stream | None = None
        with trio.CancelScope() as self._reading:
            stream = await self._connect()
        if stream is None:
            return
        codec = self._make_codec()
        connection = Connection(stream, codec, keepalive=self._keepalive)
        try:
            await connection.run(lambda: self._session(connection, codec))
        except BrokerError as error:
            # Who is told below that a message is refused asks why.
            self._lost(str(error))
            raise
        finally:
            codec.release()
            self._connection = self._codec = self._link = None
            self._outbox.disconnected()
            self._notify()

    @property
    def _settled(self) -> int:
        return self.counters.confirmed + self.counters.refused

    def _lost(self, why: str) -> None:
        if self._first.is_set() and self.fault != why:
            logger.warning("publisher_connection_lost", extra={"traksense_reason": why})
        self.fault = why

    async def _session(self, connection: Connection, codec: CountingCodec) -> None:
        with trio.CancelScope() as self._reading:
            self._connected(connection, codec, await connection.handshake())
            while not self._closing.is_set():
                for event in await connection.receive():
                    if isinstance(event, Published):
                        self._outbox.settle(event.packet_id, event.reason)
                self._transmit()
                self._notify()
        if self._connection is connection:
            await connection.close()

    def _connected(self, connection: Connection, codec: CountingCodec, connected: Connected) -> None:
        def send(message: Outgoing) -> int:
            return codec.publish(message.topic, message.payload, qos=1, retain=message.retain)

        self._qos_max = connected.qos_max
        if self._qos_max == 0 and self.unconfirmed:
            # Published before, to another broker at this address: for ever is too long to wait for it.
            raise _QosRefusedError(QOS_0_ONLY)
        self._link = Link(send, connected.receive_maximum, connected.packet_max_bytes)
        self._connection, self._codec, self.fault = connection, codec, None
        self.away, self._connected_at = False, trio.current_time()
        self._outbox.connected(self._link)
        self.counters.reconnections += self._first.is_set()
        self._first.set()
        self._transmit()
        self._notify()


@contextlib.asynccontextmanager
async def open_publisher(
    broker: Broker,
    *,
    client_id: str,
    window: int = 200,
    window_bytes: int = WINDOW_BYTES,
    version: str = "5",
    keepalive: int = 30,
    clean: bool = True,
    session_expiry: int = 0,
    username: str | None = None,
    password: Secret | None = None,
    tls: ssl.SSLContext | None = None,
    on_confirmed: Callable[[Any], None] = lambda _tag: None,
    on_refused: Callable[[Any, int], None] = lambda _tag, _reason: None,
    hangups_max: int | None = None,
) -> AsyncIterator[Publisher]:
    """Connect, and stay connected until the end of the block; use `drain` before it to know that all is confirmed.

    Args:
        broker: Where; its user and password count unless `username` and `password` are given.
        client_id: Nobody else's.
        window: How many messages may be unconfirmed; fewer are under way if the broker's Receive Maximum is less.
        window_bytes: How many bytes of payload may be unconfirmed; a single larger message goes alone.
        version: Of MQTT, as `MQTT_VERSION` names it.
        keepalive: Seconds.
        clean: Start each connection with a new session.
        session_expiry: Seconds that the broker keeps the session after the end.
        username: Instead of the broker's.
        password: Instead of the broker's.
        tls: For `mqtts://`; see `mqtt.stream.tls_context`.
        on_confirmed: Called with the tag of each message as it is confirmed; must not block or raise.
        on_refused: Called with the tag of each refused message and the reason code; must not block or raise.
        hangups_max: See `Outbox`.

    Raises:
        BrokerError: The first connection failed; at any time, what `Publisher.run` does not wait for.

    Trio-flavored.
    """

    def make_codec() -> CountingCodec:
        return CountingCodec(
            client_id=client_id,
            version=version,
            keepalive=keepalive,
            session_expiry=session_expiry,
            clean=clean,
            username=username if username is not None else broker.username,
            password=password if password is not None else broker.password,
        )

    outbox = Outbox(
        window=window,
        window_bytes=window_bytes,
        on_confirmed=on_confirmed,
        on_refused=on_refused,
        hangups_max=hangups_max,
    )
    publisher = Publisher(
        outbox,
        make_codec=make_codec,
        connect=lambda: open_stream(broker.host, broker.port, tls),
        keepalive=keepalive,
    )
    failure: BaseException | None = None
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(publisher.run)
            await publisher.wait_connected()
            yield publisher
            publisher.close()
    except BaseExceptionGroup as group:
        # The nursery is our own affair: the caller's exception, or the broker's, leaves as it is.
        if len(group.exceptions) > 1:
            raise
        failure = group.exceptions[0]
    if failure is not None:
        raise failure


def _check(topic: str, qos: int) -> None:
    if not topic or "+" in topic or "#" in topic:
        raise ValueError(f"not a topic to publish to: {topic!r}")
    if qos not in (0, 1):
        raise ValueError(f"qos must be 0 or 1, not {qos}")
