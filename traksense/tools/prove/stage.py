"""The stage of a run: broker, database, the service's replicas, and the links between them that can be broken.

publisher ──▶ broker ◀── broker link (Proxy, Witness) ◀── service ──▶ database link (Proxy) ──▶ [pooler ──▶] database
                                                                 └──▶ database link (Proxy) ──▶ [standby]
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
from traksense.tools.prove.database import DROP_UNIQUE_KEY, LOCKABLE, NO_DICTIONARY_CHECK, PREPARE, Database
from traksense.tools.prove.frames import CommitSpotter
from traksense.tools.prove.keeper import NOT_REPLACED
from traksense.tools.prove.replicas import Replicas
from traksense.tools.prove.saboteur import BREAKAGES as IN_THE_SERVICE
from traksense.tools.prove.schedule import FAILOVER, POOLER_KILL, Part
from traksense.tools.proxy import Proxy
from traksense.tools.stack import BrokerOptions, BrokerProcess, PoolerProcess, open_broker
from traksense.tools.stack.processes import POLL_SECONDS

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Collection, Sequence
    from pathlib import Path

    from traksense.tools.prove.acts import Act
    from traksense.tools.prove.publishing import Publishing
    from traksense.tools.prove.resume import ResumeWatch
    from traksense.tools.prove.servers import Servers
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
LOCKABLE_WRITERS: Final = "lockable"
UNCHECKED_DICTIONARY: Final = "no-dictionary-check"
UNHEALED: Final = "unhealed"
BREAKAGES: Final = (
    *IN_THE_SERVICE, NO_UNIQUE_KEY, NOT_REPLACED, LOCKABLE_WRITERS, UNCHECKED_DICTIONARY, UNHEALED,
)  # fmt: skip

_IN_THE_DATABASE: Final = {
    NO_UNIQUE_KEY: (DROP_UNIQUE_KEY,),
    LOCKABLE_WRITERS: LOCKABLE,
    UNCHECKED_DICTIONARY: (NO_DICTIONARY_CHECK,),
}


@attrs.define(eq=False)
class Stage:
    """See the module.

    Attributes:
        directory: Where this run keeps what is its own.
        servers: The database servers; `database` is the run's database on the primary.
        database_links: One for each server, in the order of `Servers.ports`; or one, to the only server or the pooler.
        pooler: Between link and primary, if this run has one.
        publishing: What is published.
        resumed: Measures how long the service takes to store something new after a fault.
        unhealed: What lasts is not undone before the end: the control for `resumed`.
        acts: What operators have done.
    """

    directory: Path
    servers: Servers
    broker: BrokerProcess
    database: Database
    database_name: str
    database_links: list[Proxy]
    broker_link: Proxy
    pooler: PoolerProcess | None
    replicas: Replicas
    environment: dict[str, str]
    publishing: Publishing
    resumed: ResumeWatch
    unhealed: bool = False
    acts: list[Act] = attrs.field(factory=list)
    broker_kills: list[float] = attrs.field(factory=list)
    turns: dict[Part, trio.Lock] = attrs.field(factory=lambda: {part: trio.Lock() for part in Part})

    @property
    def database_link(self) -> Proxy:
        """The one to the primary."""
        if len(self.database_links) == 1:
            return self.database_links[0]
        return self.database_links[self.servers.ports.index(self.servers.primary.port)]

    async def fail_over(self, seconds: float) -> None:
        """See `Servers.fail_over`; then another standby follows the new primary."""
        await self.servers.fail_over(seconds, on_standby_lost=self._publish_on)
        self.database.move(self.servers.primary.dsn_of(self.database_name))
        await self.servers.follow()

    def _publish_on(self) -> None:
        self.publishing.paused = False


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
    directory: Path,
    servers: Servers,
    witness: Witness,
    publishing: Publishing,
    *,
    seed: int,
    replicas: int,
    faults: Collection[str],
    resumed: ResumeWatch,
    breakage: str | None,
) -> AsyncIterator[Stage]:
    """Set the stage: a fresh broker, a fresh database, the links, and the service on its way up.

    Resource handling: on the way out the service and the broker are ended, whatever state they are in.

    Trio-flavored.
    """
    if FAILOVER in faults:
        await servers.follow()
    else:
        await servers.part()
    name = f"prove_{seed}"
    database = Database(await servers.primary.create_database(name, TEMPLATE))
    await database.execute(*_IN_THE_DATABASE.get(breakage or "", ()))
    options = BrokerOptions(autosave_interval=AUTOSAVE_SECONDS)
    async with (
        open_broker(directory / "broker", kind="mosquitto", options=options) as broker,
        _open_pooler(servers.primary, seed, wanted=POOLER_KILL in faults) as pooler,
        trio.open_nursery() as nursery,
    ):
        ports = servers.ports if servers.standby else (pooler.port if pooler else servers.primary.port,)
        database_links = [Proxy(port, observe=_DatabaseObserver) for port in ports]
        broker_link = Proxy(broker.port, observe=witness.observe)
        dsn = _through(database.url.dsn.reveal(), [link.port for link in database_links])
        environment = _environment(seed, broker_link.port, dsn)
        services = Replicas(environment, directory, replicas, breakage=breakage)
        for link in (*database_links, broker_link):
            await link.listen()
            nursery.start_soon(link.run)
        nursery.start_soon(services.run)
        yield Stage(
            directory,
            servers,
            broker,
            database,
            name,
            database_links,
            broker_link,
            pooler,
            services,
            environment,
            publishing,
            resumed,
            unhealed=breakage == UNHEALED,
        )
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def _open_pooler(postgres: PostgresProcess, seed: int, *, wanted: bool) -> AsyncIterator[PoolerProcess | None]:
    if not wanted:
        yield None
        return
    # Where PostgreSQL's user can reach it.
    async with PoolerProcess(postgres.directory / f"pooler-{seed}", postgres).opened() as pooler:
        yield pooler


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


def _through(dsn: str, ports: Sequence[int]) -> str:
    """The same database by way of proxies on this machine."""
    parts = urlsplit(dsn)
    credentials = parts.netloc.rpartition("@")[0]
    hosts = ",".join(f"127.0.0.1:{port}" for port in ports)
    return parts._replace(netloc=f"{credentials}@{hosts}").geturl()
