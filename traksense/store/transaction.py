"""One batch, one COMMIT: COPY first, the careful road only while duplicates are about.

COPY straight into the measurements is two to three times as fast as any way that tolerates duplicates (DESIGN: 375 k
rows/s against 170-200 k), and duplicates are rare: redeliveries after a restart. So COPY goes first; if the unique key
refuses it (23505), nothing of it stays, and the batch takes the careful road: what is stored already is found first,
and staged. While duplicates keep coming, the first try is left out.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import asyncpg

from traksense.errors import StoreUnavailableError
from traksense.ingest.ports import WriteResult
from traksense.store.dictionary import hold, hold_statement
from traksense.store.duplicates import Staged, find_stored, insert_staged
from traksense.store.durability import COMMIT_RECORD, WAITING_FOR_STANDBY
from traksense.store.packing import PACKED_COLUMNS, copy_packed, in_order
from traksense.store.roles import name_tenants
from traksense.store.rollup import mark_statement

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from collections.abc import Set as AbstractSet

    from asyncpg.pool import PoolConnectionProxy

    from traksense.model import Rejection
    from traksense.store.duplicates import Conflict
    from traksense.store.packing import PackedRows
    from traksense.store.rows import Rows

CAREFUL_BATCHES: Final = 16
"""After a duplicate, so many batches take the careful road at once. A COPY that fails half-way costs about as much as
being careful with ten clean batches. Chosen by guess."""

# Newer wins by the device's own time; where that is missing or equal, by the time of receipt, so that batches of
# several writers end the same in any order. A repeat (0 rows changed, or an update) is a duplicate message.
UPSERT_ACKS: Final = """
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

_COMPARE_EVENTS: Final = """
SELECT traksense.differing_events(
    $1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::timestamptz[], $7::text[]
)
"""

# Of several under one key the first of the batch is inserted, as `_store_events` takes for granted: a sort alone leaves
# equals in any order.
INSERT_EVENTS: Final = """
INSERT INTO public.device_event (tenant_id, site_id, device_id, event_id, event_type, ts, data)
SELECT tenant_id, site_id, device_id, event_id, event_type, ts, data::jsonb
FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::timestamptz[], $7::text[])
    WITH ORDINALITY AS k (tenant_id, site_id, device_id, event_id, event_type, ts, data, place)
ORDER BY tenant_id, site_id, device_id, event_id, event_type, ts, place
ON CONFLICT DO NOTHING
RETURNING tenant_id, site_id, device_id, event_id, event_type, ts
"""

# The same bytes on the same topic are one dead letter, however often they come; if it had been replayed, it reopens. At
# the end of its column the counter stops, not the service.
INSERT_ERRORS: Final = """
INSERT INTO public.ingest_errors AS e (tenant_id, topic, payload, reason, detail, ts, last_ts, digest, repeats)
SELECT DISTINCT ON (digest)
    tenant_id, topic, payload, reason, detail, ts, nullif(max(ts) OVER same, ts), digest, count(*) OVER same - 1
FROM unnest($1::text[], $2::text[], $3::bytea[], $4::text[], $5::text[], $6::timestamptz[], $7::bytea[])
    AS k (tenant_id, topic, payload, reason, detail, ts, digest)
WINDOW same AS (PARTITION BY digest)
ORDER BY digest, ts
ON CONFLICT (tenant_id, digest) DO UPDATE
SET repeats = least(e.repeats::bigint + 1 + excluded.repeats, 2147483647),
    last_ts = coalesce(excluded.last_ts, excluded.ts),
    reason = excluded.reason, detail = excluded.detail, replayed_at = NULL
"""


Letters: TypeAlias = "tuple[dict[int, Rejection], dict[int, tuple[Any, ...]]]"
Reject: TypeAlias = "Callable[[Sequence[Conflict], AbstractSet[int]], Letters]"
"""From points and the indices of events that differ from what is stored: why their deliveries are dead letters, and the
rows for `ingest_errors`, both by the index of the delivery."""


class Transactor:
    """Writes rows on a connection; remembers whether duplicates are about.

    Attributes:
        marking: Whether to mark what a batch changes in the aggregates (plain PostgreSQL).
        fleet: How many series there are at most, as far as that is known.
    """

    def __init__(self, *, replacing: bool = False) -> None:
        """Have met no duplicates yet.

        Args:
            replacing: Whether a point with another value than the stored one replaces it. Else its message becomes a
                dead letter.
        """
        self.marking = False
        self.fleet = math.inf
        self._replacing = replacing
        self._careful = 0

    async def store(self, connection: PoolConnectionProxy, rows: Rows, reject: Reject) -> WriteResult:
        """Store all rows in one transaction. asyncio-flavored.

        Args:
            connection: Where.
            rows: What.
            reject: Makes dead letters of deliveries with conflicts.

        Raises:
            StoreUnavailableError: It is committed here, but not on the synchronous standby.
            asyncpg.PostgresError, OSError, …: Nothing was stored, or nobody knows (the connection was lost in COMMIT).
        """
        session: Any = connection  # a ServiceConnection
        session.take_unreplicated()
        result = await self._store(connection, rows, reject)
        if session.take_unreplicated():
            raise StoreUnavailableError(WAITING_FOR_STANDBY)
        return result

    async def _store(self, connection: PoolConnectionProxy, rows: Rows, reject: Reject) -> WriteResult:
        if rows.measures and not self._careful:
            try:
                return await self._copy(connection, rows, reject)
            except asyncpg.UniqueViolationError:
                pass
        try:
            result = await self._sift(connection, rows, reject)
        except asyncpg.UniqueViolationError:
            result = await self._sift(connection, rows, reject, trusting=False)
        met_duplicates = result.points_duplicate or result.points_conflicting
        self._careful = CAREFUL_BATCHES if met_duplicates else max(0, self._careful - 1)
        return result

    async def _copy(self, connection: PoolConnectionProxy, rows: Rows, reject: Reject) -> WriteResult:
        """The straight road: every measurement is new, or nothing is stored."""
        held = hold_statement(connection, rows.token)
        if rows.only_measures:
            await self._copy_measures(connection, rows.measures, first=held)
            return WriteResult(points_stored=rows.points)
        async with connection.transaction():
            await self._copy_measures(connection, rows.measures, first=held)
            fresh, rejected = await _store_others(connection, rows, (), reject)
        fresh |= {measures.delivery for measures in rows.measures}
        return WriteResult(points_stored=rows.points, duplicates=rows.touched() - fresh, rejected=rejected)

    async def _copy_measures(
        self, connection: PoolConnectionProxy, measures: Sequence[PackedRows], *, first: str = ""
    ) -> None:
        statements = [first] if first else []
        if self.marking:
            statements.append(mark_statement(measures, self.fleet))
        await copy_packed(
            connection, "traksense.measure", PACKED_COLUMNS, in_order(measures), first="; ".join(statements)
        )

    async def _sift(
        self, connection: PoolConnectionProxy, rows: Rows, reject: Reject, *, trusting: bool = True
    ) -> WriteResult:
        """The careful road: measurements whose key is there already are compared with what is stored.

        Args:
            connection: Where.
            rows: What.
            reject: As in `store`.
            trusting: Copy what seems to be new; else everything is staged.
        """
        staged = Staged()
        copied: list[PackedRows] = []
        async with connection.transaction():
            await hold(connection, rows.token)
            if rows.measures:
                suspect = range(len(rows.measures)) if not trusting else await find_stored(connection, rows.measures)
                copied = [measures for place, measures in enumerate(rows.measures) if place not in suspect]
                if copied:
                    await self._copy_measures(connection, copied)
                if suspect:
                    suspects = [rows.measures[place] for place in sorted(suspect)]
                    staged = await insert_staged(connection, suspects, replacing=self._replacing)
                    if self.marking:
                        await connection.execute(mark_statement(suspects, self.fleet))
            fresh, rejected = await _store_others(connection, rows, () if self._replacing else staged.conflicts, reject)
            # Invariant: what is acknowledged is as durable as a COMMIT makes it. A transaction that finds only repeats
            # writes nothing, and its COMMIT would wait for no synchronous standby, although what it found may not be
            # there yet. This makes it wait, and by the order of the log for all before it.
            await connection.execute(COMMIT_RECORD)
        fresh |= staged.fresh
        fresh |= {measures.delivery for measures in copied}
        return WriteResult(
            points_stored=rows.points - staged.repeated,
            points_duplicate=staged.repeated - len(staged.conflicts),
            points_conflicting=len(staged.conflicts),
            duplicates=rows.touched() - fresh,
            rejected=rejected,
        )


async def _store_others(
    connection: PoolConnectionProxy, rows: Rows, conflicts: Sequence[Conflict], reject: Reject
) -> tuple[set[int], dict[int, Rejection]]:
    """Store what is not a measurement; returns the indices of the deliveries that brought something new, and why some
    became dead letters.
    """
    fresh: set[int] = set()
    if rows.only_measures and not conflicts:
        return fresh, {}
    await name_tenants(connection, rows.tenants)
    if rows.acks:
        for row in await connection.fetch(UPSERT_ACKS, *_columns([row for _, row in rows.acks.values()])):
            if row["inserted"]:
                fresh.add(rows.acks[(row["tenant_id"], row["device_id"], row["cmd_id"])][0])
    fresh_events, differing = await _store_events(connection, rows) if rows.events else (set(), set())
    rejected, letters = reject(conflicts, differing)
    if errors := rows.errors | letters:
        if letters:
            await name_tenants(connection, rows.tenants | {str(letter[0]) for letter in letters.values()})
        await connection.execute(INSERT_ERRORS, *_columns(list(errors.values())))
    return fresh | fresh_events, rejected


async def _store_events(connection: PoolConnectionProxy, rows: Rows) -> tuple[set[int], set[int]]:
    """The indices of the deliveries with a new event, and of those whose event differs from the one that is stored."""
    fresh: set[int] = set()
    repeated: list[tuple[Any, ...]] = []
    deliveries: list[int] = []
    brought = [row for _, row, _ in rows.events]
    stored = {tuple(row) for row in await connection.fetch(INSERT_EVENTS, *_columns(brought))}
    for index, event, id_of_content in rows.events:
        key = event[:6]
        if key in stored:
            stored.discard(key)
            fresh.add(index)
        elif not id_of_content:
            repeated.append(event)
            deliveries.append(index)
    differing = await connection.fetch(_COMPARE_EVENTS, *_columns(repeated)) if repeated else []
    return fresh, {deliveries[place] for (place,) in differing}


def _columns(rows: list[tuple[Any, ...]]) -> list[list[Any]]:
    return [list(column) for column in zip(*rows, strict=True)]
