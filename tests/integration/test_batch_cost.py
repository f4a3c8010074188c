"""What a batch costs beside a thousand partitions, a million series and a million marks, against an empty database
with the hundred days that are written to.

Skipped unless TRAKSENSE_TEST_BATCH_COST is set, since it takes some minutes and prints figures: `pytest -s`. The
medians of two databases that are written to in turn, so that a busy machine slows both.
"""

from __future__ import annotations

import os
import statistics
import time
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final

import psycopg
import pytest
import trio

from tests.contract.test_store import delivery, open_postgres_store
from traksense.model import Point, Telemetry

if TYPE_CHECKING:
    from collections.abc import Callable

    from schema_servers import Database

    from traksense.model import Delivery

pytest_plugins = ("schema_fixtures",)

pytestmark = [
    pytest.mark.timeout(1800),
    pytest.mark.skipif(not os.environ.get("TRAKSENSE_TEST_BATCH_COST"), reason="TRAKSENSE_TEST_BATCH_COST is not set"),
]

ROUNDS: Final = 40
WARM: Final = 5
RATIO_MAX: Final = 2.0
"""Ten times the partitions, a thousand times the series, and marks that were not there."""

DAYS: Final = (
    # As each session of the pool has it.
    *(
        f"DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET {setting}', current_database()); END $$"
        for setting in ("jit = off", "plan_cache_mode = force_custom_plan")
    ),
    # What a late batch touches, so that both have it in the same pieces.
    "UPDATE traksense.setting SET value = '2000 days' WHERE name = 'partition_daily_within'",
    "SELECT traksense.ensure_partitions(now() - interval '100 days', now())",
)
GROWN: Final = (
    *DAYS,
    *(
        f"SELECT traksense.ensure_partitions(now() - interval '{days} days', now() - interval '{days - 100} days')"
        for days in range(1000, 0, -100)
    ),
    "INSERT INTO traksense.tenant VALUES ('big')",
    "INSERT INTO traksense.device SELECT 'big', 'site', 'd' || n FROM generate_series(1, 10000) n",
    (
        "INSERT INTO traksense.series (tenant_id, site_id, device_id, point_id)"
        " SELECT 'big', 'site', 'd' || n / 100 + 1, 'p' || n % 100 FROM generate_series(0, 999999) n"
    ),
    (
        "INSERT INTO traksense.dirty (series, low, high)"
        " SELECT ARRAY[n], now() - n * interval '10 s', now() - n * interval '10 s' FROM generate_series(1, 1000000) n"
    ),
    "ANALYZE",
)


def fresh(now: datetime, number: int) -> list[Delivery]:
    """Fifty messages of ten points of the last seconds."""
    points = [Point(f"p{n}", float(n)) for n in range(10)]
    return [delivery(Telemetry(now + timedelta(milliseconds=50 * number + n), points)) for n in range(50)]


def late(now: datetime, number: int) -> list[Delivery]:
    """The same, spread over ninety days."""
    return [
        delivery(Telemetry(now - timedelta(days=n * 90 / 50, milliseconds=number), d.items[0].points))  # type: ignore[union-attr]
        for n, d in enumerate(fresh(now, 0))
    ]


def test_batch_cost_does_not_grow(migrated: Database, other_bare: Database) -> None:
    """A fresh, a repeated and a late batch each cost about the same beside all that."""
    if migrated.server.timescaledb:
        pytest.skip("a hypertable makes its own chunks, and keeps its own marks")
    other_bare.migrate()
    migrated.run(*DAYS)
    other_bare.run(*GROWN)
    now = datetime.now(UTC)
    kinds: dict[str, Callable[[int], list[Delivery]]] = {
        "fresh": lambda n: fresh(now, n),
        "repeated": lambda _: fresh(now, 0),
        "late": lambda n: late(now, n),
        "late, repeated": lambda _: late(now, 0),
    }
    took: dict[tuple[str, str], list[float]] = {}

    async def measure(kind: str, dsn: str, numbers: range) -> None:
        async with open_postgres_store(dsn) as store:
            for number in numbers:
                made = kinds[kind](number)
                started = time.perf_counter()
                await store.write(made)
                # The first ones fill the dictionary, and find that duplicates are about.
                if number - numbers.start >= WARM:
                    took.setdefault((kind, dsn), []).append(time.perf_counter() - started)

    with ExitStack() as stack:
        for dsn in (migrated.dsn, other_bare.dsn):
            # The background work would have the marks gone.
            session = stack.enter_context(psycopg.connect(dsn))
            session.execute("SELECT FROM traksense.work WHERE name = 'aggregate' FOR UPDATE")
        for kind in kinds:
            for start in range(0, ROUNDS, ROUNDS // 4):
                for dsn in (migrated.dsn, other_bare.dsn):
                    trio.run(measure, kind, dsn, range(start, start + ROUNDS // 4 + WARM))
    ratios = {}
    for kind in kinds:
        small, grown = (statistics.median(took[kind, dsn]) * 1000 for dsn in (migrated.dsn, other_bare.dsn))
        ratios[kind] = grown / small
        print(f"{kind}: {small:.1f} ms, {grown:.1f} ms, ratio {ratios[kind]:.2f}")

    assert max(ratios.values()) < RATIO_MAX
