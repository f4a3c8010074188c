"""The end of a session: what it holds is handed over, what it has queued is stored, then it is ended at the broker.

For the shards that are too many after the count was lowered, for the one session there was before there were shards,
and for any client id that nobody will use again. It is the service itself, with nothing that it wants: so `handover`
gives up each filter when another replica reads it, and not before.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Final

import attrs
import trio

from traksense import service
from traksense.errors import ConfigError
from traksense.mqtt.connection import Connection
from traksense.mqtt.paho_codec import PahoCodec
from traksense.mqtt.stream import open_stream, tls_context
from traksense.store.connection import open_connection

if TYPE_CHECKING:
    from traksense.config import Settings
    from traksense.service import Pipeline

APPLICATION: Final = "traksense shards"

QUIET_SECONDS: Final = 5.0
"""With no filter left and nothing received for so long, the queue is empty: brokers send what they have as fast as it
is acknowledged. Chosen by guess."""

POLL_SECONDS: Final = 0.1

IN_USE: Final = """
SELECT extract(epoch FROM now() - last_alive_at)::float8 FROM traksense.ingest_session
WHERE client_id = $1 AND last_alive_at > now() - interval '30 seconds'
"""
"""Three times the interval at which a service says that it lives."""

FORGET: Final = "DELETE FROM traksense.ingest_session WHERE client_id = $1"


async def retire(settings: Settings, client_id: str) -> bool:
    """Do it; whether the session is ended (a signal comes before that).

    Raises:
        ConfigError: The client id is in use.
        StoreError: The database is not there, or refuses.
        BrokerError: The session could not be ended.

    Trio-flavored.
    """
    settings = attrs.evolve(settings, mqtt_client_id=client_id, mqtt_shard=None, metrics_port=0)
    async with open_connection(settings.database, application=APPLICATION) as database:
        for (seconds,) in await database.fetch(IN_USE, client_id):
            raise ConfigError([f"a service uses {client_id}, {max(seconds, 0):.0f} s ago: stop it first @ CLIENT_ID"])
    emptied = _Emptied()
    await service.run(settings, retire=emptied.watch)
    if not emptied.happened:
        return False
    await _end_session(settings)
    async with open_connection(settings.database, application=APPLICATION) as database:
        await database.fetch(FORGET, client_id)
    return True


@attrs.define
class _Emptied:
    """Drains the pipeline once there is nothing more to come."""

    happened: bool = False

    async def watch(self, pipeline: Pipeline) -> None:
        """Wait until everything is given up, then until nothing comes any more."""
        await pipeline.handover.done.wait()
        print("nothing is subscribed any more; reading what is queued", file=sys.stderr)
        ledger = pipeline.ledger
        received, since = -1, trio.current_time()
        while trio.current_time() - since < QUIET_SECONDS:
            busy = ledger.in_flight or not pipeline.health.holds("broker")
            if busy or received != ledger.received_total:
                received, since = ledger.received_total, trio.current_time()
            await trio.sleep(POLL_SECONDS)
        self.happened = True
        pipeline.drain()


async def _end_session(settings: Settings) -> None:
    """Connect anew, without a session, and go: nothing is left at the broker. Source: MQTT 5.0 §3.1.2.4."""
    codec = PahoCodec(
        client_id=settings.client_id,
        version=settings.mqtt_version,
        clean=True,
        username=settings.username,
        password=settings.password,
    )
    stream = await open_stream(settings.broker.host, settings.broker.port, tls_context(settings))
    connection = Connection(stream, codec, keepalive=30)

    async def body() -> None:
        await connection.handshake()
        await connection.close()

    await connection.run(body)
