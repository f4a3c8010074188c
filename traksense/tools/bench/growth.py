"""Backlogs under harder conditions: does the cost of a point grow with what is there already?"""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

import attrs

from traksense.tools.bench import backlog, tables
from traksense.tools.bench.load import Fleet, Load
from traksense.tools.bench.stage import DAY

if TYPE_CHECKING:
    from collections.abc import Iterator

    from traksense.tools.bench.stage import Contender, Stage

POINTS: Final = 10
DEVICES: Final = 1_000
LATE_DAYS: Final = 90


@attrs.frozen(kw_only=True)
class Condition:
    """One case. The first of each group is what the others of it are compared with.

    Attributes:
        group, case: What is varied, and how.
        fleet: Who publishes.
        rows: How many rows the table holds beforehand.
        duplicates: Which share of the messages comes twice.
        late_days: Over how many past days timestamps are spread.
        registered: Whether the fleet is known beforehand.
        once: Whether each device sends one message, so that everything has to be looked up or registered.
    """

    group: str
    case: str
    fleet: Fleet
    rows: int = 0
    duplicates: float = 0.0
    late_days: int = 0
    registered: bool = True
    once: bool = False

    @property
    def warm(self) -> bool:
        """Whether the first message of each device is left out: what is looked up once is not what grows."""
        return not self.once and not self.late_days

    def messages(self, usual: int) -> int:
        """How many messages: the usual number, but at least two of each device."""
        return self.fleet.devices if self.once else max(usual, 2 * self.fleet.devices)


def conditions(*, quick: bool, meta: bool) -> Iterator[Condition]:
    """All cases, those of a group one after the other."""

    def fleet(devices: int, tenants: int = 1) -> Fleet:
        return Fleet(devices=devices, points=POINTS, tenants=tenants, meta=meta)

    for series in (1_000, 100_000) if quick else (1_000, 100_000, 1_000_000):
        yield Condition(group="series", case=f"{series:,} series", fleet=fleet(series // POINTS))
    for tenants in (1, 100, 10_000):
        case = f"{tenants:,} tenants" if tenants > 1 else "1 tenant"
        yield Condition(group="tenants", case=case, fleet=fleet(10_000, tenants))
    for rows in (1_000, 10_000_000) if quick else (1_000, 10_000_000, 50_000_000):
        yield Condition(group="rows", case=f"{rows:,} rows in the table", fleet=fleet(10_000), rows=rows)
    for share in (0.0, 0.01, 0.2):
        yield Condition(group="duplicates", case=f"{share:.0%} duplicates", fleet=fleet(DEVICES), duplicates=share)
    for days in (0, LATE_DAYS):
        case = f"data spread over {days} days" if days else "data of the last hour"
        yield Condition(group="late", case=case, fleet=fleet(DEVICES), late_days=days)
    for registered in (True, False):
        case = "100,000 series, each seen once, known" if registered else "100,000 series, each seen once, new"
        yield Condition(group="first sight", case=case, fleet=fleet(10_000), registered=registered, once=True)


async def measure(stage: Stage, contender: Contender, condition: Condition, messages: int) -> dict[str, float]:
    """Drain a backlog under this condition; the figures. Trio-flavored.

    Raises:
        StackError: The service fails, or rows are lost, doubled or dead-lettered.
    """
    begin = time.time_ns() // 1000 - 3_600_000_000
    load = Load(
        fleet=condition.fleet,
        messages=condition.messages(messages),
        begin=begin,
        duplicates=condition.duplicates,
        spread_days=condition.late_days,
    )
    async with stage.database(contender, condition.fleet, registered=condition.registered) as dsn:
        since = datetime.fromtimestamp(begin / 1_000_000, UTC)
        async with stage.connection(dsn) as database:
            if condition.late_days:
                await database.call(tables.ensure_partitions, since - (condition.late_days + 1) * DAY, since + DAY)
            if condition.rows:
                # Up to the second before, in the same partitions as what comes.
                await database.call(tables.add_rows, condition.rows, series=condition.fleet.series, before=since)
        await stage.settle(dsn)
        return await backlog.drain(stage, contender, load, load.chunks(), dsn, warm=condition.warm)
