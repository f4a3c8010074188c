"""What a batch costs does not grow with the partitions that there are."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from traksense.store import maintenance, probe
from traksense.store.dictionary import hold_statement
from traksense.store.duplicates import REACH, find_stored, insert_staged
from traksense.store.packing import PackedRows, pack_head, pack_row
from traksense.store.rollup import RollUp, mark_statement

if TYPE_CHECKING:
    from collections.abc import Sequence

    from schema_servers import Database

pytest_plugins = ("schema_fixtures",)

DAYS = 400
NOW = datetime.now(UTC).replace(microsecond=0)

_LOCKED = (
    "SELECT count(DISTINCT c.oid) FROM pg_locks l JOIN pg_class c ON c.oid = l.relation"
    " WHERE l.pid = pg_backend_pid() AND c.relname LIKE $1"
)


@pytest.fixture
def year(migrated: Database) -> Database:
    """A database with a partition for each of the last 400 days, and a server that compiles every plan if it may."""
    if migrated.server.timescaledb:
        pytest.skip("a hypertable makes its own chunks")
    name = migrated.value("SELECT current_database()")
    migrated.run(
        "UPDATE traksense.setting SET value = '800 days' WHERE name = 'partition_daily_within'",
        f"SELECT traksense.ensure_partitions(now() - interval '{DAYS} days', now() + interval '2 days')",
        *(
            f'ALTER DATABASE "{name}" SET {setting} = 0'
            for setting in ("jit_above_cost", "jit_inline_above_cost", "jit_optimize_above_cost")
        ),
    )
    migrated.add_series("acme", "device", "point")
    assert DAYS < len(migrated.rows("SELECT traksense.partition_ranges()"))
    return migrated


def rows(*instants: datetime) -> list[PackedRows]:
    found = []
    for instant in instants:
        packed = pack_row(pack_head(1), instant, 1.0, None, None)
        found.append(PackedRows(packed, 1, len(packed), instant, 0))
    return found


async def prepare(connection: Any) -> None:
    """As on each connection of the pool."""
    await connection.execute("SET plan_cache_mode = force_custom_plan")
    await connection.execute("SET jit = off")


async def locked(connection: Any, pattern: str) -> int:
    """How many relations of such a name this transaction has locked: tables and their indexes."""
    number: int = await connection.fetchval(_LOCKED, pattern)
    return number


async def store(connection: Any, measures: Sequence[PackedRows]) -> tuple[int, int, int]:
    """The careful road: how many were found, how many repeated, and what was locked meanwhile."""
    await prepare(connection)
    async with connection.transaction():
        found = await find_stored(connection, measures)
        staged = await insert_staged(connection, measures)
        await connection.execute(mark_statement(measures))
        return len(found), staged.repeated, await locked(connection, "measure%")


def test_repeat_locks_a_handful(year: Database) -> None:
    """A repeated message locks its own partition, of four hundred; the first of its kind and the hundredth alike."""
    for instant in (NOW, NOW - timedelta(days=200)):
        measures = rows(instant)
        found = [maintenance.run_once(year.dsn, "test", partial(store, measures=measures)) for _ in range(3)]

        assert [(0, 0), (1, 1), (1, 1)] == [counts[:2] for counts in found]
        # The table, its partition, and the key of each.
        assert max(number for _, _, number in found) <= 4

    async def ten(connection: Any) -> int:
        for _ in range(10):  # past the fifth, PostgreSQL would consider a plan for all values
            _, _, number = await store(connection, rows(NOW))
        return number

    assert maintenance.run_once(year.dsn, "test", ten) <= 4


def test_batch_of_a_year_is_stored_in_parts(year: Database) -> None:
    """A batch of every day of a year, half of it repeated, is told apart; each statement looks at a month of it."""
    instants = [NOW - timedelta(days=n) for n in range(350)]
    maintenance.run_once(year.dsn, "test", lambda c: store(c, rows(*instants[::2])))
    seen: list[int] = []

    class Watched:
        """A connection that notes how many days the times lie apart that a statement is bound to."""

        def __init__(self, connection: Any) -> None:
            self._connection = connection

        def __getattr__(self, name: str) -> Any:
            return getattr(self._connection, name)

        async def fetch(self, statement: str, *arguments: Any) -> Any:
            times = [argument for argument in arguments if isinstance(argument, datetime)]
            seen.append((max(times) - min(times)).days)
            return await self._connection.fetch(statement, *arguments)

    found, repeated, _ = maintenance.run_once(year.dsn, "test", lambda c: store(Watched(c), rows(*instants)))

    assert (175, 175) == (found, repeated)
    assert 350 == year.value("SELECT count(*) FROM traksense.measure")
    assert max(seen) < REACH.days
    assert len(seen) == 3 * (350 // 31 + 1)


def test_piece_of_a_roll_up_locks_its_month(year: Database) -> None:
    """A piece touches the partitions of a month, whatever there is to do."""
    measures = rows(*(NOW - timedelta(days=n) for n in range(350)))
    maintenance.run_once(year.dsn, "test", lambda c: store(c, measures))

    async def piece(connection: Any) -> tuple[int, int]:
        async with connection.transaction():
            await connection.fetchval("SELECT traksense.roll_up()")
            return await locked(connection, "measure%"), await locked(connection, "%")

    measured, everything = maintenance.run_once(year.dsn, "test", piece)
    assert measured <= 2 * (REACH.days + 2)
    assert everything <= 500

    assert 0 < maintenance.run_once(year.dsn, "test", lambda c: RollUp().run(c))
    assert 350 == year.value("SELECT sum(v_count) FROM traksense.rollup_1h")


def test_probe_locks_a_handful(year: Database) -> None:
    """The probe, every few seconds, touches today's partition alone, and fails for nobody's lock on another one."""

    async def probed(connection: Any) -> int:
        token = await connection.fetchval("SELECT traksense.dictionary_token()")
        text = probe._write(connection.marker, hold_statement(connection, token), strict=False, marking=True)
        await connection.execute(text)
        number = await locked(connection, "measure%")
        await connection.execute("ROLLBACK")
        return number

    assert maintenance.run_once(year.dsn, "test", probed) <= 5
