"""The end of a session: what it holds is handed over, what it has queued is stored, then it is ended at the broker.

For the shards that are too many after the count was lowered, for the one session there was before there were shards,
and for any client id that nobody will use again. It is the service itself, with nothing that it wants: so `handover`
gives up each filter when another replica reads it, and not before.

# Invariant: a session is ended only after the broker has answered on a connection of its own, with nothing queued.

Silence alone proves nothing: a broker that stalls is silent too. So after the silence something is asked that it has to
answer behind all that it sends, and once more in a second connection, which is sent whatever is left.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Final

import attrs
import trio

from traksense import service
from traksense.errors import BrokerError, ConfigError
from traksense.mqtt.codec import Unsubscribed
from traksense.mqtt.connection import Connection
from traksense.mqtt.paho_codec import PahoCodec
from traksense.mqtt.stream import open_stream, tls_context
from traksense.mqtt.sys_topics import SYS_TOPICS
from traksense.store.connection import open_connection
from traksense.store.sessions import IN_USE_SECONDS, STOP_IT
from traksense.tools.progress import Progress

if TYPE_CHECKING:
    from traksense.config import Settings
    from traksense.service import Pipeline

APPLICATION: Final = "traksense shards"

QUIET_SECONDS: Final = 5.0
"""With no filter left and nothing received for so long, the queue may be empty, and the broker is asked. Chosen by
guess."""

ANSWER_SECONDS: Final = 60.0
"""For so long the broker may take to answer. Chosen by guess."""

NOTHING: Final = "traksense/-/-/-/retired"
"""A filter that nobody is subscribed to: to give it up changes nothing, and has to be answered."""

POLL_SECONDS: Final = 0.1

UNSHARDED: Final = (
    "still waiting: MQTT_TENANTS is not set here, so a filter is given up only to a replica that reads the same one; "
    "set MQTT_TENANTS and MQTT_SHARD_COUNT as the shards have them; or, if nobody shall read them any more, repeat "
    "this with --unread"
)

SESSION: Final = """
SELECT CASE WHEN coalesce(left_at < last_alive_at, true) THEN extract(epoch FROM now() - last_alive_at)::float8 END,
    held
FROM traksense.ingest_session WHERE client_id = $1
"""
"""Seconds since a service used it, unless that has left it."""

FORGET: Final = "DELETE FROM traksense.ingest_session WHERE client_id = $1"


async def retire(settings: Settings, client_id: str, *, progress: Progress, unread: bool = False) -> bool:
    """Do it; whether the session is ended (a signal comes before that).

    Args:
        settings: Where broker and database are.
        client_id: Which session.
        progress: Where it is told how far it has got.
        unread: Give up also what no other replica reads.

    Raises:
        ConfigError: The client id is in use, or nobody knows it.
        StoreError: The database is not there, or refuses.
        BrokerError: The session could not be ended.

    Trio-flavored.
    """
    settings = attrs.evolve(settings, mqtt_client_id=client_id, mqtt_shard=None, metrics_port=0)
    async with open_connection(settings.database, application=APPLICATION) as database:
        rows = await database.fetch(SESSION, client_id)
    for seconds, _ in rows:
        if seconds is not None and seconds < IN_USE_SECONDS:
            raise ConfigError([f"CLIENT_ID: a service was using {client_id} {max(seconds, 0):.0f} s ago: {STOP_IT}"])
    if not rows and not await has_session(settings):
        # To look has made one.
        await _end_session(settings)
        raise ConfigError([f"CLIENT_ID: neither the broker nor the database has {client_id}: is it misspelt?"])
    if unread:
        held = {topic for _, topics in rows for topic in topics or ()}
        settings = attrs.evolve(settings, mqtt_unsubscribe=tuple(held | set(settings.mqtt_topics)))
    while True:
        emptied = _Emptied(settings, progress)
        await service.run(settings, retire=emptied.watch)
        if not emptied.happened:
            return False
        if await is_empty(settings):
            break
        progress.say("the broker had more", to=sys.stderr)
    await _end_session(settings)
    async with open_connection(settings.database, application=APPLICATION) as database:
        await database.fetch(FORGET, client_id)
    return True


@attrs.define
class _Emptied:
    """Drains the pipeline once there is nothing more to come."""

    settings: Settings
    progress: Progress = attrs.field(factory=Progress)
    happened: bool = False

    async def watch(self, pipeline: Pipeline) -> None:
        """Wait until everything is given up, then until nothing comes any more."""
        handover, ledger = pipeline.handover, pipeline.ledger
        self.progress.at(
            lambda: (
                f"waiting until other replicas read {len(handover.kept)} topic filters; "
                f"{ledger.received_total:,} messages read meanwhile"
            )
        )
        said = ""
        while not handover.done.is_set():
            # Others have claimed everything by then, as a rule.
            with trio.move_on_after(2 * self.settings.mqtt_handover):
                await handover.done.wait()
            if not handover.done.is_set() and (hint := self._hint(pipeline)) not in ("", said):
                said = hint
                self.progress.say(said, to=sys.stderr)
        self.progress.say("nothing is subscribed any more; reading what is queued", to=sys.stderr)
        self.progress.at(lambda: f"reading what is queued: {ledger.received_total:,} messages so far")
        received, since = -1, trio.current_time()
        while True:
            busy = ledger.in_flight or not pipeline.health.holds("broker")
            if busy or received != ledger.received_total:
                received, since = ledger.received_total, trio.current_time()
            elif trio.current_time() - since >= QUIET_SECONDS:
                answered = await pipeline.reader.unsubscribe([NOTHING])
                if answered and received == ledger.received_total and not ledger.in_flight:
                    break
                received = -1
            await trio.sleep(POLL_SECONDS)
        self.happened = True
        pipeline.drain()

    def _hint(self, pipeline: Pipeline) -> str:
        """What may keep whoever waits for so long; empty if it is the other replicas."""
        if pipeline.health.holds("broker"):
            return UNSHARDED if self.settings.layout is None else ""
        return f"still waiting for the broker: {pipeline.health.report()['broker']['reason']}"


async def has_session(settings: Settings) -> bool:
    """Connect and see whether the broker has one; if not, it has one afterwards.

    Raises:
        BrokerError: The broker is not there, refuses, or does not answer.

    Trio-flavored.
    """
    connection = await _connect(settings)
    present: list[bool] = []

    async def look() -> None:
        present.append((await connection.handshake()).session_present)
        await connection.close()

    await connection.run(look)
    return present[0]


async def is_empty(settings: Settings) -> bool:
    """Connect to the session and see whether it has anything; nothing is acknowledged, so nothing is lost by it.

    Raises:
        BrokerError: The broker is not there, refuses, or does not answer.

    Trio-flavored.
    """
    connection = await _connect(settings)

    def something() -> bool:
        # What the broker says of itself, and heartbeats, come at QoS 0: they are never queued. See `Reader._accept`.
        own = (*SYS_TOPICS, settings.mqtt_heartbeat_topic)
        return any(message.qos or message.topic not in own for message in connection.codec.messages)

    async def look() -> None:
        await connection.handshake()
        with trio.move_on_after(QUIET_SECONDS):
            while not something():
                await connection.receive()
        if not something():
            await _ask(connection)
        await connection.close()

    await connection.run(look)
    return not something()


async def _ask(connection: Connection) -> None:
    """Wait for an answer that comes behind everything that the broker had to send."""
    number = connection.codec.unsubscribe([NOTHING])
    connection.wake()
    with trio.move_on_after(ANSWER_SECONDS):
        while True:
            for event in await connection.receive():
                if isinstance(event, Unsubscribed) and event.packet_id == number:
                    return
    raise BrokerError(f"the broker does not answer for {ANSWER_SECONDS:.0f} s: the session is as it was")


async def _end_session(settings: Settings) -> None:
    """Connect anew, without a session, and go: nothing is left at the broker. Source: MQTT 5.0 §3.1.2.4."""
    connection = await _connect(settings, clean=True)

    async def body() -> None:
        await connection.handshake()
        await connection.close()

    await connection.run(body)


async def _connect(settings: Settings, *, clean: bool = False) -> Connection:
    codec = PahoCodec(
        client_id=settings.client_id,
        version=settings.mqtt_version,
        session_expiry=0 if clean else int(settings.mqtt_session_expiry),
        clean=clean,
        username=settings.username,
        password=settings.password,
    )
    stream = await open_stream(settings.broker.host, settings.broker.port, tls_context(settings))
    return Connection(stream, codec, keepalive=30)
