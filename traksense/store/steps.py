"""How the background work gets on: what each step left in the database, and whether somebody has to look at it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

import attrs

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

STEPS: Final = ("aggregate", "partitions", "drop", "purge", "compress")
"""All there are: `partitions` on plain PostgreSQL only, `compress` on TimescaleDB only."""

LATE_AFTER: Final[Mapping[str, timedelta]] = dict.fromkeys(STEPS, timedelta(hours=3)) | {
    "aggregate": timedelta(minutes=10)
}
"""How long after a step was last done it is late. Aggregates are refreshed every minute or half minute, the rest is
done every hour. Chosen by guess: a few times missed."""

BEHIND_AFTER: Final = timedelta(hours=1)
"""How long what was written may wait to be aggregated before that is said. Chosen by guess."""

_READ: Final = "SELECT * FROM traksense.maintenance_state()"


@attrs.frozen
class StepState:
    """One step, as the database knows it, whoever does it.

    Attributes:
        name: One of `STEPS`.
        succeeded_at: When it was last done.
        failing_since: Since when each attempt has failed, or None.
        error: What the last attempt failed with, or None.
        waiting: How many marks wait to be aggregated (plain PostgreSQL; 100,000 may be more).
        waiting_since: Since when the oldest of them waits.
    """

    name: str
    succeeded_at: datetime
    failing_since: datetime | None = None
    error: str | None = None
    waiting: int | None = None
    waiting_since: datetime | None = None

    def trouble(self, now: datetime) -> str | None:
        """What is wrong with it, or None."""
        why = f": {self.error}" if self.error else ""
        if self.failing_since is not None:
            return f"{self.name} has failed since {_second(self.failing_since)}{why}"
        if now - self.succeeded_at > LATE_AFTER[self.name]:
            return f"{self.name} has not been done since {_second(self.succeeded_at)}{why}"
        if self.waiting_since is not None and now - self.waiting_since > BEHIND_AFTER:
            return f"{self.name} is more than an hour behind"
        return None


def trouble(states: Sequence[StepState], now: datetime) -> str | None:
    """What is wrong with any of them, in one line, or None."""
    return "; ".join(text for state in states if (text := state.trouble(now))) or None


async def read_states(connection: Any) -> list[StepState]:
    """All steps of this engine. asyncio-flavored."""
    return [
        StepState(
            row["step"], row["succeeded_at"], row["failing_since"], row["error"], row["waiting"], row["waiting_since"]
        )
        for row in await connection.fetch(_READ)
    ]


def _second(instant: datetime) -> str:
    return instant.astimezone(UTC).isoformat(timespec="seconds")
