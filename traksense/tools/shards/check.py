"""Who is in no shard? MQTT has no filter for "everybody else", so it has to be asked in two other ways.

The database knows every tenant that was ever stored or registered. A tenant that is new is only seen by somebody who
listens to all topics: at QoS 0 with a session that ends with the connection, so that nothing is queued for it, and for
some seconds only, since it is given all that passes.
"""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, Final

import attrs
import trio

from traksense.errors import BrokerError
from traksense.ingest.decode import read_topic
from traksense.mqtt.codec import Subscribed
from traksense.mqtt.connection import Connection
from traksense.mqtt.paho_codec import PahoCodec
from traksense.mqtt.stream import open_stream, tls_context
from traksense.mqtt.subscriptions import require_one_each
from traksense.names import canonical_name
from traksense.store.connection import open_connection
from traksense.tools.shards.layout import layout_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from traksense.config import Settings
    from traksense.shards import Layout

APPLICATION: Final = "traksense shards"
KEEPALIVE_SECONDS: Final = 30

TENANTS: Final = "SELECT tenant_id FROM traksense.tenant"
SITES: Final = "SELECT DISTINCT tenant_id, site_id FROM traksense.device WHERE tenant_id = ANY ($1::text[])"


@attrs.define
class Unread:
    """Tenants, and sites of divided tenants as `tenant/site`, that no shard has; and where they were seen."""

    seen: dict[str, str] = attrs.field(factory=dict)

    def add(self, name: str, where: str) -> None:
        """The first place is enough."""
        self.seen.setdefault(name, where)


async def check(settings: Settings, listen_seconds: float) -> Unread:
    """Ask the database and, for so many seconds, the broker.

    Raises:
        ConfigError: There are no shards.
        StoreError: The database is not there, or refuses.
        BrokerError: The broker is not there, or refuses.

    Trio-flavored.
    """
    layout = layout_of(settings)
    unread = Unread()
    async with open_connection(settings.database, application=APPLICATION) as database:
        listed = _listed(layout)
        for (tenant,) in await database.fetch(TENANTS):
            if tenant not in listed:
                unread.add(tenant, "in the database")
        divided = [tenant for tenant, sites in listed.items() if sites is not None]
        for tenant, site in await database.fetch(SITES, divided):
            if site not in (listed[tenant] or ()):
                unread.add(f"{tenant}/{site}", "in the database")
    if listen_seconds:
        await _listen(settings, listed, unread, listen_seconds)
    return unread


def _listed(layout: Layout) -> dict[str, set[str] | None]:
    """The tenants, with their sites if they are divided."""
    listed: dict[str, set[str] | None] = {}
    for entry in layout.entries:
        if entry.site is None:
            listed[entry.tenant] = None
        else:
            sites = listed.setdefault(entry.tenant, set())
            if sites is not None:
                # As they are stored; a filter takes what the device writes.
                sites.update({entry.site, canonical_name(entry.site)})
    return listed


async def _listen(settings: Settings, listed: dict[str, set[str] | None], unread: Unread, seconds: float) -> None:
    """See who publishes."""
    codec = PahoCodec(
        client_id=f"traksense-shards-{secrets.token_hex(4)}",
        version=settings.mqtt_version,
        keepalive=KEEPALIVE_SECONDS,
        clean=True,
        username=settings.username,
        password=settings.password,
    )
    stream = await open_stream(settings.broker.host, settings.broker.port, tls_context(settings))
    connection = Connection(stream, codec, keepalive=KEEPALIVE_SECONDS)
    answered = trio.Event()

    async def look() -> None:
        await connection.handshake()
        asked = codec.subscribe(settings.mqtt_topics, 0)
        connection.wake()
        with trio.move_on_after(seconds):
            while True:
                for event in await connection.receive():
                    if isinstance(event, Subscribed) and event.packet_id == asked:
                        answered.set()
                        _refuse_refusals(settings.mqtt_topics, event)
                for message in codec.messages:
                    route = read_topic(message.topic)
                    if route is None:
                        continue
                    site = message.topic.split("/")[2]
                    if route.tenant not in listed:
                        unread.add(route.tenant, "at the broker")
                    elif (sites := listed[route.tenant]) is not None and site not in sites:
                        unread.add(f"{route.tenant}/{site}", "at the broker")
                codec.messages.clear()
        if not answered.is_set():
            raise BrokerError(
                f"the broker did not answer the subscription within {seconds:.0f} s: no publisher was heard"
            )
        await connection.close()

    await connection.run(look)


def _refuse_refusals(topics: Sequence[str], answer: Subscribed) -> None:
    """Who may not listen hears nobody, which would look like an all-clear."""
    require_one_each("SUBACK", topics, answer.reasons)
    refused = [topic for topic, code in zip(topics, answer.reasons, strict=True) if code >= 0x80]
    if refused:
        raise BrokerError(f"the broker refuses the subscription to {', '.join(refused)}: give this user the right")
