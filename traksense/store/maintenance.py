"""What has to be done from time to time: aggregates, retention, partitions ahead, when devices were last seen.

The service does it in a task of its own on a connection of its own, so that writers and probes never wait for it;
advisory locks in the database's functions see to it that of several replicas one does the work. `traksense maintain`
does the same once, for cron. On TimescaleDB the jobs of its own scheduler aggregate, compress and drop.
"""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, TypeVar

import asyncpg
import attrs

from traksense.model import Reason, Rejection, Telemetry
from traksense.store import migrate
from traksense.store.partitions import AHEAD
from traksense.store.roles import name_tenants
from traksense.store.rollup import roll_up
from traksense.store.sqlstate import translate

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from traksense.model import Delivery, Route

T = TypeVar("T")

CONNECT_SECONDS: Final = 10.0
STATEMENT_SECONDS: Final = 600.0
"""For one step: a roll-up of at most a day of the fleet, or one chunk to compress. Chosen by guess."""

JOB_WAIT_SECONDS: Final = 300.0
"""How long a job that the scheduler is running is waited for. Chosen by guess."""

SEEN_ROWS: Final = 5_000
"""Devices in one UPDATE: a short transaction."""

_SEEN: Final = """
UPDATE traksense.device d SET last_seen_at = k.at
FROM (
    SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::timestamptz[]) AS u (tenant_id, site_id, device_id, at)
    ORDER BY 1, 2, 3
) AS k
WHERE (d.tenant_id, d.site_id, d.device_id) = (k.tenant_id, k.site_id, k.device_id)
    AND (d.last_seen_at IS NULL OR d.last_seen_at < k.at)
"""

_RETAIN_RAW: Final = "SELECT nullif(value, '')::interval FROM traksense.setting WHERE name = 'retain_raw'"

_JOBS: Final = """
SELECT job_id FROM timescaledb_information.jobs
WHERE proc_schema = 'traksense'
    OR (hypertable_schema, hypertable_name) IN (
        SELECT view_schema, view_name FROM timescaledb_information.continuous_aggregates WHERE view_schema = 'traksense'
        UNION ALL
        SELECT materialization_hypertable_schema, materialization_hypertable_name
        FROM timescaledb_information.continuous_aggregates WHERE view_schema = 'traksense'
    )
ORDER BY job_id
"""
# Created in the order of the levels, and each needs the one before.


@attrs.define
class Seen:
    """When each device was last heard, until it is written down."""

    _at: dict[str, tuple[Route, datetime]] = attrs.field(factory=dict)

    def add(self, batch: Sequence[Delivery]) -> None:
        """Note the devices of a batch, whatever came of their messages."""
        at = self._at
        for delivery in batch:
            message = delivery.message
            if message.route is not None:
                at[message.route.path] = (message.route, message.received_at)

    def take(self) -> list[tuple[Route, datetime]]:
        """What has been noted; it is forgotten here."""
        noted, self._at = self._at, {}
        return sorted(noted.values(), key=lambda item: item[0].path)

    def give_back(self, noted: Sequence[tuple[Route, datetime]]) -> None:
        """It could not be written down: keep it, unless the device has been heard since."""
        for route, at in noted:
            self._at.setdefault(route.path, (route, at))


@attrs.frozen
class Report:
    """What one round of maintenance did.

    Attributes:
        marks: Marks of written times that were worked into the aggregates.
        dropped: Partitions or chunks that had expired.
        purged: Acks, events and dead letters that had expired.
        jobs: Jobs of TimescaleDB that were run.
    """

    marks: int = 0
    dropped: tuple[str, ...] = ()
    purged: int = 0
    jobs: int = 0


async def connect(dsn: str, application: str) -> asyncpg.Connection[asyncpg.Record]:
    """A connection for maintenance: with time for its statements. asyncio-flavored."""
    return await asyncpg.connect(
        dsn,
        timeout=CONNECT_SECONDS,
        command_timeout=STATEMENT_SECONDS + CONNECT_SECONDS,
        server_settings={
            "application_name": application[:63],
            "statement_timeout": str(int(STATEMENT_SECONDS * 1000)),
            "timezone": "UTC",
        },
    )


def run_once(dsn: str, application: str, function: Callable[[Any], Awaitable[T]]) -> T:
    """Connect, call an asyncio-flavored function with the connection, disconnect: for a command. Blocks.

    Raises:
        StoreError: The database is not there, or refuses.
    """

    async def run() -> T:
        connection = await connect(dsn, application)
        try:
            return await function(connection)
        finally:
            connection.terminate()

    try:
        return asyncio.run(run())
    except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError) as error:
        raise translate(error) from error


async def write_seen(connection: Any, seen: Seen) -> None:
    """Write down when devices were last heard. asyncio-flavored."""
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


async def maintain(connection: Any, *, expire: bool = True, jobs: bool = False) -> Report:
    """One round.

    Args:
        connection: From `connect`.
        expire: Whether to make partitions and to drop and purge what has expired, too.
        jobs: Whether to run TimescaleDB's jobs, for a server whose scheduler is switched off. The owner may.

    asyncio-flavored.
    """
    timescaledb = await migrate.read_engine(connection) == "timescaledb"
    marks = 0 if timescaledb else max(0, await roll_up(connection))
    dropped: tuple[str, ...] = ()
    purged = run = 0
    if expire:
        now = datetime.now(UTC)
        await connection.execute("SELECT traksense.ensure_partitions($1, $2)", now - timedelta(days=1), now + AHEAD)
    if timescaledb and jobs:
        for row in await connection.fetch(_JOBS):
            await _run_job(connection, row["job_id"])
            run += 1
    elif expire and not timescaledb:
        dropped = tuple(row[0] for row in await connection.fetch("SELECT traksense.drop_expired()"))
        while rows := await connection.fetchval("SELECT traksense.purge_expired()"):
            purged += rows
    return Report(marks, dropped, purged, run)


async def _run_job(connection: Any, number: int) -> None:
    """asyncio-flavored."""
    schema = await connection.fetchval("SELECT quote_ident(traksense.timescaledb_schema())")
    await call_when_free(connection, f"CALL {schema}.run_job({number})")


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


def too_old(batch: Sequence[Delivery], retention: timedelta) -> dict[int, Rejection]:
    """The deliveries with points that are older than what is kept: they would be dropped in silence."""
    horizon = datetime.now(UTC) - retention
    return {
        index: Rejection(
            Reason.TIMESTAMP_OUT_OF_WINDOW,
            f"older than {horizon.isoformat(timespec='seconds')}: points are kept for {retention.days} days",
        )
        for index, delivery in enumerate(batch)
        if delivery.rejection is None
        and any(isinstance(item, Telemetry) and item.ts < horizon for item in delivery.items)
    }
