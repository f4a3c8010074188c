"""What the broker confirmed beside what is stored: it must add up."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

import attrs

if TYPE_CHECKING:
    from collections.abc import Collection

    from traksense.model import Reason
    from traksense.tools.demo.observe import Database
    from traksense.tools.fleet import Tally

COUNTS: Final = """
SELECT
    (SELECT count(*) FROM ts_measure WHERE ts >= $1 AND tenant_id = ANY ($2)) AS points,
    (SELECT count(*) FROM device_event WHERE ts >= $1 AND tenant_id = ANY ($2)) AS events,
    (SELECT count(*) FROM cmd_ack WHERE ts_exec >= $1 AND tenant_id = ANY ($2)) AS acknowledgements
"""
DEAD: Final = "SELECT reason, count(*) AS count FROM ingest_errors WHERE id > $1 GROUP BY reason"
LAST_DEAD: Final = "SELECT coalesce(max(id), 0) FROM ingest_errors"


@attrs.frozen
class Line:
    """One thing to compare."""

    what: str
    confirmed: int
    stored: int

    @property
    def equal(self) -> bool:
        """Whether both sides agree."""
        return self.confirmed == self.stored


@attrs.frozen
class Verdict:
    """The comparison.

    Attributes:
        lines: What was compared.
        unconfirmed: Messages of which the broker said nothing.
        repeats: Confirmed messages that had been published before and must have stored nothing.
    """

    lines: tuple[Line, ...]
    unconfirmed: int
    repeats: int

    @property
    def adds_up(self) -> bool:
        """Whether everything that the broker confirmed is stored, once, and nothing else is."""
        return not self.unconfirmed and all(line.equal for line in self.lines)

    def text(self) -> str:
        """A small table, and what it means."""
        lines = [f"  {'':<34}{'broker confirmed':>17}{'database has':>15}"]
        lines += [
            f"  {line.what:<34}{line.confirmed:>17,}{line.stored:>15,}  {'equal' if line.equal else 'DIFFERENT'}"
            for line in self.lines
        ]
        lines.append(f"  {'published twice on purpose':<34}{self.repeats:>17,}{'stored once':>15}")
        if self.unconfirmed:
            lines.append(f"  {self.unconfirmed:,} messages were never confirmed by the broker.")
        if self.adds_up:
            lines.append("  It adds up: nothing is lost, nothing is stored twice.")
        else:
            lines += [
                "  It does not add up: see the lines marked DIFFERENT, and what was never",
                "  confirmed. What you deleted of the simulated devices, or sent in their name, is",
                "  a difference too; so is a bad message of your own.",
            ]
        return "\n".join(lines)


async def compare(
    tally: Tally, database: Database, *, tenants: Collection[str], since: float, last_dead: int
) -> Verdict:
    """Count what is stored, and put it beside what the broker confirmed.

    Args:
        tally: What the broker confirmed.
        database: To count in.
        tenants: The fleet's: their rows are its own, what somebody else tries meanwhile is not.
        since: Unix seconds of its first timestamp; the rows before are of earlier runs.
        last_dead: The id of the last dead letter before it.

    Raises:
        StoreError: The database does not answer.

    Trio-flavored.
    """
    row = (await database.fetch(COUNTS, datetime.fromtimestamp(since, UTC), sorted(tenants)))[0]
    dead = Counter({entry["reason"]: entry["count"] for entry in await database.fetch(DEAD, last_dead)})
    expected: Counter[Reason] = tally.dead(all_topics=True)
    lines = [
        Line("points of telemetry", tally.points, row["points"]),
        Line("events", tally.events, row["events"]),
        Line("command acknowledgements", tally.acknowledgements, row["acknowledgements"]),
        Line("bad messages, as dead letters", expected.total(), dead.total()),
    ]
    lines += [
        Line(f"  {reason}", expected[reason], dead[reason])
        for reason in sorted({*expected, *dead})
        if expected[reason] != dead[reason]
    ]
    return Verdict(tuple(lines), tally.unconfirmed, tally.repeats.messages)
