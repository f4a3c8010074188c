"""What has to be done from time to time: aggregates, retention, partitions ahead, when devices were last seen.

The service does it in a task of its own (`store/upkeep.py`) on a connection of its own, so that writers and probes
never wait for it; locks in the database's functions see to it that of several replicas one does the work. `traksense
maintain` does the same once, for cron. On TimescaleDB the jobs of its own scheduler aggregate, compress and drop.

Each step is on its own: one that fails keeps no other from being done, and leaves what it failed with in
`traksense.step`, where everybody finds it.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final, TypeAlias, TypeVar

import asyncpg
import attrs

from traksense.model import Event, Kind, Reason, Rejection, Telemetry
from traksense.store import connecting, migrate, session_settings
from traksense.store.fault_words import describe
from traksense.store.partitions import Partitions
from traksense.store.roles import name_tenants
from traksense.store.rollup import Busy, RollUp
from traksense.store.sqlstate import FOREIGN, translate
from traksense.urls import DatabaseUrl, Secret

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
    from datetime import datetime, timedelta

    from traksense.model import Delivery, Route
    from traksense.store.session_settings import ServiceConnection

    More: TypeAlias = Callable[[], bool]

T = TypeVar("T")


def always() -> bool:
    """Go on to the end."""
    return True


CONNECT_SECONDS: Final = 10.0
STATEMENT_SECONDS: Final = 600.0
"""For one statement: one chunk to compress, or a refresh of TimescaleDB. Chosen by guess."""

PIECE_SECONDS: Final = 60.0
"""For one statement on plain PostgreSQL, where all work is in pieces of a second or two. Chosen by guess."""

JOB_WAIT_SECONDS: Final = 300.0
"""How long a job that the scheduler is running is waited for. Chosen by guess."""

WORD_BYTES: Final = 128
"""A longer payload is more than a word."""

SEEN_MAX: Final = 400_000
"""How many devices are noted at most, should nothing be written down for long. Twice what the dictionary remembers."""

SEEN_ROWS: Final = 5_000
"""Devices in one UPDATE: a short transaction."""

_SEEN: Final = """
UPDATE traksense.device d SET last_seen_at = k.at
FROM (
    SELECT d.tenant_id, d.site_id, d.device_id, u.at
    FROM unnest($1::text[], $2::text[], $3::text[], $4::timestamptz[]) AS u (tenant_id, site_id, device_id, at)
    JOIN traksense.device d USING (tenant_id, site_id, device_id)
    WHERE d.last_seen_at IS NULL OR d.last_seen_at < u.at
    ORDER BY 1, 2, 3
    FOR NO KEY UPDATE OF d SKIP LOCKED
) AS k
WHERE (d.tenant_id, d.site_id, d.device_id) = (k.tenant_id, k.site_id, k.device_id)
"""

_RETAIN_RAW: Final = "SELECT nullif(value, '')::interval FROM traksense.setting WHERE name = 'retain_raw'"

_JOBS: Final = ("CALL traksense.refresh_aggregates()", "CALL traksense.lifecycle_job(0, NULL)")

_LEVELS: Final = {"raw": "ts_measure", "1m": "ts_measure_1m", "5m": "ts_measure_5m", "1h": "ts_measure_1h"}

_CONNECTION_LOST: Final = (asyncpg.PostgresConnectionError, asyncpg.InterfaceError, OSError)


def _words(texts: Iterable[str]) -> frozenset[str]:
    """Each in one spelling: devices write `connection_lost` and `Connection-Lost`."""
    return frozenset(text.casefold().replace("-", "_").replace(" ", "_") for text in texts)


@attrs.define
class Seen:
    """When each device was last heard, until it is written down."""

    gone_words: frozenset[str] = attrs.field(converter=_words)
    _at: dict[str, tuple[Route, datetime]] = attrs.field(factory=dict)

    def add(self, batch: Sequence[Delivery]) -> None:
        """Note the devices of a batch, whatever came of their messages.

        What the broker had retained says nothing about now, and what says that the device is gone, such as a last will,
        is no sign of life.
        """
        at, event = self._at, Kind.EVENT
        for delivery in batch:
            message = delivery.message
            route = message.route
            if route is None or message.retain:
                continue
            if (route.kind is event or delivery.rejection is not None) and self._is_gone(delivery):
                continue
            at[route.path] = (route, message.received_at)
        if len(at) > SEEN_MAX:
            at.clear()

    def _is_gone(self, delivery: Delivery) -> bool:
        """On the wire a last will is a message like any other: only its words tell."""
        words = [item.event_type for item in delivery.items if isinstance(item, Event)]
        if delivery.rejection is not None and len(delivery.message.payload) <= WORD_BYTES:
            words.append(delivery.message.payload.decode(errors="replace").strip().strip('"'))
        return not self.gone_words.isdisjoint(_words(words))

    def __bool__(self) -> bool:
        return bool(self._at)

    def take(self) -> list[tuple[Route, datetime]]:
        """What has been noted; it is forgotten here."""
        noted, self._at = self._at, {}
        return sorted(noted.values(), key=lambda item: item[0].path)

    def give_back(self, noted: Sequence[tuple[Route, datetime]]) -> None:
        """It could not be written down: keep it, unless the device has been heard since."""
        for route, at in noted:
            self._at.setdefault(route.path, (route, at))


@attrs.define
class Report:
    """What one round of maintenance did.

    Attributes:
        marks: Marks of written times that were worked into the aggregates.
        dropped: Partitions or chunks that had expired.
        purged: Acks, events and dead letters that had expired.
        jobs: Jobs of TimescaleDB that were run.
        failed: The steps that failed, and what with.
    """

    marks: int = 0
    dropped: int = 0
    purged: int = 0
    jobs: int = 0
    failed: dict[str, BaseException] = attrs.field(factory=dict)


async def connect(dsn: str, application: str, *, seconds: float) -> ServiceConnection:
    """A connection for the service's maintenance, with time for its statements. asyncio-flavored."""
    return await session_settings.connect(
        dsn,
        application=application,
        settings=session_settings.wanted(seconds, lock_timeout=0),
        connect_seconds=CONNECT_SECONDS,
        statement_seconds=seconds + CONNECT_SECONDS,
    )


def run_once(dsn: str, application: str, function: Callable[[Any], Awaitable[T]], *, schema: bool = True) -> T:
    """Connect, call an asyncio-flavored function with the connection, disconnect: for a command. Blocks.

    Args:
        dsn: Where to.
        application: For `pg_stat_activity`.
        function: What to do.
        schema: Whether the database has to have the schema that this release needs.

    Raises:
        ConfigError: The URL cannot work.
        StoreError: The database is not there, or refuses, or has not that schema.
    """
    url = DatabaseUrl(Secret(dsn))

    async def run() -> T:
        connection = await connecting.connect(
            url,
            application=application,
            settings=session_settings.wanted(STATEMENT_SECONDS, lock_timeout=0),
            connect_seconds=CONNECT_SECONDS,
            statement_seconds=STATEMENT_SECONDS + CONNECT_SECONDS,
            schema=schema,
        )
        try:
            with connecting.located(url):
                return await function(connection)
        finally:
            await session_settings.close(connection)

    try:
        return asyncio.run(run())
    except FOREIGN as error:
        raise translate(error) from error


async def write_seen(connection: Any, seen: Seen) -> None:
    """Write down when devices were last heard. asyncio-flavored.

    A device that somebody has locked is left out, until it is heard again: nobody waits for an operator's transaction.
    """
    noted = seen.take()
    while noted:
        part, rest = noted[:SEEN_ROWS], noted[SEEN_ROWS:]
        try:
            async with connection.transaction():
                await name_tenants(connection, {route.tenant for route, _ in part})
                rows = [(route.tenant, route.site, route.device, at) for route, at in part]
                await connection.execute(_SEEN, *map(list, zip(*rows, strict=True)))
        except BaseException:
            seen.give_back(noted)
            raise
        noted = rest


class Maintainer:
    """Does the steps, on a connection that is given for a round. asyncio-flavored.

    Args:
        at: Told in words which step it is at, and how far that has got.
    """

    def __init__(self, at: Callable[[str], None] = lambda _text: None) -> None:
        self._roll_up = RollUp()
        self._at = at

    async def aggregate(self, connection: Any, report: Report, more: More = always) -> None:
        """Work marks into the aggregates, piece by piece (plain PostgreSQL)."""
        self._at("aggregate")
        async with step("aggregate", connection, report):
            report.marks += await self._roll_up.run(
                connection, more, lambda done: self._at(f"aggregate: {done:,} time ranges so far")
            )

    async def expire(self, connection: Any, report: Report, more: More = always) -> None:
        """Partitions ahead, and what is no longer kept (plain PostgreSQL)."""
        self._at("partitions ahead")
        async with step("partitions", connection, report):
            await Partitions().ensure_ahead(connection)
        async with step("drop", connection, report):
            for level, relation in _LEVELS.items():
                self._at(f"drop what has expired of {relation}: {report.dropped:,} partitions so far")
                while more() and (dropped := await connection.fetch("SELECT traksense.drop_expired($1)", level)):
                    report.dropped += len(dropped)
                    self._at(f"drop what has expired of {relation}: {report.dropped:,} partitions so far")
        self._at("purge events, acks and dead letters")
        async with step("purge", connection, report):
            while more() and (purged := await connection.fetchval("SELECT traksense.purge_expired()")):
                report.purged += purged
                self._at(f"purge events, acks and dead letters: {report.purged:,} rows so far")


@asynccontextmanager
async def step(name: str, connection: Any, report: Report) -> AsyncIterator[None]:
    """One step: its end is recorded in the database, and what it fails with goes no further. asyncio-flavored.

    Raises:
        asyncpg.PostgresError, OSError: The connection is lost: nothing can be done any more, or recorded.
    """
    try:
        yield
    except _CONNECTION_LOST:
        raise
    except (Busy, asyncpg.ObjectInUseError):
        pass  # whoever is at it records how it ends
    except asyncpg.PostgresError as error:
        report.failed[name] = error
        await connection.execute("SELECT traksense.end_step($1, $2)", name, describe(error))
    else:
        await connection.execute("SELECT traksense.end_step($1)", name)


async def maintain(
    connection: Any, report: Report, *, jobs: bool = False, at: Callable[[str], None] = lambda _text: None
) -> None:
    """One round of everything, until all is done.

    Args:
        connection: The owner's.
        report: Told what is done, as it is done.
        jobs: Whether to run TimescaleDB's jobs, for a server whose scheduler is switched off. The owner may.
        at: Told in words which step it is at, and how far that has got.

    asyncio-flavored.
    """
    if await migrate.read_engine(connection) == "timescaledb":
        for number, job in enumerate(_JOBS if jobs else (), 1):
            at(f"job {number} of {len(_JOBS)}: {job}")
            await call_when_free(connection, job)
            report.jobs += 1
        return
    maintainer = Maintainer(at)
    await maintainer.aggregate(connection, report)
    await maintainer.expire(connection, report)


async def call_when_free(connection: Any, statement: str) -> None:
    """Run a procedure of TimescaleDB; while its scheduler is at the same work, wait for that. asyncio-flavored."""
    until = time.monotonic() + JOB_WAIT_SECONDS
    while True:
        try:
            await connection.execute(statement)
        except (asyncpg.LockNotAvailableError, asyncpg.ObjectInUseError):
            if time.monotonic() > until:
                raise
            await asyncio.sleep(0.5)
        else:
            return


async def read_retention(connection: Any) -> timedelta | None:
    """For how long raw points are kept, or None for ever. asyncio-flavored."""
    value: timedelta | None = await connection.fetchval(_RETAIN_RAW)
    return value


def too_old(batch: Sequence[Delivery], now: datetime, retention: timedelta | None) -> dict[int, Rejection]:
    """Find the points that are older than what is kept by the database's clock: they would be dropped in silence.

    Where a delivery has others as well, those are kept, and what is too old is rejected beside them. Returns the
    rejections of the deliveries of which nothing is left.
    """
    refused: dict[int, Rejection] = {}
    if retention is None:
        return refused
    horizon = now - retention
    for index, delivery in enumerate(batch):
        kept = [item for item in delivery.items if not isinstance(item, Telemetry) or item.ts >= horizon]
        if len(kept) == len(delivery.items):
            continue
        rejection = Rejection(
            Reason.TIMESTAMP_OUT_OF_WINDOW,
            f"older than {horizon.isoformat(timespec='seconds')}: points are kept for {retention.days} days",
        )
        if kept:
            delivery.reject_all_but(kept, rejection)
        else:
            refused[index] = rejection
    return refused
