"""What was stored before: finding it, and storing around it.

A redelivered message is stored as a whole or not at all, since a transaction holds whole messages. So one look at the
first key of each message nearly always tells which of them are repeats; those alone take the staging road, where every
row is compared, and the rest is copied straight. Where that look errs (two messages that share some keys, or a
transaction that commits meanwhile), the unique key refuses the copy, and the whole batch is staged.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import attrs

from traksense.store.packing import PACKED_COLUMNS, copy_packed, key, numbered, value

if TYPE_CHECKING:
    from collections.abc import Sequence

    from asyncpg.pool import PoolConnectionProxy

    from traksense.store.packing import PackedRows

_COLUMNS: Final = ", ".join(PACKED_COLUMNS)

# A scalar subquery, so that the planner cannot turn it into a join that reads all of the measurements.
_FIND_STORED: Final = """
SELECT k.place - 1
FROM unnest($1::int[], $2::timestamptz[]) WITH ORDINALITY AS k (series_id, ts, place)
WHERE (SELECT true FROM traksense.measure m WHERE m.series_id = k.series_id AND m.ts = k.ts)
"""

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


@attrs.frozen
class Staged:
    """What came of rows that were staged.

    Attributes:
        repeated: How many rows were there already; those that differ included.
        conflicting: How many of them differ from what is stored.
        fresh: The deliveries that brought at least one new row.
    """

    repeated: int = 0
    conflicting: int = 0
    fresh: frozenset[int] = frozenset()


async def find_stored(connection: PoolConnectionProxy, measures: Sequence[PackedRows]) -> set[int]:
    """The places of those whose first row is stored already, or came before in this list, or that name a point twice.
    asyncio-flavored.
    """
    seen: set[bytes] = set()
    found: set[int] = set()
    series: list[int] = []
    for place, rows in enumerate(measures):
        first = key(rows.packed)
        if first in seen or rows.repeats_itself:
            found.add(place)
        seen.add(first)
        series.append(rows.first_series)
    stored = await connection.fetch(_FIND_STORED, series, [rows.ts for rows in measures])
    return found.union(place for (place,) in stored)


async def insert_staged(connection: PoolConnectionProxy, measures: Sequence[PackedRows]) -> Staged:
    """Insert the rows whose key is new; the others are counted, and what is stored is left as it is.

    In the caller's transaction. asyncio-flavored.
    """
    await connection.execute(_CREATE_STAGING)
    records, repeated, conflicting = _without_repeats(measures)
    await copy_packed(connection, "pg_temp.traksense_staging", (*PACKED_COLUMNS, "row"), records)
    for row, differs in await connection.fetch(_INSERT_STAGED):
        repeated.add(row)
        conflicting += differs
    return Staged(len(repeated), conflicting, _deliveries_of_others(measures, repeated))


def _without_repeats(measures: Sequence[PackedRows]) -> tuple[list[bytes], set[int], int]:
    """The bytes of the rows with their places, less those whose key came before in the list; their places; how many of
    those differ.
    """
    first: dict[bytes, bytes] = {}
    records: list[bytes] = []
    repeated: set[int] = set()
    conflicting = 0
    place = 0
    for rows in measures:
        for row in rows.rows():
            earlier = first.setdefault(key(row), row)
            if earlier is row:
                records += numbered(row, rows.meta, place)
            else:
                repeated.add(place)
                conflicting += value(earlier) != value(row)
            place += 1
    return records, repeated, conflicting


def _deliveries_of_others(measures: Sequence[PackedRows], repeated: set[int]) -> frozenset[int]:
    """The deliveries that brought a row whose place is not among these."""
    deliveries: set[int] = set()
    place = 0
    for rows in measures:
        if not repeated.issuperset(range(place, place + rows.count)):
            deliveries.add(rows.delivery)
        place += rows.count
    return frozenset(deliveries)
