"""One batch, one COMMIT: COPY first, the careful road only while duplicates are about.

COPY straight into the measurements is two to three times as fast as any way that tolerates duplicates (DESIGN: 375 k
rows/s against 170-200 k), and duplicates are rare: redeliveries after a restart. So COPY goes first; if the unique key
refuses it (23505), nothing of it stays, and the batch takes the careful road: what is stored already is found first,
and staged. While duplicates keep coming, the first try is left out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import asyncpg

from traksense.ingest.ports import WriteResult
from traksense.store.duplicates import Staged, find_stored, insert_staged
from traksense.store.packing import PACKED_COLUMNS, copy_packed, in_order
from traksense.store.roles import name_tenants
from traksense.store.rollup import mark_statement

if TYPE_CHECKING:
    from collections.abc import Sequence

    from asyncpg.pool import PoolConnectionProxy

    from traksense.store.packing import PackedRows
    from traksense.store.rows import Rows

CAREFUL_BATCHES: Final = 16
"""After a duplicate, so many batches take the careful road at once. A COPY that fails half-way costs about as much as
being careful with ten clean batches. Chosen by guess."""

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
        self._careful = 0

    async def store(self, connection: PoolConnectionProxy, rows: Rows) -> WriteResult:
        """Store all rows in one transaction. asyncio-flavored.

        Raises:
            asyncpg.PostgresError, OSError, …: Nothing was stored, or nobody knows (the connection was lost in COMMIT).
        """
        if rows.measures and not self._careful:
            try:
                return await self._copy(connection, rows)
            except asyncpg.UniqueViolationError:
                pass
        try:
            result = await self._sift(connection, rows)
        except asyncpg.UniqueViolationError:
            result = await self._sift(connection, rows, trusting=False)
        met_duplicates = result.points_duplicate or result.points_conflicting
        self._careful = CAREFUL_BATCHES if met_duplicates else max(0, self._careful - 1)
        return result

    async def _copy(self, connection: PoolConnectionProxy, rows: Rows) -> WriteResult:
        """The straight road: every measurement is new, or nothing is stored."""
        if rows.only_measures:
            await _copy_measures(connection, rows.measures, marking=self.marking)
            return WriteResult(points_stored=rows.points)
        async with connection.transaction():
            await _copy_measures(connection, rows.measures, marking=self.marking)
            fresh = await _store_others(connection, rows)
        fresh |= {measures.delivery for measures in rows.measures}
        return WriteResult(points_stored=rows.points, duplicates=rows.touched() - fresh)

    async def _sift(self, connection: PoolConnectionProxy, rows: Rows, *, trusting: bool = True) -> WriteResult:
        """The careful road: measurements whose key is there already are counted and left as they are.

        Args:
            connection: Where.
            rows: What.
            trusting: Copy what seems to be new; else everything is staged.
        """
        staged = Staged()
        copied: list[PackedRows] = []
        async with connection.transaction():
            if rows.measures:
                suspect = range(len(rows.measures)) if not trusting else await find_stored(connection, rows.measures)
                copied = [measures for place, measures in enumerate(rows.measures) if place not in suspect]
                if copied:
                    await _copy_measures(connection, copied, marking=self.marking)
                if suspect:
                    suspects = [rows.measures[place] for place in sorted(suspect)]
                    staged = await insert_staged(connection, suspects)
                    if self.marking:
                        await connection.execute(mark_statement(suspects))
            fresh = await _store_others(connection, rows)
        fresh |= staged.fresh
        fresh |= {measures.delivery for measures in copied}
        return WriteResult(
            points_stored=rows.points - staged.repeated,
            points_duplicate=staged.repeated - staged.conflicting,
            points_conflicting=staged.conflicting,
            duplicates=rows.touched() - fresh,
        )


async def _copy_measures(connection: PoolConnectionProxy, measures: Sequence[PackedRows], *, marking: bool) -> None:
    marks = mark_statement(measures) if marking else ""
    await copy_packed(connection, "traksense.measure", PACKED_COLUMNS, in_order(measures), first=marks)


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


def _columns(rows: list[tuple[Any, ...]]) -> list[list[Any]]:
    return [list(column) for column in zip(*rows, strict=True)]
