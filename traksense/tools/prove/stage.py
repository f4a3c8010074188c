"""The stage of a run: broker, database, the service's replicas, and the two links between them that can be broken.

publisher ──▶ broker ◀── broker link (Proxy, Witness) ◀── service ──▶ database link (Proxy) ──▶ database
"""

from __future__ import annotations

import asyncio
import importlib.util
import logging
import os
import signal
from contextlib import asynccontextmanager
from random import Random
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

import attrs
import trio

from traksense.store.migrate import migrate
from traksense.tools.prove.database import DROP_UNIQUE_KEY, PREPARE, Database
from traksense.tools.prove.frames import CommitSpotter
from traksense.tools.prove.keeper import NOT_REPLACED
from traksense.tools.prove.replicas import Replicas
from traksense.tools.prove.saboteur import ACK_EARLY, HASTY_HANDOVER
from traksense.tools.prove.schedule import Part
from traksense.tools.proxy import Proxy
from traksense.tools.stack import BrokerOptions, BrokerProcess, open_broker
from traksense.tools.stack.processes import POLL_SECONDS

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from traksense.tools.prove.witness import Witness
    from traksense.tools.stack import PostgresProcess

TEMPLATE: Final = "prove_template"
CLIENT_ID: Final = "traksense-prove-service"
KEEPALIVE_SECONDS: Final = 3

AUTOSAVE_SECONDS: Final = 1
"""The broker saves all it has so often, so that it loses little when it is killed.

Not `autosave_on_changes`: Mosquitto 2.0.11 does not count a message that goes straight into flight as a change
(`db__message_insert`). So with a wide window and a database that is away, when nothing is acknowledged, nothing is
saved for as long as that lasts. With `autosave_on_changes` at each change, seed 2 lost 1,456 of 2,921 messages, some of
them confirmed more than 5 s before the kill; with a save every second, 163."""

NO_UNIQUE_KEY: Final = "no-unique-key"
BREAKAGES: Final = (ACK_EARLY, NO_UNIQUE_KEY, NOT_REPLACED, HASTY_HANDOVER)


@attrs.define(eq=False)
class Stage:
    """See the module."""

    postgres: PostgresProcess
    broker: BrokerProcess
    database: Database
    database_link: Proxy
    broker_link: Proxy
    replicas: Replicas
    environment: dict[str, str]
    broker_kills: list[float] = attrs.field(factory=list)
    turns: dict[Part, trio.Lock] = attrs.field(factory=lambda: {part: trio.Lock() for part in Part})


class _DatabaseObserver:
    """Spots commits; see `proxy.Observer`."""

    def __init__(self) -> None:
        self._spotter = CommitSpotter()

    def from_client(self, data: bytes) -> bool:
        return self._spotter.feed(data)

    def from_server(self, data: bytes) -> None:
        pass


async def make_template(postgres: PostgresProcess) -> None:
    """A migrated, prepared database that the runs copy."""
    dsn = await postgres.create_database(TEMPLATE)
    quiet = logging.getLogger(f"{__name__}.migrate")
    await trio.to_thread.run_sync(lambda: asyncio.run(migrate(dsn, log=quiet)))
    await Database(dsn).execute(*PREPARE)


@asynccontextmanager
async def open_stage(
    directory: Path, postgres: PostgresProcess, witness: Witness, *, seed: int, replicas: int, breakage: str | None
) -> AsyncIterator[Stage]:
    """Set the stage: a fresh broker, a fresh database, the links, and the service on its way up.

    Resource handling: on the way out the service and the broker are ended, whatever state they are in.

    Trio-flavored.
    """
    name = f"prove_{seed}"
    database = Database(await postgres.create_database(name, TEMPLATE))
    if breakage == NO_UNIQUE_KEY:
        await database.execute(DROP_UNIQUE_KEY)
    options = BrokerOptions(autosave_interval=AUTOSAVE_SECONDS)
    async with (
        open_broker(directory / "broker", kind="mosquitto", options=options) as broker,
        trio.open_nursery() as nursery,
    ):
        database_link = Proxy(postgres.port, observe=_DatabaseObserver)
        broker_link = Proxy(broker.port, observe=witness.observe)
        environment = _environment(seed, broker_link.port, _through(database.url.dsn.reveal(), database_link.port))
        services = Replicas(environment, directory, replicas, breakage=breakage)
        for link in (database_link, broker_link):
            await link.listen()
            nursery.start_soon(link.run)
        nursery.start_soon(services.run)
        yield Stage(postgres, broker, database, database_link, broker_link, services, environment)
        nursery.cancel_scope.cancel()


async def save_sessions(broker: BrokerProcess) -> None:
    """Have Mosquitto save what it has now, and wait until it is on the disk.

    A broker that is killed before its first save forgets the service's session as a whole, and confirms messages into
    the void until the service is back. That is its loss too, but it would drown every other.

    Source: mosquitto(8), SIGUSR1. Trio-flavored.
    """
    saved = broker.directory / "mosquitto.db"
    before = saved.stat().st_mtime_ns if saved.exists() else 0
    os.kill(broker.pid, signal.SIGUSR1)
    while not saved.exists() or saved.stat().st_mtime_ns == before:
        await trio.sleep(POLL_SECONDS)


def _environment(seed: int, broker_port: int, dsn: str) -> dict[str, str]:
    """The service's variables: short time-outs, so that a short run sees many of them; the rest as the seed wants."""
    random = Random(seed)  # noqa: S311  (repeatable, not secret)
    version = random.choice(("5", "5", "5", "3.1.1"))
    readers = ("paho", "mqtt5") if importlib.util.find_spec("mqtt5") else ("paho",)
    return {
        "MQTT_URL": f"mqtt://127.0.0.1:{broker_port}",
        "MQTT_CLIENT_ID": CLIENT_ID,
        "MQTT_VERSION": version,
        "MQTT_READER": random.choice(readers) if version == "5" else "paho",
        "MQTT_HANDOVER_SECONDS": "1",
        "MQTT_KEEPALIVE": str(KEEPALIVE_SECONDS),
        "DATABASE_URL": dsn,
        "DB_STATEMENT_TIMEOUT": "2",
        "DB_POOL_MIN": "1",
        "DB_POOL_MAX": random.choice(("1", "2", "4", "8")),
        "INGEST_QUEUE_MAX": random.choice(("20", "200", "2000")),
        "INGEST_BATCH_SIZE": random.choice(("20", "200", "5000")),
        "INGEST_BATCH_MS": random.choice(("10", "250")),
        "INGEST_SHUTDOWN_SECONDS": "4",
    }


def _through(dsn: str, port: int) -> str:
    """The same database by way of a proxy on this machine."""
    parts = urlsplit(dsn)
    credentials = parts.netloc.rpartition("@")[0]
    return parts._replace(netloc=f"{credentials}@127.0.0.1:{port}").geturl()
