"""The reader: one session at the broker, over as many connections as it takes.

Decisions, with their sources in the project's reliability notes:

* QoS 1 at most. With QoS 2, receipt is confirmed before anything is stored.
* `clean_start=False` and a session expiry of days: the broker's session is the durable buffer.
* Subscribed again on every connection, SUBACK codes checked: a broker that lost the session would otherwise send
  nothing.
* The socket is not read while the pipeline is full. PINGREQs go on, so the broker does not drop us; PINGRESP is waited
  for only while we read, since it may sit unread behind messages.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final, Protocol

import attrs
import trio

from traksense.errors import BrokerError, BrokerRefusedError, SessionTakenOverError
from traksense.ingest.backoff import Backoff
from traksense.mqtt.codec import ProtocolError, Subscribed
from traksense.mqtt.connection import Connection
from traksense.mqtt.paho_codec import PahoCodec
from traksense.mqtt.stream import open_stream, tls_context
from traksense.mqtt.subscriptions import Subscriptions

if TYPE_CHECKING:
    from collections import deque
    from collections.abc import Callable, Collection, Sequence

    from traksense.config import Settings
    from traksense.ingest.ack import Acknowledger
    from traksense.ingest.health import Health
    from traksense.ingest.intake import Intake
    from traksense.model import Message
    from traksense.mqtt.codec import Codec, Event

logger = logging.getLogger(__name__)

RECONNECT_INITIAL_SECONDS: Final = 0.2
RECONNECT_MAXIMUM_SECONDS: Final = 15.0
"""A broker that restarts is used again within this time. Chosen by guess."""

STABLE_SECONDS: Final = 10.0
"""A connection that held this long was a success: the next backoff starts small again."""

SUSPICIOUS_CLOSURES: Final = 3
"""So many connections in a row that the broker accepted and soon closed without a word look like a second client with
our client id: Mosquitto 2.0.11 does not send the DISCONNECT with reason 0x8E that MQTT 5.0 §4.13 describes (seen on
the wire; tests/integration/test_reader.py holds it)."""


DROPPED_TOPIC: Final = "$SYS/broker/publish/messages/dropped"
"""Where Mosquitto says how many messages it has dropped: of all clients, since its start. EMQX has no such topic;
watch its `emqx_delivery_dropped` instead."""

TOPICS_SHOWN: Final = 10
"""Filters in one log line."""

DROPPED_UNANSWERED_MAX: Final = 2
"""So many connections in a row may end before that subscription is answered; more would be its own doing."""


class CodecFactory(Protocol):
    """Makes the codec for a connection."""

    def __call__(self, settings: Settings, generation: int) -> Codec:
        """A codec for this generation of the connection."""
        ...


def paho_codec(settings: Settings, generation: int) -> Codec:
    """The default codec."""
    return PahoCodec(
        client_id=settings.client_id,
        version=settings.mqtt_version,
        generation=generation,
        keepalive=int(settings.mqtt_keepalive),
        receive_maximum=settings.receive_maximum,
        session_expiry=int(settings.mqtt_session_expiry),
        username=settings.username,
        password=settings.password,
    )


def mqtt5_codec(settings: Settings, generation: int) -> Codec:
    """The codec of `MQTT_READER=mqtt5`; its package is an extra (`config` makes sure that it is there)."""
    from traksense.mqtt.mqtt5_codec import Mqtt5Codec

    return Mqtt5Codec(
        client_id=settings.client_id,
        generation=generation,
        keepalive=int(settings.mqtt_keepalive),
        receive_maximum=settings.receive_maximum,
        session_expiry=int(settings.mqtt_session_expiry),
        username=settings.username,
        password=settings.password,
    )


def codec_factory(settings: Settings) -> CodecFactory:
    """What `MQTT_READER` names."""
    return {"paho": paho_codec, "mqtt5": mqtt5_codec}[settings.mqtt_reader]


@attrs.define
class SessionStatistics:
    """What happened to the session; exposed as metrics.

    Attributes:
        connections: How often CONNACK said success.
        failures: How often a connection failed or could not be made.
        broker_dropped: Messages that the broker has dropped, by its own count, or None if it does not say.
        takeovers: How often another client took our client id, as far as the broker said so.
        short_lived: Connections in a row that were accepted and lost again within `STABLE_SECONDS`.
        paused_at: Since when it is not read now, on Trio's clock, or None.
        paused_seconds: How long the socket was not read because the pipeline was full.
    """

    connections: int = 0
    failures: int = 0
    takeovers: int = 0
    short_lived: int = 0
    broker_dropped: int | None = None
    paused_seconds: float = 0.0
    paused_at: float | None = None

    def paused_total(self) -> float:
        """`paused_seconds`, with the pause that goes on now."""
        return self.paused_seconds + (trio.current_time() - self.paused_at if self.paused_at is not None else 0.0)


class Reader:
    """Owns the session. One task runs `run`; the other methods are for tasks of the same Trio run."""

    def __init__(
        self,
        settings: Settings,
        *,
        intake: Intake,
        acknowledger: Acknowledger,
        health: Health,
        make_codec: CodecFactory | None = None,
        on_connected: Callable[[bool], None] = lambda _session_present: None,
        topics: Sequence[str] | None = None,
    ) -> None:
        """Connect nothing yet.

        Args:
            settings: Where the broker is and what to subscribe to.
            intake: Where messages go.
            acknowledger: Whose PUBACKs to send.
            health: Where to say how the connection is.
            make_codec: Makes the codec of each connection. Default: the one that `MQTT_READER` names.
            on_connected: Told after each CONNACK whether the broker had our session.
            topics: What to subscribe to instead of what the settings say; may be empty.
        """
        self._settings = settings
        self._intake = intake
        self._acknowledger = acknowledger
        self._health = health
        self._make_codec = make_codec or codec_factory(settings)
        self._on_connected = on_connected
        self._tls = tls_context(settings)
        self._generation = 0
        self._connection: Connection | None = None
        self._drops_subscription = 0
        self._drops_unanswered = 0
        self._reading: trio.CancelScope | None = None
        self._stopping = trio.Event()
        self._closing = trio.Event()
        self._subscriptions = Subscriptions(settings.topics if topics is None else topics, settings.mqtt_qos)
        self.statistics = SessionStatistics()

    @property
    def subscribed(self) -> bool:
        """Whether everything that is wanted was granted on the present connection."""
        return self._subscriptions.granted

    @property
    def refused(self) -> bool:
        """Whether the broker has answered on the present connection, and not granted everything that is wanted."""
        return self._subscriptions.answered and not self._subscriptions.granted

    def keep(self, topics: Collection[str]) -> None:
        """What the session may hold besides what is wanted: subscribed to again whenever the broker has forgotten it,
        also on the present connection.
        """
        try:
            asked = self._subscriptions.keep(topics)
        except ProtocolError:
            return  # the connection has ended: the next one asks for all of them
        if asked and self._connection is not None:
            self._connection.wake()

    async def unsubscribe(self, topics: Sequence[str]) -> frozenset[str]:
        """Give up these filters; returns those for which the broker has confirmed it. What it has queued for them may
        still come.
        """
        release = self._subscriptions.release(topics)
        if release is None or self._connection is None:
            return frozenset()
        self._connection.wake()
        await release.ended.wait()
        if self._subscriptions.answered:
            # What was refused and is not held any more is no fault any more.
            self._health.set("subscription", self._subscriptions.fault)
        return frozenset(release.confirmed)

    async def run(self) -> None:
        """Read until `stop_reading`, then keep the connection for the last PUBACKs until `close`.

        Error handling: a lost or refused connection is retried for ever, with jittered backoff.

        Raises:
            BrokerRefusedError: At the first connection, for a reason that no waiting mends: a wrong configuration.
            SessionTakenOverError: Another client uses our client id; to reconnect would start a tug of war. What was
                read has been passed on.
        """
        backoff = Backoff(RECONNECT_INITIAL_SECONDS, RECONNECT_MAXIMUM_SECONDS)
        takeover: SessionTakenOverError | None = None
        while not self._stopping.is_set():
            started, connections = trio.current_time(), self.statistics.connections
            try:
                await self._connect_and_read()
            except SessionTakenOverError as error:
                self.statistics.takeovers += 1
                takeover = error
                break
            except BrokerError as error:
                if isinstance(error, BrokerRefusedError) and self.statistics.connections == 0:
                    raise
                self.statistics.failures += 1
                accepted = self.statistics.connections > connections
                if trio.current_time() - started > STABLE_SECONDS:
                    backoff.reset()
                    self.statistics.short_lived = 0
                self.statistics.short_lived += accepted
                self._health.set("broker", self._explain(error))
            with trio.move_on_after(backoff.next()):
                await self._stopping.wait()
        # Without a connection there may still be messages that an earlier one left behind.
        await self._intake.flush()
        self._intake.close()
        if takeover is not None:
            raise takeover

    def stop_reading(self) -> None:
        """Take nothing more from the socket; what was read goes on."""
        self._stopping.set()
        if self._reading is not None:
            self._reading.cancel()

    def close(self) -> None:
        """Send the PUBACKs that are queued, then DISCONNECT; `run` returns soon after."""
        self._closing.set()

    def _explain(self, error: BrokerError) -> str:
        text = f"{error} ({self._settings.broker})"
        if self.statistics.short_lived >= SUSPICIOUS_CLOSURES:
            text += (
                f"; {self.statistics.short_lived} connections in a row were accepted and soon lost: is another client "
            )
            text += f"using the client id {self._settings.client_id}?"
        return text

    async def _connect_and_read(self) -> None:
        self._generation += 1
        codec = self._make_codec(self._settings, self._generation)
        stream = await open_stream(self._settings.broker.host, self._settings.broker.port, self._tls)
        connection = Connection(stream, codec, keepalive=self._settings.mqtt_keepalive)
        try:
            await connection.run(lambda: self._session(connection))
        finally:
            self._connection = None
            self._subscriptions.disconnected()
            self._acknowledger.disconnected()

    async def _session(self, connection: Connection) -> None:
        """What happens on one connection, from CONNECT to DISCONNECT."""
        connected = await connection.handshake()
        self.statistics.connections += 1
        self._on_connected(connected.session_present)
        self._acknowledger.connected(self._generation, connection.acknowledge)
        self._connection = connection
        self._subscriptions.connected(connection.codec, session_present=connected.session_present)
        self._ask_for_drops(connection)
        connection.wake()
        if self._subscriptions.answered:
            self._note_subscribed(session_present=connected.session_present)
        with trio.CancelScope() as self._reading:
            while not self._stopping.is_set():
                # Messages may have come in one piece with CONNACK, and before SUBACK: they are the session's backlog.
                await self._pass_on(connection)
                for event in await connection.receive():
                    self._handle(event, session_present=connected.session_present)
        self._reading = None
        connection.pause(True)
        self._accept(connection.codec.messages)
        await self._intake.flush()
        self._intake.close()
        await self._closing.wait()
        await connection.close()

    def _ask_for_drops(self, connection: Connection) -> None:
        """Subscribe to the broker's count of what it has dropped, in a packet of its own: a refusal is no fault.

        rumqttd (iotcore) hangs up instead of answering: such a broker is not asked again.
        """
        if self._drops_unanswered < DROPPED_UNANSWERED_MAX:
            self._drops_unanswered += 1
            self._drops_subscription = connection.codec.subscribe([DROPPED_TOPIC], 0)

    async def _pass_on(self, connection: Connection) -> None:
        self._accept(connection.codec.messages)
        if self._intake.flush_nowait():
            return
        paused_at = self.statistics.paused_at = trio.current_time()
        connection.pause(True)
        try:
            await self._intake.flush()
        finally:
            connection.pause(False)
            self.statistics.paused_at = None
            self.statistics.paused_seconds += trio.current_time() - paused_at

    def _accept(self, messages: deque[Message]) -> None:
        self._intake.accept([m for m in messages if m.topic != DROPPED_TOPIC or self._note_drops(m)])
        messages.clear()

    def _note_drops(self, message: Message) -> bool:
        """Keep the broker's count of what it has dropped; False, since it is not a message of ours."""
        if not message.payload.isdigit():
            return False
        dropped = int(message.payload)
        known, self.statistics.broker_dropped = self.statistics.broker_dropped, dropped
        if known is not None and dropped > known:
            logger.error(
                "broker_dropped_messages", extra={"traksense_dropped": dropped - known, "traksense_total": dropped}
            )
        return False

    def _handle(self, event: Event, *, session_present: bool) -> None:
        if isinstance(event, Subscribed) and event.packet_id == self._drops_subscription:
            self._drops_unanswered = 0
        if self._subscriptions.handle(event):
            self._note_subscribed(session_present=session_present)

    def _note_subscribed(self, *, session_present: bool) -> None:
        settings, topics = self._settings, self._subscriptions.topics
        self._health.set("subscription", self._subscriptions.fault)
        self._health.set("broker")
        logger.info(
            "subscribed",
            extra={
                "traksense_broker": str(settings.broker),
                "traksense_client_id": settings.client_id,
                "traksense_topics": list(topics[:TOPICS_SHOWN]),
                "traksense_topics_count": len(topics),
                "traksense_qos": settings.mqtt_qos,
                "traksense_session_present": session_present,
                "traksense_receive_maximum": settings.receive_maximum,
            },
        )
