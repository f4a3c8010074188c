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
from functools import partial
from typing import TYPE_CHECKING, Final, TypeVar

import trio

from traksense.errors import BrokerError, BrokerRefusedError, SessionTakenOverError
from traksense.ingest.backoff import Backoff
from traksense.mqtt.codec import Connected, ProtocolError
from traksense.mqtt.codecs import codec_factory
from traksense.mqtt.connection import Connection
from traksense.mqtt.failures import STABLE_SECONDS, Failures
from traksense.mqtt.heartbeat import Heartbeat
from traksense.mqtt.kept_session import KeptSession
from traksense.mqtt.statistics import SessionStatistics
from traksense.mqtt.stream import open_stream, tls_context
from traksense.mqtt.subscriptions import Subscriptions
from traksense.mqtt.sys_topics import SYS_TOPICS, SysTopics

if TYPE_CHECKING:
    from collections import deque
    from collections.abc import Awaitable, Callable, Collection, Sequence

    from traksense.config import Settings
    from traksense.ingest.ack import Acknowledger
    from traksense.ingest.health import Health
    from traksense.ingest.intake import Intake
    from traksense.ingest.ports import BrokerWatch
    from traksense.model import Message
    from traksense.mqtt.codec import Event
    from traksense.mqtt.codecs import CodecFactory

T = TypeVar("T")

logger = logging.getLogger(__name__)

RECONNECT_INITIAL_SECONDS: Final = 0.2
RECONNECT_MAXIMUM_SECONDS: Final = 15.0
"""A broker that restarts is used again within this time. Chosen by guess."""

TOPICS_SHOWN: Final = 10
"""Filters in one log line."""

UNSENT_MAX_BYTES: Final = 1024 * 1024
"""PUBACKs and the like that the broker has not taken: four times those of the largest window that MQTT has. A broker
that sends on and reads nothing would fill our memory with them."""


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
        watch: BrokerWatch,
        topics: Sequence[str] | None = None,
    ) -> None:
        """Connect nothing yet.

        Args:
            settings: Where the broker is and what to subscribe to.
            intake: Where messages go.
            acknowledger: Whose PUBACKs to send.
            health: Where to say how the connection is.
            make_codec: Makes the codec of each connection. Default: the one that `MQTT_READER` names.
            watch: Told of each connection, and what the broker says of itself.
            topics: What to subscribe to instead of what the settings say; may be empty.
        """
        self._settings = settings
        self._intake = intake
        self._acknowledger = acknowledger
        self._health = health
        self._make_codec = make_codec or codec_factory(settings)
        self._watch = watch
        self._tls = tls_context(settings)
        self._generation = 0
        self._connection: Connection | None = None
        self._heartbeat: Heartbeat | None = None
        self._expiry_told: int | None = None
        self._answered = False
        self._reading = trio.CancelScope()
        self._stopping = trio.Event()
        self._closing = trio.Event()
        self._subscriptions = Subscriptions(settings.topics if topics is None else topics, settings.mqtt_qos)
        self._own_topics = frozenset({*SYS_TOPICS, settings.mqtt_heartbeat_topic or SYS_TOPICS[0]})
        self._sys_topics = SysTopics(watch)
        self._kept_session = KeptSession(watch.delivered)
        self.failures = Failures(settings)
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
        # What was refused and is not held any more is no fault any more.
        self._tell_subscription()
        return frozenset(release.confirmed)

    async def run(self) -> None:
        """Read until `stop_reading`, then keep the connection for the last PUBACKs until `close`.

        Error handling: a lost or refused connection is retried for ever, with jittered backoff; so is one that ended
        because we could not handle what came.

        Raises:
            BrokerRefusedError: At the first connection, for a reason that no waiting mends: a wrong configuration.
            SessionTakenOverError: Another client uses our client id; to reconnect would start a tug of war. What was
                read has been passed on.
        """
        backoff = Backoff(RECONNECT_INITIAL_SECONDS, RECONNECT_MAXIMUM_SECONDS)
        takeover: SessionTakenOverError | None = None
        while not self._stopping.is_set():
            started, connections = trio.current_time(), self.statistics.connections
            failure: Exception | None = None
            try:
                await self._connect_and_read()
            except SessionTakenOverError as error:
                self.statistics.takeovers += 1
                takeover = error
                break
            except BrokerRefusedError as error:
                if self.statistics.connections == 0:
                    raise
                failure = error
            except Exception as error:  # noqa: BLE001
                # Invariant: nothing that a broker sends ends the process. What was accepted is in the pipeline, the
                # rest is still the broker's and comes again; a bug stays visible: /readyz says so until it is mended.
                failure = error
            if failure is not None:
                seconds = trio.current_time() - started
                if seconds > STABLE_SECONDS:
                    backoff.reset()
                accepted = self.statistics.connections > connections
                reason = self.failures.explain(failure, accepted=accepted, answered=self._answered, seconds=seconds)
                self._health.set("broker", reason)
            with trio.move_on_after(backoff.next()):
                await self._stopping.wait()
        # Without a connection there may still be messages that an earlier one left behind.
        await self._intake.flush()
        self._intake.close()
        if takeover is not None:
            raise takeover

    def stop_reading(self) -> None:
        """Wait for the broker no more, whatever for, and take nothing more from it; what was read goes on."""
        self._stopping.set()
        self._reading.cancel()

    def close(self) -> None:
        """Send the PUBACKs that are queued, then DISCONNECT; `run` returns soon after."""
        self._closing.set()

    async def _until_stopped(self, wait: Callable[[], Awaitable[T]]) -> T | None:
        """Wait for it, but no longer than until `stop_reading`: None then."""
        with trio.CancelScope() as self._reading:
            if self._stopping.is_set():
                self._reading.cancel()
            return await wait()
        return None

    async def _connect_and_read(self) -> None:
        settings = self._settings
        self._generation += 1
        codec = self._make_codec(settings, self._generation)
        stream = await self._until_stopped(lambda: open_stream(settings.broker.host, settings.broker.port, self._tls))
        if stream is None:
            return
        connection = Connection(stream, codec, keepalive=settings.mqtt_keepalive)
        heartbeat = Heartbeat(
            settings.mqtt_heartbeat_topic or "", settings.mqtt_heartbeat, connection, self._tell_subscription
        )
        try:
            tell_unanswered = partial(self._subscriptions.tell_unanswered, self._health)
            await connection.run(lambda: self._session(connection, heartbeat), heartbeat.run, tell_unanswered)
        finally:
            self._answered = self._subscriptions.answered and self._sys_topics.answered
            if self._connection is not None:
                # Without CONNACK the session is as it was, and so is what it has to prove.
                self._kept_session.disconnected(self._acknowledger.oldest)
            self._connection = self._heartbeat = None
            self._subscriptions.disconnected()
            self._acknowledger.disconnected()

    async def _session(self, connection: Connection, heartbeat: Heartbeat) -> None:
        """What happens on one connection, from CONNECT to DISCONNECT."""
        connected = await self._until_stopped(connection.handshake)
        if connected is None:
            return
        self.statistics.connections += 1
        self._watch.connected(connected.session_present)
        self._kept_session.connected(connection.codec.messages, session_present=connected.session_present)
        self._tell_expiry(connected.session_expiry)
        self._acknowledger.connected(self._generation, connection.acknowledge)
        self._connection, self._heartbeat = connection, heartbeat
        self._subscriptions.connected(connection.codec, session_present=connected.session_present)
        self._sys_topics.ask(connection.codec)
        heartbeat.subscribe()
        connection.wake()
        if self._subscriptions.answered:
            self._note_subscribed(session_present=connected.session_present)
        await self._until_stopped(lambda: self._read(connection, session_present=connected.session_present))
        connection.pause(True)
        self._accept(connection.codec.messages)
        await self._intake.flush()
        self._intake.close()
        await self._closing.wait()
        await connection.close()

    async def _read(self, connection: Connection, *, session_present: bool) -> None:
        """Until cancelled."""
        unsent_max_bytes = connection.unsent_bytes + UNSENT_MAX_BYTES
        while True:
            # Messages may have come in one piece with CONNACK, and before SUBACK: they are the session's backlog.
            await self._pass_on(connection)
            for event in await connection.receive():
                self._handle(event, session_present=session_present)
            if connection.unsent_bytes > unsent_max_bytes:
                raise BrokerError(f"the broker reads nothing: {connection.unsent_bytes} bytes wait for it")

    async def _pass_on(self, connection: Connection) -> None:
        if connection.codec.messages:
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
            if self._heartbeat is not None:
                self._heartbeat.heard()

    def _accept(self, messages: deque[Message]) -> None:
        if self._heartbeat is not None:
            self._heartbeat.heard()
        if self._kept_session.open:
            self._kept_session.look(messages)
        own = self._own_topics
        self._intake.accept([m for m in messages if m.topic not in own or m.qos or self._is_theirs(m)])
        messages.clear()

    def _is_theirs(self, message: Message) -> bool:
        """False, and it ends here, for what we have subscribed to for ourselves; that comes at QoS 0."""
        if message.topic in SYS_TOPICS:
            self._sys_topics.note(message)
        return False

    def _handle(self, event: Event, *, session_present: bool) -> None:
        if isinstance(event, Connected):
            raise ProtocolError("a second CONNACK")
        self._sys_topics.handle(event)
        if self._heartbeat is not None:
            self._heartbeat.handle(event)
        if self._subscriptions.handle(event):
            self._note_subscribed(session_present=session_present)

    def _tell_expiry(self, seconds: int | None) -> None:
        """Of a broker that keeps our session for a shorter time than we asked for [MQTT-3.2.2.3.2]: an outage that is
        longer loses what it has queued.
        """
        if seconds is not None and seconds < self._settings.mqtt_session_expiry and seconds != self._expiry_told:
            self._expiry_told = seconds
            extra = {"traksense_seconds": seconds, "traksense_asked_seconds": self._settings.mqtt_session_expiry}
            logger.warning("session_expiry_shortened", extra=extra)

    def _tell_subscription(self) -> None:
        if self._subscriptions.answered:
            heartbeat = self._heartbeat.fault if self._heartbeat is not None else None
            self._health.set("subscription", self._subscriptions.fault or heartbeat)

    def _note_subscribed(self, *, session_present: bool) -> None:
        settings, topics = self._settings, self._subscriptions.topics
        self._tell_subscription()
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
