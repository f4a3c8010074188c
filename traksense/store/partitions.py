"""Which instants have a place in the measurements.

On plain PostgreSQL the table is partitioned by time; partitions are made ahead of time by the maintenance task and by
need here, so that a point of any accepted date is stored. On TimescaleDB chunks make themselves and one range covers
everything: the schema's functions hide the difference. A cache, since a batch nearly always falls into what is known
to be covered.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

    from asyncpg.pool import PoolConnectionProxy

AHEAD: Final = timedelta(days=7)
"""How far ahead the maintenance task makes partitions. Chosen by guess: a week of failing maintenance before it is by
need."""

_BEGIN: Final = datetime.min.replace(tzinfo=UTC)
_END: Final = datetime.max.replace(tzinfo=UTC)


class Partitions:
    """The covered ranges, as [from, to) pairs, merged and sorted."""

    def __init__(self) -> None:
        self._ranges: list[tuple[datetime, datetime]] = []

    def covers(self, first: datetime, last: datetime) -> bool:
        """Whether everything from first to last, both included, has a place."""
        return any(begin <= first and last < end for begin, end in self._ranges)

    async def ensure(self, connection: PoolConnectionProxy, instants: Iterable[datetime]) -> None:
        """Make what is missing for these instants. In the caller's transaction, or its own. asyncio-flavored."""
        for day in sorted({i.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0) for i in instants}):
            if not self.covers(day, day + timedelta(days=1, microseconds=-1)):
                await self._ensure(connection, day, day + timedelta(days=1))

    async def ensure_ahead(self, connection: PoolConnectionProxy) -> None:
        """Make the partitions from yesterday to a week ahead. asyncio-flavored."""
        now = datetime.now(UTC)
        await self._ensure(connection, now - timedelta(days=1), now + AHEAD)

    async def _ensure(self, connection: PoolConnectionProxy, begin: datetime, end: datetime) -> None:
        rows = await connection.fetch(
            "SELECT lower(r) AS begin, upper(r) AS end FROM traksense.ensure_partitions($1, $2) r", begin, end
        )
        self._add([(row["begin"] or _BEGIN, row["end"] or _END) for row in rows])

    def forget(self) -> None:
        """Trust nothing: a partition has turned out to be missing (retention dropped it)."""
        self._ranges.clear()

    def _add(self, ranges: Iterable[tuple[datetime, datetime]]) -> None:
        merged: list[tuple[datetime, datetime]] = []
        for begin, end in sorted([*self._ranges, *ranges]):
            if merged and begin <= merged[-1][1]:
                merged[-1] = (merged[-1][0], max(merged[-1][1], end))
            else:
                merged.append((begin, end))
        self._ranges = merged
