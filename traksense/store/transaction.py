"""One batch, one COMMIT: COPY first, the staging road only for a batch that meets a duplicate.

COPY straight into the measurements is two to three times as fast as any way that tolerates duplicates (DESIGN: 375 k
rows/s against 170-200 k), and duplicates are rare: redeliveries after a restart. So COPY goes first; if the unique key
refuses it (23505), nothing of it stays, and the batch goes through a temporary table and `ON CONFLICT DO NOTHING`.
While duplicates keep coming, the first try is left out.
"""

from __future__ import annotations

import io
from contextlib import AsyncExitStack
from itertools import chain
from typing import TYPE_CHECKING, Any, Final

import asyncpg

from traksense.ingest.ports import WriteResult
from traksense.store.packing import COPY_HEADER, COPY_TRAILER, PACKED_COLUMNS, key, numbered, value
from traksense.store.roles import name_tenants
from traksense.store.rollup import mark

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from asyncpg.pool import PoolConnectionProxy

    from traksense.store.packing import PackedRows
    from traksense.store.rows import Rows

STAGING_BATCHES: Final = 16
"""After a duplicate, so many batches take the staging road at once. A COPY that fails half-way costs about as much as
the staging road saves on two clean batches. Chosen by guess; `bench` with 1 % and 20 % duplicates would settle it."""

_COLUMNS: Final = ", ".join(PACKED_COLUMNS)

# Spelt out rather than copied from the measurements: the service's role may not read all of their columns.
_CREATE_STAGING: Final = """
CREATE TEMPORARY TABLE IF NOT EXISTS traksense_staging (
    series_id int, ts timestamptz, qual smallint, meta jsonb, meta_id int, v_bool boolean, v_text text,
    v_num double precision, row int
) ON COMMIT DELETE ROWS
"""

# One statement, so that it sees its own insertions through RETURNING and the older rows through its snapshot. A row
# that conflicts with a transaction that commits meanwhile is in neither: a duplicate whose value is not compared.
_INSERT_STAGED: Final = f"""
WITH new AS (
    INSERT INTO traksense.measure ({_COLUMNS})
    SELECT {_COLUMNS} FROM pg_temp.traksense_staging ORDER BY series_id, ts
    ON CONFLICT DO NOTHING
    RETURNING series_id, ts
)
SELECT s.row, coalesce((
        SELECT (m.v_num, m.v_bool, m.v_text) IS DISTINCT FROM (s.v_num, s.v_bool, s.v_text)
        FROM traksense.measure m WHERE m.series_id = s.series_id AND m.ts = s.ts
    ), false) AS conflicting
FROM pg_temp.traksense_staging s
WHERE NOT EXISTS (SELECT FROM new WHERE new.series_id = s.series_id AND new.ts = s.ts)
"""  # noqa: S608  (constants)

# Newer wins by the device's own time; where that is missing or equal, by the time of receipt, so that batches of
# several writers end the same in any order. A repeat (0 rows changed, or an update) is a duplicate message.
_UPSERT_ACKS: Final = """
INSERT INTO public.cmd_ack AS a (
    tenant_id, site_id, device_id, cmd_id, ok, ts_exec, err, payload, created_at, updated_at
)
SELECT tenant_id, site_id, device_id, cmd_id, ok, ts_exec, err, payload::jsonb, received_at, received_at
FROM unnest(
        $1::text[], $2::text[], $3::text[], $4::text[], $5::bool[], $6::timestamptz[], $7::text[], $8::text[],
        $9::timestamptz[]
    ) AS k (tenant_id, site_id, device_id, cmd_id, ok, ts_exec, err, payload, received_at)
ORDER BY tenant_id, device_id, cmd_id
ON CONFLICT (tenant_id, device_id, cmd_id) DO UPDATE
SET site_id = excluded.site_id, ok = excluded.ok, ts_exec = excluded.ts_exec, err = excluded.err,
    payload = excluded.payload, updated_at = excluded.updated_at
WHERE CASE
    WHEN a.ts_exec <> excluded.ts_exec THEN excluded.ts_exec > a.ts_exec
    WHEN a.ts_exec IS NOT NULL AND excluded.ts_exec IS NULL THEN false
    ELSE excluded.updated_at >= a.updated_at
END
RETURNING a.tenant_id, a.device_id, a.cmd_id, xmax = 0 AS inserted
"""

_INSERT_EVENTS: Final = """
INSERT INTO public.device_event (tenant_id, site_id, device_id, event_id, event_type, ts, data)
SELECT tenant_id, site_id, device_id, event_id, event_type, ts, data::jsonb
FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::timestamptz[], $7::text[])
    AS k (tenant_id, site_id, device_id, event_id, event_type, ts, data)
ORDER BY tenant_id, device_id, event_id, event_type, ts
ON CONFLICT DO NOTHING
RETURNING tenant_id, device_id, event_id, event_type, ts
"""

# The same bytes on the same topic are one dead letter, however often they come; if it had been replayed, it reopens.
_INSERT_ERRORS: Final = """
INSERT INTO public.ingest_errors AS e (tenant_id, topic, payload, reason, detail, ts, last_ts, digest, repeats)
SELECT DISTINCT ON (digest)
    tenant_id, topic, payload, reason, detail, ts, nullif(max(ts) OVER same, ts), digest, count(*) OVER same - 1
FROM unnest($1::text[], $2::text[], $3::bytea[], $4::text[], $5::text[], $6::timestamptz[], $7::bytea[])
    AS k (tenant_id, topic, payload, reason, detail, ts, digest)
WINDOW same AS (PARTITION BY digest)
ORDER BY digest, ts
ON CONFLICT (tenant_id, digest) DO UPDATE
SET repeats = e.repeats + 1 + excluded.repeats, last_ts = coalesce(excluded.last_ts, excluded.ts),
    reason = excluded.reason, detail = excluded.detail, replayed_at = NULL
"""


class Transactor:
    """Writes rows on a connection; remembers whether duplicates are about.

    Attributes:
        marking: Whether to mark what a batch changes in the aggregates (plain PostgreSQL).
    """

    def __init__(self) -> None:
        self.marking = False
        self._staging = 0

    async def store(self, connection: PoolConnectionProxy, rows: Rows) -> WriteResult:
        """Store all rows in one transaction. asyncio-flavored.

        Raises:
            asyncpg.PostgresError, OSError, …: Nothing was stored, or nobody knows (the connection was lost in COMMIT).
        """
        if rows.measures and not self._staging:
            try:
                return await self._copy(connection, rows)
            except asyncpg.UniqueViolationError:
                pass
        result = await self._stage(connection, rows)
        met_duplicates = result.points_duplicate or result.points_conflicting
        self._staging = STAGING_BATCHES if met_duplicates else max(0, self._staging - 1)
        return result

    async def _copy(self, connection: PoolConnectionProxy, rows: Rows) -> WriteResult:
        """The straight road: every measurement is new, or nothing is stored."""
        async with AsyncExitStack() as stack:
            if self.marking or not rows.only_measures:
                await stack.enter_async_context(connection.transaction())
            await _copy_packed(
                connection,
                "traksense",
                "measure",
                PACKED_COLUMNS,
                sorted([measures.packed for measures in rows.measures]),
            )
            if self.marking:
                await mark(connection, rows.measures)
            fresh = await _store_others(connection, rows)
        if not rows.only_measures:
            fresh |= {measures.delivery for measures in rows.measures}
            return WriteResult(points_stored=rows.points, duplicates=rows.touched() - fresh)
        return WriteResult(points_stored=rows.points)

    async def _stage(self, connection: PoolConnectionProxy, rows: Rows) -> WriteResult:
        """The staging road: measurements whose key is there already are counted and left as they are."""
        repeated: set[int] = set()
        conflicting = 0
        async with connection.transaction():
            if rows.measures:
                await connection.execute(_CREATE_STAGING)
                records, repeated, conflicting = _without_repeats(rows.measures)
                await _copy_packed(connection, "pg_temp", "traksense_staging", (*PACKED_COLUMNS, "row"), records)
                for row, differs in await connection.fetch(_INSERT_STAGED):
                    repeated.add(row)
                    conflicting += differs
                if self.marking:
                    await mark(connection, rows.measures)
            fresh = await _store_others(connection, rows)
        fresh |= _owners_of_other_rows(rows.measures, repeated)
        return WriteResult(
            points_stored=rows.points - len(repeated),
            points_duplicate=len(repeated) - conflicting,
            points_conflicting=conflicting,
            duplicates=rows.touched() - fresh,
        )


async def _store_others(connection: PoolConnectionProxy, rows: Rows) -> set[int]:
    """Store what is not a measurement; returns the indices of the deliveries that brought something new."""
    fresh: set[int] = set()
    if rows.only_measures:
        return fresh
    await name_tenants(connection, rows.tenants)
    if rows.acks:
        for row in await connection.fetch(_UPSERT_ACKS, *_columns([row for _, row in rows.acks.values()])):
            if row["inserted"]:
                fresh.add(rows.acks[(row["tenant_id"], row["device_id"], row["cmd_id"])][0])
    if rows.events:
        stored = {
            tuple(row) for row in await connection.fetch(_INSERT_EVENTS, *_columns([row for _, row in rows.events]))
        }
        for index, event in rows.events:
            key = (event[0], *event[2:6])
            if key in stored:
                stored.discard(key)
                fresh.add(index)
    if rows.errors:
        await connection.execute(_INSERT_ERRORS, *_columns(rows.errors))
    return fresh


async def _copy_packed(
    connection: PoolConnectionProxy, schema: str, table: str, columns: Sequence[str], packed: Iterable[bytes]
) -> None:
    """COPY rows that are packed already. asyncio-flavored."""
    data = b"".join([COPY_HEADER, *packed, COPY_TRAILER])
    await connection.copy_to_table(table, schema_name=schema, columns=columns, source=io.BytesIO(data), format="binary")


def _without_repeats(measures: list[PackedRows]) -> tuple[list[bytes], set[int], int]:
    """The rows with their places, less those whose key came before in the batch; their places; how many of those
    differ.
    """
    first: dict[bytes, bytes] = {}
    records: list[bytes] = []
    repeated: set[int] = set()
    conflicting = 0
    for place, row in enumerate(chain.from_iterable([packed.rows() for packed in measures])):
        earlier = first.setdefault(key(row), row)
        if earlier is row:
            records.append(numbered(row, place))
        else:
            repeated.add(place)
            conflicting += value(earlier) != value(row)
    return records, repeated, conflicting


def _owners_of_other_rows(measures: list[PackedRows], repeated: set[int]) -> set[int]:
    """The deliveries that brought a row whose place is not among these."""
    owners: set[int] = set()
    place = 0
    for packed in measures:
        if not repeated.issuperset(range(place, place + packed.count)):
            owners.add(packed.delivery)
        place += packed.count
    return owners


def _columns(rows: list[tuple[Any, ...]]) -> list[list[Any]]:
    return [list(column) for column in zip(*rows, strict=True)]
