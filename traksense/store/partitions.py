"""Which instants have a place in the measurements.

On plain PostgreSQL the table is partitioned by time; partitions are made ahead of time by the maintenance task and by
need here, so that a point of any accepted date is stored. On TimescaleDB chunks make themselves and one range covers
everything: the schema's functions hide the difference. A cache, since a batch nearly always falls into what is known
to be covered.
"""

from __future__ import annotations

from bisect import bisect_right
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

AHEAD: Final = timedelta(days=7)
"""How far ahead the maintenance task makes partitions. Chosen by guess: a week of failing maintenance before it is by
need."""

_BEGIN: Final = datetime.min.replace(tzinfo=UTC)
_END: Final = datetime.max.replace(tzinfo=UTC)

_ENSURE: Final = 'SELECT lower(r) AS begin, upper(r) AS "end" FROM traksense.ensure_partitions($1::timestamptz[]) AS r'


class Partitions:
    """The covered ranges, as [begins, ends) in order, merged."""

    def __init__(self) -> None:
        self._begins: list[datetime] = []
        self._ends: list[datetime] = []

    def covers(self, first: datetime, last: datetime) -> bool:
        """Whether everything from first to last, both included, has a place."""
        at = bisect_right(self._begins, first) - 1
        return at >= 0 and last < self._ends[at]

    async def ensure(self, connection: Any, instants: Iterable[datetime]) -> None:
        """Make what is missing for these instants, a few partitions in each transaction. Not inside one of the
        caller's. asyncio-flavored.
        """
        missing = [instant for instant in set(instants) if not self.covers(instant, instant)]
        while missing:
            self._know(await connection.fetch(_ENSURE, missing))
            left = [instant for instant in missing if not self.covers(instant, instant)]
            if len(left) == len(missing):
                break  # a partition that is being detached, say: the database refuses what has no place
            missing = left

    async def ensure_ahead(self, connection: Any) -> None:
        """Make the partitions from yesterday to a week ahead. asyncio-flavored."""
        now = datetime.now(UTC)
        await self.ensure(connection, [now + timedelta(days=n) for n in range(-1, AHEAD.days + 1)])

    def forget(self) -> None:
        """Trust nothing: a partition has turned out to be missing (retention dropped it)."""
        self._begins, self._ends = [], []

    def _know(self, rows: Iterable[Any]) -> None:
        """Everything that is covered, merged, as the database tells it; unbounded ends are null."""
        ranges = sorted((row["begin"] or _BEGIN, row["end"] or _END) for row in rows)
        self._begins = [begin for begin, _ in ranges]
        self._ends = [end for _, end in ranges]
