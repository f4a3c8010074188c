"""How many chunks a transaction may write to, on TimescaleDB: each takes locks, of which a server has so many."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from traksense.errors import DataRefusedError, DeliveriesRefusedError
from traksense.model import Reason, Rejection

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import timedelta

    from traksense.model import Delivery

CHUNKS_MAX: Final = 366
"""How many chunks a transaction may write to on TimescaleDB: a year of days. Each takes five locks while it is made,
and a server as it is shipped has some 7,000 for everybody."""

EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


def check_spread(batch: Sequence[Delivery], instants: Sequence[datetime], chunk: timedelta) -> None:
    """Keep a transaction from needing more locks than a server has: it would never be stored, however often it is
    tried, and whatever else waits for a lock fails meanwhile.

    Raises:
        DataRefusedError: The batch writes to too many chunks; a part of it may not.
        DeliveriesRefusedError: Its only delivery does.
    """
    if not instants or max(instants) - min(instants) < CHUNKS_MAX * chunk:
        return
    chunks = len({(instant - EPOCH) // chunk for instant in instants})
    if chunks <= CHUNKS_MAX:
        return
    said = f"the times of its points are in {chunks} chunks of the database ({chunk} each), the limit is {CHUNKS_MAX}"
    if len(batch) > 1:
        raise DataRefusedError(said)
    raise DeliveriesRefusedError({0: Rejection(Reason.TOO_MANY_POINTS, said)})
