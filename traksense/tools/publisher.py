"""A publisher that knows what the broker has confirmed: what the fleet simulator and `prove` send with.

A QoS 1 message is kept until its PUBACK. When a connection is lost, what it left unconfirmed goes to the front of the
queue, in order, and is published again on the next one, as a new PUBLISH of a new session: so the broker may have it twice.

Invariant: a message is confirmed only by the PUBACK to its own packet identifier on the connection that sent it last.
`_sent` belongs to one connection and is emptied before the next one exists, and each connection has a codec of its own.
"""

from __future__ import annotations

import contextlib
import logging
from collections import deque
from typing import TYPE_CHECKING, Any, Final

import attrs
import trio

from traksense.errors import BrokerError, SessionTakenOverError
from traksense.ingest.backoff import Backoff
from traksense.mqtt.codec import Connected, Published
from traksense.mqtt.connection import Connection
from traksense.mqtt.paho_codec import PahoCodec
from traksense.mqtt.stream import open_stream

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncIterator, Awaitable, Callable

    from traksense.config import Broker, Secret
    from traksense.mqtt.stream import Stream

logger = logging.getLogger(__name__)

WINDOW_MAX: Final = 65_534
"""One less than there are packet identifiers, so that a free one is always found. Source: MQTT 5.0 §2.2.1."""

WINDOW_BYTES: Final = 16 * 1024 * 1024
"""Payloads under way at most: large messages must not make a large window a large memory. Chosen by guess."""

BUFFERED_BYTES: Final = 256 * 1024
"""QoS 0 messages that wait for the socket at most; nothing else would slow their publisher down."""

CHECKPOINT_EVERY: Final = 32
"""Messages between two checkpoints while nothing makes `publish` wait: the writing task sends them in one piece."""

RECONNECT_INITIAL_SECONDS: Final = 0.1
RECONNECT_MAXIMUM_SECONDS: Final = 5.0
STABLE_SECONDS: Final = 10.0

NO_MATCHING_SUBSCRIBERS: Final = 0x10
FAILURE: Final = 0x80
PACKET_TOO_LARGE: Final = 0x95
"""PUBACK reason codes. Source: MQTT 5.0 §3.4.2.1 and §2.4 (the last one is our own use: the message was never sent)."""

_PACKET_OVERHEAD_BYTES: Final = 16
"""Of a PUBLISH, beside topic and payload: the fixed header, two lengths, the identifier, no properties."""


@attrs.define
class Counters:
    """What became of the messages.

    Attributes:
        published: Taken over by `publish`.
        confirmed: QoS 1 messages whose PUBACK said success.
        refused: QoS 1 messages that the broker refused, or would: nobody has them.
        unmatched: Those of the confirmed that had no subscriber, if the broker says so: nobody has them either.
        retransmitted: Published again because their connection was lost before their PUBACK.
        reconnections: Connections after the first.
    """

    published: int = 0
    confirmed: int = 0
    refused: int = 0
    unmatched: int = 0
    retransmitted: int = 0
    reconnections: int = 0


@attrs.define(eq=False)
class _Outgoing:
    topic: str
    payload: bytes
    retain: bool
    tag: Any
    transmitted: bool = False

    @property
    def packet_bytes(self) -> int:
        return len(self.payload) + len(self.topic.encode()) + _PACKET_OVERHEAD_BYTES


class Publisher:
    """See `open_publisher`. Any task of the Trio run may publish; each task's messages keep their order.

    Attributes:
        counters: What became of the messages so far.
        fault: Why there is no connection; None while there is one.
    """

    def __init__(
        self,
        make_codec: Callable[[], _Codec],
        connect: Callable[[], Awaitable[Stream]],
        *,
        window: int,
        window_bytes: int,
        keepalive: int,
        on_confirmed: Callable[[Any], None],
        on_refused: Callable[[Any, int], None],
    ) -> None:
        if not 1 <= window <= WINDOW_MAX:
            raise ValueError(f"window must be 1-{WINDOW_MAX}, not {window}")
        self.counters = Counters()
        self.fault: str | None = "not connected yet"
        self._make_codec = make_codec
        self._connect = connect
        self._window = window
        self._window_bytes = window_bytes
        self._keepalive = keepalive
        self._on_confirmed = on_confirmed
        self._on_refused = on_refused
        self._connection: Connection | None = None
        self._codec: _Codec | None = None
        self._waiting: deque[_Outgoing] = deque()
        self._sent: dict[int, _Outgoing] = {}
        self._bytes = 0
        self._limit = 0
        self._packet_max_bytes: int | None = None
        self._changed = trio.Event()
        self._reading = trio.CancelScope()
        self._closing = trio.Event()
        self._until_checkpoint = CHECKPOINT_EVERY

    @property
    def unconfirmed(self) -> int:
        """QoS 1 messages taken over and not yet confirmed or refused."""
        return len(self._waiting) + len(self._sent)

    @property
    def window(self) -> int:
        """How many messages may be under way on this connection: ours, or the broker's Receive Maximum if that is less."""
        return self._limit or self._window

    async def publish(self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False, tag: Any = None) -> None:
        """Take over a message; waits while too many are unconfirmed. It is confirmed later, see `on_confirmed`.

        QoS 0 waits for a connection and for room in the send buffer, and is never confirmed. A checkpoint only when it waits,
        and at every 32nd message.

        Raises:
            ValueError: The topic is empty or has a wildcard, or `qos` is neither 0 nor 1.

        Cancellation: a message is taken over entirely or not at all.
        """
        _check(topic, qos)
        self._until_checkpoint -= 1
        if self._until_checkpoint <= 0:
            self._until_checkpoint = CHECKPOINT_EVERY
            await trio.lowlevel.checkpoint()
        message = _Outgoing(topic, payload, retain, tag)
        if qos == 0:
            await self._publish_at_most_once(message)
            return
        while self.unconfirmed >= self._window or (self._bytes and self._bytes + len(payload) > self._window_bytes):
            await self._changed.wait()
        self.counters.published += 1
        self._bytes += len(payload)
        self._waiting.append(message)
        self._transmit()

    async def drain(self) -> None:
        """Wait until every message is confirmed or refused, however long the broker is away."""
        while self.unconfirmed:
            await self._changed.wait()
        await trio.lowlevel.checkpoint()

    # --- messages -----------------------------------------------------------------------------------------------------

    async def _publish_at_most_once(self, message: _Outgoing) -> None:
        while (codec := self._codec) is None or codec.buffered_bytes > BUFFERED_BYTES:
            await (self._changed if codec is None else codec.taken).wait()
        self.counters.published += 1
        if self._packet_max_bytes is not None and message.packet_bytes > self._packet_max_bytes:
            self._refuse(message, PACKET_TOO_LARGE)
            return
        codec.publish(message.topic, message.payload, qos=0, retain=message.retain)
        codec.buffered_bytes += message.packet_bytes
        assert self._connection is not None  # it lives as long as its codec
        self._connection.wake()

    def _transmit(self) -> None:
        """Send what waits, as far as the window allows. Never blocks."""
        connection, codec = self._connection, self._codec
        if connection is None or codec is None:
            return
        while self._waiting and len(self._sent) < self._limit:
            message = self._waiting.popleft()
            if self._packet_max_bytes is not None and message.packet_bytes > self._packet_max_bytes:
                self._bytes -= len(message.payload)
                self._refuse(message, PACKET_TOO_LARGE)
                continue
            # paho counts identifiers up without looking; one that is in use makes it send nothing.
            while (packet_id := codec.publish(message.topic, message.payload, qos=1, retain=message.retain)) in self._sent:
                pass
            self._sent[packet_id] = message
            self.counters.retransmitted += message.transmitted
            message.transmitted = True
        connection.wake()

    def _settle(self, event: Published) -> None:
        message = self._sent.pop(event.packet_id, None)
        if message is None:
            return
        self._bytes -= len(message.payload)
        if event.reason >= FAILURE:
            self._refuse(message, event.reason)
            return
        self.counters.confirmed += 1
        self.counters.unmatched += event.reason == NO_MATCHING_SUBSCRIBERS
        self._on_confirmed(message.tag)

    def _refuse(self, message: _Outgoing, reason: int) -> None:
        self.counters.refused += 1
        self._notify()
        self._on_refused(message.tag, reason)

    def _notify(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    # --- the connection -----------------------------------------------------------------------------------------------

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep connected until `close`; started when the first connection is made.

        Error handling: the first connection must succeed; a later one that is lost or refused is made again for ever, with
        jittered backoff.

        Raises:
            BrokerError: The first connection failed.
            SessionTakenOverError: Another client uses our client id; to reconnect would start a tug of war.
        """
        backoff = Backoff(RECONNECT_INITIAL_SECONDS, RECONNECT_MAXIMUM_SECONDS)
        first = True
        while not self._closing.is_set():
            started = trio.current_time()
            try:
                await self._run_connection(first, task_status)
            except SessionTakenOverError:
                raise
            except BrokerError as error:
                if first and self.fault is not None:
                    raise
                if self.fault != str(error):
                    logger.warning("publisher_connection_lost", extra={"traksense_reason": str(error)})
                self.fault = str(error)
            first = False
            if trio.current_time() - started > STABLE_SECONDS:
                backoff.reset()
            if not self._closing.is_set():
                with trio.move_on_after(backoff.next()):
                    await self._closing.wait()

    def close(self) -> None:
        """Send what is queued and DISCONNECT; `run` returns soon after. What is unconfirmed stays so."""
        self._closing.set()
        self._reading.cancel()

    async def _run_connection(self, first: bool, task_status: trio.TaskStatus[None]) -> None:  # noqa: FBT001
        stream: Stream | None = None
        with trio.CancelScope() as self._reading:
            stream = await self._connect()
        if stream is None:
            return
        codec = self._make_codec()
        connection = Connection(stream, codec, keepalive=self._keepalive)

        async def session() -> None:
            with trio.CancelScope() as self._reading:
                self._connected(connection, codec, await connection.handshake())
                if first:
                    task_status.started()
                else:
                    self.counters.reconnections += 1
                while not self._closing.is_set():
                    for event in await connection.receive():
                        if isinstance(event, Published):
                            self._settle(event)
                    self._transmit()
                    self._notify()
            if self._connection is connection:
                await connection.close()

        try:
            await connection.run(session)
        finally:
            self._disconnected()

    def _connected(self, connection: Connection, codec: _Codec, connected: Connected) -> None:
        self._limit = min(self._window, connected.receive_maximum or self._window)
        self._packet_max_bytes = connected.packet_max_bytes
        self._connection, self._codec, self.fault = connection, codec, None
        self._transmit()
        self._notify()

    def _disconnected(self) -> None:
        """Forget the connection: no PUBACK of it counts any more, and what it left goes first on the next one."""
        if self._codec is not None:
            self._codec.release()
        self._connection = self._codec = None
        self._waiting.extendleft(reversed(self._sent.values()))
        self._sent.clear()


class _Codec(PahoCodec):
    """Knows how much of what was queued the socket has not taken yet."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.buffered_bytes = 0
        self.taken = trio.Event()

    def take(self) -> bytes:
        # Called when everything taken before has been sent.
        self.release()
        return super().take()

    def release(self) -> None:
        self.buffered_bytes = 0
        self.taken.set()
        self.taken = trio.Event()


@contextlib.asynccontextmanager
async def open_publisher(
    broker: Broker,
    *,
    client_id: str,
    window: int = 200,
    window_bytes: int = WINDOW_BYTES,
    keepalive: int = 30,
    clean: bool = True,
    session_expiry: int = 0,
    username: str | None = None,
    password: Secret | None = None,
    tls: ssl.SSLContext | None = None,
    on_confirmed: Callable[[Any], None] = lambda _tag: None,
    on_refused: Callable[[Any, int], None] = lambda _tag, _reason: None,
) -> AsyncIterator[Publisher]:
    """Connect, and stay connected until the end of the block; use `drain` before it to know that all is confirmed.

    Args:
        broker: Where; its user and password count unless `username` and `password` are given.
        client_id: Nobody else's.
        window: How many messages may be unconfirmed; less on a connection whose broker allows less.
        window_bytes: How many bytes of payload may be unconfirmed; a single larger message goes alone.
        keepalive: Seconds.
        clean: Start each connection with a new session.
        session_expiry: Seconds that the broker keeps the session after the end.
        username, password: Credentials.
        tls: For `mqtts://`; see `mqtt.stream.tls_context`.
        on_confirmed: Called with the tag of each message as it is confirmed; must not block or raise.
        on_refused: Called with the tag of each refused message and the reason code.

    Raises:
        BrokerError: The first connection failed, or `SessionTakenOverError` at any time.

    Trio-flavored.
    """

    def make_codec() -> _Codec:
        return _Codec(
            client_id=client_id,
            keepalive=keepalive,
            session_expiry=session_expiry,
            clean=clean,
            username=username if username is not None else broker.username,
            password=password if password is not None else broker.password,
        )

    publisher = Publisher(
        make_codec,
        lambda: open_stream(broker.host, broker.port, tls),
        window=window,
        window_bytes=window_bytes,
        keepalive=keepalive,
        on_confirmed=on_confirmed,
        on_refused=on_refused,
    )
    alone: BaseException | None = None
    try:
        async with trio.open_nursery() as nursery:
            await nursery.start(publisher.run)
            yield publisher
            publisher.close()
    except BaseExceptionGroup as group:
        # The nursery is our own affair: the caller's exception, or the broker's, leaves as it is.
        if len(group.exceptions) > 1:
            raise
        alone = group.exceptions[0]
    if alone is not None:
        raise alone


def _check(topic: str, qos: int) -> None:
    if not topic or "+" in topic or "#" in topic:
        raise ValueError(f"not a topic to publish to: {topic!r}")
    if qos not in (0, 1):
        raise ValueError(f"qos must be 0 or 1, not {qos}")

