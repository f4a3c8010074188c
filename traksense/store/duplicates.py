"""What was stored before: finding it, and storing around it.

A redelivered message is stored as a whole or not at all, since a transaction holds whole messages. So one look at the
first key of each message nearly always tells which of them are repeats; those alone take the staging road, where every
row is compared, and the rest is copied straight. Where that look errs (two messages that share some keys, or a
transaction that commits meanwhile), the unique key refuses the copy, and the whole batch is staged.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Final, TypeAlias

import attrs

from traksense.store.packing import PACKED_COLUMNS, copy_packed, key, numbered, series_of, value

if TYPE_CHECKING:
    from collections.abc import Sequence
    from collections.abc import Set as AbstractSet
    from datetime import datetime

    from asyncpg.pool import PoolConnectionProxy

    from traksense.store.packing import PackedRows

_COLUMNS: Final = ", ".join(PACKED_COLUMNS)

REACH: Final = timedelta(days=31)
"""What one statement looks at: some thirty of the partitions of a day, whatever there is besides. A statement that
could find its rows in any of a thousand plans for all of them, and locks them."""

# $3 and $4 are constants to the planner (plan_cache_mode=force_custom_plan): it leaves out all other partitions. A
# scalar subquery, so that it cannot turn it into a join that reads all of the measurements.
_FIND_STORED: Final = """
SELECT k.place
FROM unnest($1::int[], $2::timestamptz[], $5::int[]) AS k (series_id, ts, place)
WHERE (
    SELECT true FROM traksense.measure m
    WHERE m.series_id = k.series_id AND m.ts = k.ts AND m.ts >= $3::timestamptz AND m.ts <= $4::timestamptz
)
"""

# Spelt out rather than copied from the measurements: the service's role may not read all of their columns.
_CREATE_STAGING: Final = """
CREATE TEMPORARY TABLE IF NOT EXISTS traksense_staging (
    series_id int, ts timestamptz, qual smallint, meta jsonb, meta_id int, v_bool boolean, v_text text,
    v_num double precision, row int
) ON COMMIT DELETE ROWS
"""

_INSERT_STAGED: Final = f"""
WITH new AS (
    INSERT INTO traksense.measure ({_COLUMNS})
    SELECT {_COLUMNS} FROM pg_temp.traksense_staging WHERE ts >= $1 AND ts <= $2 ORDER BY series_id, ts
    ON CONFLICT DO NOTHING
    RETURNING series_id, ts
)
SELECT s.row FROM pg_temp.traksense_staging s
WHERE s.ts >= $1 AND s.ts <= $2
    AND NOT EXISTS (SELECT FROM new WHERE new.series_id = s.series_id AND new.ts = s.ts)
"""  # noqa: S608  (constants)

# A statement of its own: its snapshot has the rows of those that committed while the insertion waited for them.
_COMPARE: Final = """
SELECT s.row, m.v_num, m.v_bool, m.v_text,
    (m.v_num, m.v_bool, m.v_text) IS DISTINCT FROM (s.v_num, s.v_bool, s.v_text)
FROM pg_temp.traksense_staging s
CROSS JOIN LATERAL (
    SELECT v_num, v_bool, v_text FROM traksense.measure
    WHERE series_id = s.series_id AND ts = s.ts AND ts >= $2::timestamptz AND ts <= $3::timestamptz OFFSET 0
) AS m
WHERE s.row = ANY ($1::int[])
"""


# The service's role may not update measurements: it may have values of staged rows replaced.
_REPLACE: Final = """
SELECT traksense.replace_points(
    array_agg(series_id), array_agg(ts), array_agg(v_num), array_agg(v_bool), array_agg(v_text), array_agg(qual),
    array_agg(meta_id), array_agg(meta)
)
FROM pg_temp.traksense_staging WHERE row = ANY ($1::int[])
"""

Comparable: TypeAlias = tuple[float | None, bool | None, str | None]
"""v_num, v_bool and v_text of a row."""


@attrs.frozen
class Conflict:
    """A point that came with another value than the one that is stored under its key.

    Attributes:
        delivery: The index of the delivery that brought it.
        series_id: Its series.
        ts: Its time.
        brought: What it says.
        stored: What is stored.
    """

    delivery: int
    series_id: int
    ts: datetime
    brought: Comparable
    stored: Comparable


@attrs.frozen
class Staged:
    """What came of rows that were staged.

    Attributes:
        repeated: How many rows were there already; those that differ included.
        conflicts: Those that differ from what is stored.
        fresh: The deliveries that brought at least one new row.
    """

    repeated: int = 0
    conflicts: tuple[Conflict, ...] = ()
    fresh: frozenset[int] = frozenset()


async def find_stored(connection: PoolConnectionProxy, measures: Sequence[PackedRows]) -> set[int]:
    """The places of those whose first row is stored already, or came before in this list, or that name a point twice.
    asyncio-flavored.
    """
    seen: set[bytes] = set()
    found: set[int] = set()
    for place, rows in enumerate(measures):
        first = key(rows.packed)
        if first in seen or rows.repeats_itself:
            found.add(place)
        seen.add(first)
    for places in _within_reach(measures):
        part = [measures[place] for place in places]
        series, instants = [rows.first_series for rows in part], [rows.ts for rows in part]
        found.update(
            place
            for (place,) in await connection.fetch(_FIND_STORED, series, instants, min(instants), max(instants), places)
        )
    return found


async def insert_staged(
    connection: PoolConnectionProxy, measures: Sequence[PackedRows], *, replacing: bool = False
) -> Staged:
    """Insert the rows whose key is new; the others are counted, and what is stored is left as it is.

    Args:
        connection: In the caller's transaction.
        measures: The rows.
        replacing: Whether a row that differs from what is stored replaces it instead; of several, the last one.

    asyncio-flavored.
    """
    await connection.execute(_CREATE_STAGING)
    staged = _Rows(measures, last_counts=replacing)
    await copy_packed(connection, "pg_temp.traksense_staging", (*PACKED_COLUMNS, "row"), staged.records)
    stored: dict[int, Comparable] = {}
    repeated: set[int] = set(staged.repeats)
    differing: list[int] = []
    for part in _within_reach(measures):
        first, last = measures[part[0]].ts, measures[part[-1]].ts
        places = [place for (place,) in await connection.fetch(_INSERT_STAGED, first, last)]
        repeated.update(places)
        for place, *columns, differs in await connection.fetch(_COMPARE, places, first, last) if places else ():
            stored[place] = (columns[0], columns[1], columns[2])
            if differs:
                differing.append(place)
    if replacing and differing:
        await connection.execute(_REPLACE, differing)
    conflicts = [staged.conflict(place, stored[place]) for place in differing]
    # What came twice in the list itself is compared with what is stored now.
    for place, counted in staged.repeats.items():
        value_now = stored.get(counted, staged.value(counted)) if not replacing else staged.value(counted)
        if staged.value(place) != value_now:
            conflicts.append(staged.conflict(place, value_now))
    return Staged(len(repeated), tuple(conflicts), _deliveries_of_others(measures, repeated))


def _within_reach(measures: Sequence[PackedRows]) -> list[list[int]]:
    """Their places in the order of their times, in as many parts as it takes for none to be longer than `REACH`."""
    parts: list[list[int]] = []
    end = measures[0].ts
    for place in sorted(range(len(measures)), key=lambda place: measures[place].ts):
        ts = measures[place].ts
        if not parts or ts >= end:
            parts.append([])
            end = ts + REACH
        parts[-1].append(place)
    return parts


class _Rows:
    """Rows with their places in the list, less those whose key occurs twice.

    Attributes:
        records: The bytes for COPY of those that count.
        repeats: The places of the others, with the place of the one that counts instead.
    """

    def __init__(self, measures: Sequence[PackedRows], *, last_counts: bool) -> None:
        self._rows = [(rows, row) for rows in measures for row in rows.rows()]
        counting: dict[bytes, int] = {}
        for place, (_, row) in enumerate(self._rows):
            if last_counts:
                counting[key(row)] = place
            else:
                counting.setdefault(key(row), place)
        self.records: list[bytes] = []
        self.repeats: dict[int, int] = {}
        for place, (rows, row) in enumerate(self._rows):
            counted = counting[key(row)]
            if counted == place:
                self.records += numbered(row, rows.meta, place)
            else:
                self.repeats[place] = counted

    def value(self, place: int) -> Comparable:
        """What the row at a place says."""
        return value(self._rows[place][1])

    def conflict(self, place: int, stored: Comparable) -> Conflict:
        """The row at a place differs from what is stored."""
        rows, row = self._rows[place]
        return Conflict(rows.delivery, series_of(row), rows.ts, value(row), stored)


def _deliveries_of_others(measures: Sequence[PackedRows], repeated: AbstractSet[int]) -> frozenset[int]:
    """The deliveries that brought a row whose place is not among these."""
    deliveries: set[int] = set()
    place = 0
    for rows in measures:
        if not repeated >= set(range(place, place + rows.count)):
            deliveries.add(rows.delivery)
        place += rows.count
    return frozenset(deliveries)
