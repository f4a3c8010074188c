"""What a batch changes in the aggregates, on plain PostgreSQL (TimescaleDB keeps its own account).

The batch's transaction marks what it has written, series by series within an hour; `traksense.roll_up()` computes the
marked buckets anew, piece by piece. So what a batch costs is in proportion to what it wrote: a device that brings a
year of history has its own year computed, and nobody else's. A batch that writes much of a small fleet marks all of it
(ops/decisions/0037).
"""

from __future__ import annotations

import math
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import asyncpg

from traksense.store.packing import SERIES, series

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from traksense.store.packing import PackedRows

Mark: TypeAlias = "tuple[Collection[int] | None, datetime, datetime]"
"""The series, or None for all that there are, and the first and the last time written; all within an hour."""

HOUR: Final = timedelta(hours=1)

PIECE: Final = 20_000
"""How many hours of single series are computed at once, and how many marks are looked at for it: a second or two.
Chosen by guess."""

NAMED_ROWS: Final = 256
"""Fewer rows name their series in any case."""

FLEET_SHARE: Final = 4
"""Rows of one in so many series of the fleet, or of more, mark it all: some thousands of names cost a batch more than
the look-ups that they would spare (ops/decisions/0037)."""

PIECE_MINIMUM: Final = 16
PIECE_SHARE: Final = 4
"""A piece that failed is tried again at this fraction of its size."""

_ROLL_UP: Final = "SELECT traksense.roll_up_until($1, $2)"

_TOO_LARGE: Final = (
    asyncpg.QueryCanceledError,
    asyncpg.InsufficientResourcesError,
    asyncpg.ProgramLimitExceededError,
    asyncpg.TransactionRollbackError,
)
"""What a smaller piece may be spared: time-outs, memory and locks that ran out, deadlocks."""


def marks(measures: Sequence[PackedRows], fleet: float = math.inf) -> list[Mark]:
    """The marks for these rows of measurements; one if all are of the same hour, as nearly always.

    Args:
        measures: The rows.
        fleet: How many series there are; infinite if that is not known.
    """
    instants = [packed.ts for packed in measures]
    first, last = min(instants), max(instants)
    if last < _hour(first) + HOUR:
        return [(_series(measures, fleet), first, last)]
    hours: dict[datetime, list[PackedRows]] = {}
    for packed in measures:
        hours.setdefault(_hour(packed.ts), []).append(packed)
    return [
        (_series(rows, fleet), min(packed.ts for packed in rows), max(packed.ts for packed in rows))
        for rows in hours.values()
    ]


def _hour(instant: datetime) -> datetime:
    return instant.replace(minute=0, second=0, microsecond=0)


def _series(measures: Sequence[PackedRows], fleet: float) -> Collection[int] | None:
    # About so many: what begins with the same series is taken for the same series.
    many = sum({packed.packed[SERIES]: packed.count for packed in measures}.values())
    if many >= max(NAMED_ROWS, fleet / FLEET_SHARE) and fleet <= PIECE:
        return None
    return series(measures)


def mark_statement(measures: Sequence[PackedRows], fleet: float = math.inf) -> str:
    """The statement that marks what these rows change, for the transaction that writes them; for `fleet` see `marks`.

    With its values inside, so that it can go to the server together with the COPY: all that one message of the simple
    query protocol holds is one transaction. Numbers and times need no escapes.
    """
    values = ", ".join(
        f"({_array(ids)}::int[], '{low.isoformat()}'::timestamptz, '{high.isoformat()}'::timestamptz)"
        for ids, low, high in marks(measures, fleet)
    )
    return f"INSERT INTO traksense.dirty (series, low, high) VALUES {values}"  # noqa: S608  (our own)


def _array(ids: Collection[int] | None) -> str:
    return "NULL" if ids is None else f"'{{{','.join(map(str, ids))}}}'"


class Busy(Exception):  # noqa: N818  (not an error: the work is being done)
    """Another session is at it."""


class RollUp:
    """Works marks off, in pieces of a size that works: a session of its own for each call."""

    def __init__(self) -> None:
        self.piece = PIECE

    async def run(
        self,
        connection: Any,
        more: Callable[[], bool] = lambda: True,
        note: Callable[[int], None] = lambda _done: None,
    ) -> int:
        """Work off the marks that there are now, or until no more may be done; returns how many. Each piece commits.

        Args:
            connection: From `maintenance.connect`.
            more: Whether to go on with another piece.
            note: Told after each piece how many are worked off by now.

        Raises:
            asyncpg.PostgresError: A piece failed that cannot be made smaller; those before it stay.
            Busy: Another session is at it.

        asyncio-flavored.
        """
        done = 0
        until = await connection.fetchval("SELECT now()")
        while True:
            try:
                worked: int = await connection.fetchval(_ROLL_UP, self.piece, until)
            except _TOO_LARGE:
                if self.piece <= PIECE_MINIMUM:
                    raise
                self.piece = max(PIECE_MINIMUM, self.piece // PIECE_SHARE)
                continue
            if worked < 0 and not done:
                raise Busy
            if worked < 1:
                return done
            done += worked
            note(done)
            self.piece = min(PIECE, self.piece * 2)
            if not more():
                return done
