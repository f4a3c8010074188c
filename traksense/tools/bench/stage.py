"""The broker and the database of a bench, a fresh database for each run, and the service of a checkout beside them."""

from __future__ import annotations

import os
import secrets
import sys
import time
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Final

import attrs
import trio

import traksense
from traksense.config import DatabaseUrl, Secret, Settings
from traksense.service import writer_count
from traksense.store.connection import open_connection
from traksense.tools.bench import tables
from traksense.tools.bench.hose import end_session, open_hose, open_session
from traksense.tools.bench.readings import Sampler, children, cpu_seconds, memory_bytes
from traksense.tools.stack import (
    BrokerOptions,
    Child,
    ServiceProcess,
    StackError,
    open_broker,
    open_postgres,
    open_service,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable

    from traksense.store.connection import DatabaseConnection
    from traksense.tools.bench.load import Fleet
    from traksense.tools.stack import BrokerProcess, PostgresProcess

APPLICATION: Final = "traksense bench"
POLL_SECONDS: Final = 0.5
"""How often a run is asked whether it is done; each time costs the service a few milliseconds."""

DAY: Final = timedelta(days=1)

BROKER_OPTIONS: Final = BrokerOptions(
    # Mosquitto saves by rewriting its whole queue on its only thread: with a backlog that is all it would do. It loses
    # nothing here, since nobody kills it.
    autosave_interval=0,
    max_inflight_messages=65_535,
)


@attrs.frozen
class Contender:
    """Whose service is measured: a checkout, with one of its readers.

    Attributes:
        label: What the report calls it.
        checkout: The directory that holds its `traksense` package.
        reader: For `MQTT_READER`.
        writers: For `DB_POOL_MAX`, which is one more; None for its own default.
    """

    label: str
    checkout: Path
    reader: str
    writers: int | None = None

    def command(self, *arguments: str) -> tuple[str, ...]:
        """To run a command of this checkout, with our interpreter and packages."""
        return (sys.executable, "-P", "-m", "traksense", *arguments)

    def environment(self, dsn: str) -> dict[str, str]:
        """What its commands need, apart from the broker."""
        variables = {"PYTHONPATH": str(self.checkout), "DATABASE_URL": dsn, "LOG_FORMAT": "text"}
        return variables | ({"DB_POOL_MAX": str(self.writers + 1)} if self.writers else {})


def own_checkout() -> Path:
    """The directory that holds the package that is running."""
    return Path(traksense.__file__).resolve().parent.parent


class Stage:
    """See `open_stage`."""

    def __init__(self, directory: Path, postgres: PostgresProcess, broker: BrokerProcess, writers: int | None) -> None:
        self.directory = directory
        self.postgres = postgres
        self.broker = broker
        self.writers = writers or writer_count(Settings())
        self._templates: dict[tuple[Path, Fleet | None], str] = {}

    @asynccontextmanager
    async def database(self, contender: Contender, fleet: Fleet, *, registered: bool = True) -> AsyncIterator[str]:
        """A fresh database for one run, with that checkout's schema and, if wanted, the fleet in its dictionaries."""
        template = await self._template(contender, fleet if registered else None)
        name = f"run_{secrets.token_hex(4)}"
        dsn = await self.postgres.create_database(name, template)
        try:
            await self.settle(dsn)
            yield dsn
        finally:
            with trio.move_on_after(30, shield=True):
                await self.postgres.drop_database(name)

    async def forget(self, fleet: Fleet) -> None:
        """Drop the databases that were prepared for a fleet: large ones take room."""
        for key in [key for key in self._templates if key[1] == fleet]:
            await self.postgres.drop_database(self._templates.pop(key))

    @asynccontextmanager
    async def connection(self, dsn: str) -> AsyncIterator[DatabaseConnection]:
        """Our own connection. Trio-flavored."""
        async with open_connection(DatabaseUrl(Secret(dsn)), application=APPLICATION, schema=False) as database:
            await database.fetch("SET statement_timeout = 0")
            yield database

    async def settle(self, dsn: str) -> None:
        """Let the database write what it has to, so that no run pays for the one before it."""
        async with self.connection(dsn) as database:
            await database.call(tables.checkpoint)

    @asynccontextmanager
    async def backlog(self, chunks: Iterable[tuple[bytes, int]]) -> AsyncIterator[str]:
        """A session full of messages; its client identifier."""
        client_id = f"bench-{secrets.token_hex(4)}"
        await open_session(self.broker, client_id)
        try:
            async with open_hose(self.broker) as hose:
                await hose.send_all(chunks)
            yield client_id
        finally:
            with trio.move_on_after(30, shield=True):
                await end_session(self.broker, client_id)

    @asynccontextmanager
    async def service(self, contender: Contender, dsn: str, client_id: str) -> AsyncIterator[Watched]:
        """The contender's service on this database and session, with its processes sampled."""
        environment = contender.environment(dsn) | {
            "MQTT_URL": self.broker.url,
            "MQTT_CLIENT_ID": client_id,
            "MQTT_READER": contender.reader,
        }
        command = contender.command("run")
        async with (
            open_service(environment, self.directory, name=f"service-{contender.reader}", command=command) as process,
            trio.open_nursery() as nursery,
        ):
            watched = Watched(process, self.postgres.pid, self.broker.pid)
            for sampler in (watched.service_cpu, watched.database_cpu, watched.broker_cpu):
                nursery.start_soon(sampler.run)
            yield watched
            nursery.cancel_scope.cancel()

    async def _template(self, contender: Contender, fleet: Fleet | None) -> str:
        key = (contender.checkout, fleet)
        if key not in self._templates:
            name = f"template_{len(self._templates)}_{secrets.token_hex(3)}"
            if fleet is None:
                await self._migrate(contender, await self.postgres.create_database(name))
            else:
                dsn = await self.postgres.create_database(name, await self._template(contender, None))
                async with self.connection(dsn) as database:
                    await database.call(tables.register, fleet)
                    # As the service does when it starts, so that the ceiling finds them too.
                    now = datetime.now(UTC)
                    await database.call(tables.ensure_partitions, now - DAY, now + 7 * DAY)
            self._templates[key] = name
        return self._templates[key]

    async def _migrate(self, contender: Contender, dsn: str) -> None:
        own = {name: value for name, value in os.environ.items() if not name.startswith(("MQTT_", "INGEST_", "DB_"))}
        child = Child(
            "migrate",
            contender.command("migrate"),
            log_path=self.directory / "migrate.log",
            env=own | contender.environment(dsn),
        )
        if await child.wait() != 0:
            raise StackError(f"the schema of {contender.checkout} cannot be made: {child.last_words()}")
        async with self.connection(dsn) as database:
            await database.call(tables.check_durable)


class Watched:
    """A running service whose processor time is sampled, and that of its database and broker."""

    def __init__(self, process: ServiceProcess, postgres_pid: int, broker_pid: int) -> None:
        self.process = process
        self.service_cpu = Sampler(lambda: cpu_seconds(process.pid))
        self.database_cpu = Sampler(lambda: cpu_seconds(postgres_pid) + sum(map(cpu_seconds, children(postgres_pid))))
        self.broker_cpu = Sampler(lambda: cpu_seconds(broker_pid))
        self.peak_bytes = 0

    async def wait_ended(self, messages: int, seconds: float) -> None:
        """Wait until the service has taken so many messages and none is in flight.

        Raises:
            StackError: It took longer than that.
        """
        await self.process.wait_ready()
        deadline = time.monotonic() + seconds
        while True:
            samples = await self.process.metrics()
            received = samples.total("ingest_messages_total")
            if received >= messages and not samples.value("ingest_in_flight_messages"):
                break
            if time.monotonic() > deadline:
                raise StackError(f"{received:.0f} of {messages} messages were received in {seconds:.0f} s")
            await trio.sleep(POLL_SECONDS)
        for sampler in (self.service_cpu, self.database_cpu, self.broker_cpu):
            sampler.sample()
        self.note_memory()

    def note_memory(self) -> int:
        """Resident bytes now; the peak is kept."""
        now, self.peak_bytes = memory_bytes(self.process.pid)
        return now

    async def stop(self) -> None:
        """Drain and stop it.

        Raises:
            StackError: It did not end well.
        """
        self.note_memory()
        if status := await self.process.stop():
            raise StackError(f"the service ended with status {status} (log: {self.process.log_path})")


@asynccontextmanager
async def open_stage(directory: Path, *, writers: int | None) -> AsyncIterator[Stage]:
    """Broker and database, running. Trio-flavored."""
    async with (
        open_postgres(directory / "postgres", settings=tables.SETTINGS) as postgres,
        open_broker(directory / "broker", kind="mosquitto", options=BROKER_OPTIONS) as broker,
    ):
        yield Stage(directory, postgres, broker, writers)
