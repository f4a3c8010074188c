"""What a batch changes in the aggregates, on plain PostgreSQL (TimescaleDB keeps its own account).

The batch's transaction marks the times that it has written; `traksense.roll_up()` computes the marked buckets anew. A
mark is of all series, or of one: recent points, which nearly all are, make one mark for the batch; late ones are marked
by the hour, and series by series where an hour has only a few, so that a device that brings three days at once does
not have three days of the whole fleet computed again (ops/decisions/0031).
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from traksense.store.packing import PackedRows

Mark: TypeAlias = tuple[int | None, datetime, datetime]
"""The series, or None for all; the first and the last time written."""

RECENT: Final = timedelta(minutes=15)
"""As far before the newest point of a batch as the whole fleet is computed anew without looking closer. Chosen by
guess: a batch holds what arrived within a second, and few devices are so late without having been away."""

SERIES_MAX: Final = 200
"""If more series than these have late points in one hour, that hour is marked for all. Chosen by guess: an index scan
for each of them costs about as much as one of a tenth of a fleet of 2,000."""


def marks(measures: Sequence[PackedRows]) -> list[Mark]:
    """The marks for these rows of measurements."""
    instants = [packed.ts for packed in measures]
    first, last = min(instants), max(instants)
    if last - first <= RECENT:
        return [(None, first, last)]
    recent = last - RECENT
    result: list[Mark] = [(None, min(ts for ts in instants if ts >= recent), last)]
    hours: dict[datetime, dict[int, tuple[datetime, datetime]]] = {}
    for packed in measures:
        ts = packed.ts
        if ts < recent:
            hour = hours.setdefault(ts.replace(minute=0, second=0, microsecond=0), {})
            for series_id in packed.series():
                low, high = hour.get(series_id, (ts, ts))
                hour[series_id] = (min(low, ts), max(high, ts))
    for hour in hours.values():
        if len(hour) <= SERIES_MAX:
            result += [(series_id, low, high) for series_id, (low, high) in hour.items()]
        else:
            spans = hour.values()
            result.append((None, min(low for low, _ in spans), max(high for _, high in spans)))
    return result


def mark_statement(measures: Sequence[PackedRows]) -> str:
    """The statement that marks what these rows change, for the transaction that writes them.

    With its values inside, so that it can go to the server together with the COPY: all that one message of the simple
    query protocol holds is one transaction.
    """
    series, lows, highs = zip(*marks(measures), strict=True)
    values = f"'{_array(series)}'::int[], '{_array(lows)}'::timestamptz[], '{_array(highs)}'::timestamptz[]"
    return f"INSERT INTO traksense.dirty (series_id, low, high) SELECT * FROM unnest({values})"  # noqa: S608  (our own)


def _array(values: Iterable[int | datetime | None]) -> str:
    """An array literal; numbers and times need no escapes."""
    texts = ("NULL" if v is None else f'"{v.isoformat()}"' if isinstance(v, datetime) else str(v) for v in values)
    return f"{{{','.join(texts)}}}"


async def roll_up(connection: Any) -> int:
    """Work off the marks that there are; returns how many, or -1 if another session is at it. asyncio-flavored."""
    done = 0
    while True:
        marks_done: int = await connection.fetchval("SELECT traksense.roll_up()", timeout=None)
        if marks_done < 1:
            return done or marks_done
        done += marks_done
