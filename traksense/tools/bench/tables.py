"""What is asked of the database. All functions here are asyncio-flavored and take the connection first.

A row says when it was stored: its xmin names the transaction, and with `track_commit_timestamp` the server knows when
that committed. The stamp is taken just before the commit is flushed to disk.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

import attrs

from traksense.store.digests import digest
from traksense.tools.bench.load import META

if TYPE_CHECKING:
    from collections.abc import Sequence

    import asyncpg

    from traksense.tools.bench.load import Fleet

    Connection = asyncpg.Connection[asyncpg.Record]

LONG_SECONDS: Final = 3600.0
"""For statements that make or read millions of rows."""

META_ID: Final = 1
ROW_SECONDS: Final = 1
"""Between two rows of a series among those that were there before."""

SETTINGS: Final = {
    "track_commit_timestamp": "on",
    "shared_buffers": "512MB",
    "max_wal_size": "8GB",
    "min_wal_size": "2GB",
    "checkpoint_timeout": "30min",
}
"""Of the server: durable as it comes (fsync and synchronous_commit on), with room for a run between two checkpoints."""


async def check_durable(connection: Connection) -> None:
    """Make sure that the server confirms what is on disk, and nothing else."""
    for name in ("fsync", "synchronous_commit", "full_page_writes"):
        value = await connection.fetchval(f"SHOW {name}")
        assert value == "on", f"{name} is {value}"


async def register(connection: Connection, fleet: Fleet) -> None:
    """Register the fleet's tenants, devices and series (numbered as `Fleet` says), and its meta."""
    run = connection.execute
    async with connection.transaction():
        await run(_TENANTS, fleet.tenants, timeout=LONG_SECONDS)
        await run(_DEVICES, fleet.devices, fleet.tenants, timeout=LONG_SECONDS)
        names, units = (list(column) for column in zip(*fleet.point_names, strict=True))
        await run(_SERIES, fleet.devices, fleet.tenants, names, units, timeout=LONG_SECONDS)
        if fleet.meta:
            await run(_META, fleet.tenants, digest(META), META.decode(), timeout=LONG_SECONDS)
    for table in ("tenant", "device", "series", "meta"):
        await run(f"VACUUM (ANALYZE) traksense.{table}", timeout=LONG_SECONDS)


async def add_rows(connection: Connection, rows: int, *, series: int, before: datetime) -> None:
    """Put that many rows into the table, as if the series had sent one each second until then."""
    turns = -(-rows // series)
    await connection.execute(_ROWS, min(series, rows), turns, before, timeout=LONG_SECONDS)
    await connection.execute("VACUUM (ANALYZE) traksense.measure", timeout=LONG_SECONDS)


async def ensure_partitions(connection: Connection, begin: datetime, end: datetime) -> None:
    """Make the partitions for a period."""
    await connection.execute("SELECT traksense.ensure_partitions($1, $2)", begin, end)


async def checkpoint(connection: Connection) -> None:
    """Let every run begin with the same state of the write-ahead log."""
    await connection.execute("CHECKPOINT", timeout=LONG_SECONDS)


@attrs.frozen
class Commit:
    """A transaction that stored measurements.

    Attributes:
        at: When it committed, Unix seconds.
        rows: How many it stored.
        oldest: The oldest timestamp among them, Unix seconds.
    """

    at: float
    rows: int
    oldest: float


async def commits(connection: Connection, begin: int, end: int | None = None) -> list[Commit]:
    """The transactions that stored rows of this period (Unix microseconds, `end` excluded), in order."""
    rows = await connection.fetch(_COMMITS, _instant(begin), _instant(end), timeout=LONG_SECONDS)
    return [Commit(float(at), count, float(oldest)) for at, count, oldest in rows]


async def latencies(
    connection: Connection, begin: int, end: int, quantiles: Sequence[float], every: int
) -> list[float]:
    """How old, in seconds, rows of this period were when their commit was written: quantiles, of every n-th series."""
    values = await connection.fetchval(
        _LATENCIES, _instant(begin), _instant(end), list(quantiles), every, timeout=LONG_SECONDS
    )
    return [float(value) for value in values or []]


async def connected_at(connection: Connection, client_id: str) -> float | None:
    """When the broker accepted the service, Unix seconds: it notes that itself."""
    value = await connection.fetchval(
        "SELECT extract(epoch FROM connected_at) FROM traksense.ingest_session WHERE client_id = $1", client_id
    )
    return None if value is None else float(value)


@attrs.frozen
class Counts:
    """What is in the database.

    Attributes:
        rows: Measurements with a timestamp in the period.
        dead: Dead letters.
    """

    rows: int
    dead: int


async def count(connection: Connection, begin: int, end: int | None = None) -> Counts:
    """Count what is stored with timestamps from `begin` to before `end` (Unix microseconds)."""
    row: Any = await connection.fetchrow(_COUNTS, _instant(begin), _instant(end), timeout=LONG_SECONDS)
    return Counts(*row)


def _instant(microseconds: int | None) -> datetime:
    if microseconds is None:
        return datetime(9999, 1, 1, tzinfo=UTC)
    return datetime.fromtimestamp(microseconds / 1_000_000, UTC)


_TENANTS: Final = """
INSERT INTO traksense.tenant (tenant_id) SELECT 'bench-' || lpad(n::text, 5, '0') FROM generate_series(0, $1 - 1) n
"""

_DEVICES: Final = """
INSERT INTO traksense.device (tenant_id, site_id, device_id)
SELECT 'bench-' || lpad((n % $2)::text, 5, '0'), 'plant-1', 'device-' || lpad(n::text, 6, '0')
FROM generate_series(0, $1 - 1) n
"""

# Numbers are given in the order of ORDER BY.
_SERIES: Final = """
INSERT INTO traksense.series (tenant_id, site_id, device_id, point_id, unit)
SELECT 'bench-' || lpad((n % $2)::text, 5, '0'), 'plant-1', 'device-' || lpad(n::text, 6, '0'), p.name, p.unit
FROM generate_series(0, $1 - 1) n CROSS JOIN unnest($3::text[], $4::text[]) WITH ORDINALITY AS p (name, unit, place)
ORDER BY n, p.place
"""

_META: Final = """
INSERT INTO traksense.meta (tenant_id, digest, doc)
SELECT 'bench-' || lpad(n::text, 5, '0'), $2, $3::text::jsonb FROM generate_series(0, $1 - 1) n
"""

_ROWS: Final = f"""
INSERT INTO traksense.measure (series_id, meta_id, ts, v_num)
SELECT s, {META_ID}, $3::timestamptz - make_interval(secs => t * {ROW_SECONDS}), s % 100 + t / 7.0
FROM generate_series(1, $1::int) s CROSS JOIN generate_series(1, $2::int) t
"""  # noqa: S608  (constants)

_COMMITS: Final = """
SELECT extract(epoch FROM pg_xact_commit_timestamp(x)), rows, extract(epoch FROM oldest)
FROM (
    SELECT xmin AS x, count(*) AS rows, min(ts) AS oldest FROM traksense.measure
    WHERE ts >= $1 AND ts < $2 GROUP BY xmin
) AS transactions
ORDER BY 1
"""

_LATENCIES: Final = """
SELECT percentile_cont($3::float8[]) WITHIN GROUP (
    ORDER BY extract(epoch FROM pg_xact_commit_timestamp(xmin) - ts)::float8
)
FROM traksense.measure WHERE ts >= $1 AND ts < $2 AND series_id % $4::int = 1 % $4::int
"""

_COUNTS: Final = """
SELECT count(*), (SELECT count(*) FROM public.ingest_errors)
FROM traksense.measure WHERE ts >= $1 AND ts < $2
"""
