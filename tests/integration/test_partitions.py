from __future__ import annotations

import asyncio
import threading
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import TYPE_CHECKING

import asyncpg
import psycopg
import pytest
import trio

from traksense.store.partitions import Partitions

if TYPE_CHECKING:
    from schema_servers import Database

pytest_plugins = ("schema_fixtures",)

DAY = timedelta(days=1)
ENSURE = "SELECT lower(r), upper(r) FROM traksense.ensure_partitions(%s, %s) r"
PARTITIONS = (
    "SELECT relname::text FROM pg_inherits JOIN pg_class c ON c.oid = inhrelid"
    " WHERE inhparent = 'traksense.measure'::regclass ORDER BY 1"
)


@pytest.fixture
def partitioned(migrated: Database) -> Database:
    """A fresh database on plain PostgreSQL."""
    if migrated.server.timescaledb:
        pytest.skip("a hypertable makes its own chunks")
    return migrated


def names(database: Database) -> list[str]:
    return [row[0] for row in database.rows(PARTITIONS)]


def midnight(days: int = 0) -> datetime:
    """Midnight UTC, some days from today."""
    return datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0) + days * DAY


def insert(*instants: str) -> str:
    values = ", ".join(f"(1, '{instant}', 1)" for instant in instants)
    return f"INSERT INTO traksense.measure (series_id, ts, v_num) VALUES {values}"


def test_partitions_ahead(partitioned: Database) -> None:
    """A week ahead is a day's partition for today and for each of the next seven days."""
    now = datetime.now(UTC)
    covered = partitioned.rows(ENSURE, now, now + 7 * DAY)

    assert [(midnight(), midnight(8))] == covered
    assert [f"measure_y{midnight(n):%Ym%md%d}" for n in range(8)] == names(partitioned)


def test_partitions_are_made_once(partitioned: Database) -> None:
    """A second call makes nothing and tells the same."""
    first = partitioned.rows(ENSURE, midnight(), midnight(2))
    before = names(partitioned)
    second = partitioned.rows(ENSURE, midnight(), midnight(2))

    assert first == second
    assert before == names(partitioned)


def test_range_ends_before_its_upper_bound(partitioned: Database) -> None:
    """From midnight to midnight is one day, and an instant is a range of its own."""
    assert [(midnight(), midnight(1))] == partitioned.rows(ENSURE, midnight(), midnight(1))
    assert [(midnight(), midnight(2))] == partitioned.rows(ENSURE, midnight(1), midnight(1))


def test_covered_range_includes_neighbours(partitioned: Database) -> None:
    """The range that is returned is all that is covered without a gap, so that a cache learns most from it."""
    partitioned.rows(ENSURE, midnight(-2), midnight())
    partitioned.rows(ENSURE, midnight(3), midnight(4))

    assert [(midnight(-2), midnight(1))] == partitioned.rows(ENSURE, midnight(), midnight(1))
    ranges = [(midnight(n), midnight(n + 1)) for n in (-2, -1, 0, 3)]
    assert ranges == partitioned.rows("SELECT lower(r), upper(r) FROM traksense.partition_ranges() r")


@pytest.mark.parametrize(
    ("days", "length"), [(-39, 10), (-41, 7), (39, 10), (80, 7), (-729, 7), (-733, 4), (729, 7), (733, 4), (-9000, 4)]
)
def test_partitions_go_by_age(partitioned: Database, days: int, length: int) -> None:
    """Within 40 days of now a partition holds a day, within two years a month, beyond a year."""
    partitioned.rows(ENSURE, midnight(days), midnight(days))
    name = f"measure_y{midnight(days):%Ym%md%d}"

    # 10 characters of date like 2026m11d24, 7 like 2026m11, or 4 like 2026.
    assert [name[: len("measure_y") + length]] == names(partitioned)


def test_partition_fills_the_gap_between_its_neighbours(partitioned: Database) -> None:
    """Where a year has partitions of a day already, what is missing before, between and behind them is one each."""
    partitioned.run("UPDATE traksense.setting SET value = '100000 days' WHERE name = 'partition_daily_within'")
    for day in ("2003-05-10", "2003-05-20"):
        partitioned.rows(ENSURE, f"{day} 12:00+00", f"{day} 12:00+00")
    partitioned.run("UPDATE traksense.setting SET value = '40 days' WHERE name = 'partition_daily_within'")
    for day in ("2003-05-12", "2003-01-01", "2003-05-19", "2003-12-31", "2004-01-01"):
        partitioned.rows(ENSURE, f"{day} 00:00+00", f"{day} 00:00+00")

    days = ["measure_y2003m05d10", "measure_y2003m05d20"]
    assert ["measure_y2003", "measure_y2003_2", "measure_y2003_3", *days, "measure_y2004"] == names(partitioned)
    ends = ["2003-01-01", "2003-05-10", "2003-05-11", "2003-05-20", "2003-05-21", "2004-01-01", "2005-01-01"]
    borders = [(f"{begin} 00:00:00", f"{end} 00:00:00") for begin, end in pairwise(ends)]
    assert borders == partitioned.rows(
        "SELECT (lower(r) AT TIME ZONE 'UTC')::text, (upper(r) AT TIME ZONE 'UTC')::text"
        " FROM traksense.partition_ranges() r"
    )


def test_one_call_for_all_instants(partitioned: Database) -> None:
    """However many instants a batch has, a call makes sixteen partitions at most, and tells of all that is covered."""
    call = "SELECT lower(r), upper(r) FROM traksense.ensure_partitions(%s::timestamptz[]) r"
    days = [datetime(2000, 1, 1, tzinfo=UTC) + n * DAY for n in range(9600)]
    counts: list[int] = []
    while not counts or counts[-1] == 16 * len(counts):
        covered = partitioned.rows(call, days)
        counts.append(len(names(partitioned)))

    assert [(days[0], covered[0][1])] == covered
    assert days[-1] < covered[0][1]
    assert len(counts) == counts[-1] // 16 + 1
    assert counts[-1] <= 27 + 25 + 81


@pytest.mark.parametrize("instants", [["infinity"], ["2026-01-01", None]])
def test_unusable_instant_is_refused(partitioned: Database, instants: list[str | None]) -> None:
    """What is no point in time has no partition."""
    with pytest.raises(psycopg.errors.InvalidParameterValue, match="not an instant"):
        partitioned.rows("SELECT traksense.ensure_partitions(%s::timestamptz[])", instants)


async def test_cache_learns_everything_from_one_call(partitioned: Database) -> None:
    """What is covered is asked once: then instants anywhere in it are known to have a place."""
    partitioned.run("SELECT traksense.ensure_partitions('2010-01-01', '2014-01-01')")
    partitions = Partitions()
    days = [datetime(2000 + n, 6, 1, tzinfo=UTC) for n in range(0, 10, 3)]

    async def ensure() -> None:
        connection = await asyncpg.connect(partitioned.dsn)
        try:
            await partitions.ensure(connection, days)
        finally:
            await connection.close()

    await trio.to_thread.run_sync(asyncio.run, ensure())

    years = [2000, 2003, 2006, 2009, 2010, 2011, 2012, 2013]
    assert years == [year for year in range(1999, 2020) if partitions.covers(*(2 * [datetime(year, 3, 1, tzinfo=UTC)]))]
    assert partitions.covers(datetime(2009, 1, 1, tzinfo=UTC), datetime(2013, 12, 31, tzinfo=UTC))
    assert not partitions.covers(datetime(2006, 1, 1, tzinfo=UTC), datetime(2007, 1, 1, tzinfo=UTC))


def test_borders_do_not_depend_on_the_session(partitioned: Database) -> None:
    """Borders are UTC whatever time zone and date style the session has."""
    with partitioned.connect() as connection:
        connection.execute("SET TimeZone = 'Pacific/Auckland'; SET DateStyle = 'SQL, DMY'")
        connection.execute("SELECT traksense.ensure_partitions('2016-03-04 00:30+00', '2016-03-04 00:30+00')")
        rows = connection.execute(
            "SELECT lower(r) = '2016-01-01 00:00+00', upper(r) = '2017-01-01 00:00+00'"
            " FROM traksense.partition_ranges() r"
        ).fetchall()

    assert [(True, True)] == rows
    assert ["measure_y2016"] == names(partitioned)


def test_partition_has_the_parents_key(partitioned: Database) -> None:
    """A partition is attached with the primary key that keeps rows unique."""
    partitioned.rows(ENSURE, midnight(), midnight())
    partitioned.run(insert(midnight().isoformat()))

    with pytest.raises(psycopg.errors.UniqueViolation):
        partitioned.run(insert(midnight().isoformat()))


def test_every_accepted_instant_can_be_stored(migrated: Database) -> None:
    """A point of any date from 2000 to tomorrow has a place, in a partition a year, 25 months and 81 days at most."""
    if migrated.server.timescaledb:
        return
    with migrated.connect() as connection:
        connection.execute(
            "SELECT traksense.ensure_partitions(t, t) FROM generate_series("
            "timestamptz '2000-01-01 00:00+00', now() + interval '1 day', interval '1 day') t"
        )
        connection.execute(
            "INSERT INTO traksense.measure (series_id, ts, v_num) SELECT 1, t, 1 FROM generate_series("
            "timestamptz '2000-01-01 00:00+00', now() + interval '1 day', interval '7 hours') t"
        )
    made = [name.removeprefix("measure_y") for name in names(migrated)]

    assert len([name for name in made if "m" not in name]) <= datetime.now(UTC).year - 2000
    assert len([name for name in made if "m" in name and "d" not in name]) <= 25
    assert len([name for name in made if "d" in name]) <= 81


def test_hypertable_stores_any_instant(migrated: Database) -> None:
    """On TimescaleDB the functions tell of one range without bounds, and nothing need be made."""
    if not migrated.server.timescaledb:
        pytest.skip("plain PostgreSQL")
    migrated.run(insert("2000-01-01 00:00+00", datetime.now(UTC).isoformat()))

    assert [(None, None)] == migrated.rows("SELECT lower(r), upper(r) FROM traksense.partition_ranges() r")
    assert [(None, None)] == migrated.rows(ENSURE, midnight(), midnight(7))


@pytest.mark.parametrize(
    ("first", "last"),
    [
        ("-infinity", "2026-01-01"),
        ("2026-01-01", "infinity"),
        ("2026-01-02", "2026-01-01"),
        (None, "2026-01-01"),
    ],
)
def test_unusable_range_is_refused(partitioned: Database, first: str | None, last: str) -> None:
    """A range without an end, or backwards, is refused rather than filled for ever."""
    with pytest.raises(psycopg.errors.InvalidParameterValue, match="not a finite range"):
        partitioned.rows(ENSURE, first, last)

    assert [] == names(partitioned)


def test_open_insert_neither_blocks_nor_is_blocked(partitioned: Database) -> None:
    """A transaction that has written to the table, by INSERT or COPY, does not notice a partition being made."""
    partitioned.rows(ENSURE, midnight(), midnight())
    with partitioned.connect() as writer, partitioned.connect() as maker:
        for connection in (writer, maker):
            connection.execute("SET lock_timeout = '2s'")
        with writer.transaction():
            writer.execute(insert(midnight().isoformat()))
            with maker.transaction():
                maker.execute(ENSURE, (midnight(1), midnight(3)))
                # The maker has not committed yet: its locks are all there.
                with (
                    writer.cursor() as cursor,
                    cursor.copy("COPY traksense.measure (series_id, ts, v_num) FROM STDIN") as copy,
                ):
                    copy.write_row((1, midnight() + timedelta(hours=1), 1.0))
                writer.execute("SELECT count(*) FROM traksense.measure")
            writer.execute(insert(midnight(2).isoformat()))

    assert 3 == partitioned.value("SELECT count(*) FROM traksense.measure")


def test_several_makers_at_once(partitioned: Database) -> None:
    """Replicas that need the same partitions at once all succeed and make each once."""
    barrier = threading.Barrier(6)
    results: list[object] = []

    def make() -> None:
        with partitioned.connect() as connection:
            barrier.wait(10)
            try:
                results.append(connection.execute(ENSURE, (midnight(-3), midnight(3))).fetchall())
            except psycopg.Error as error:
                results.append(error)

    threads = [threading.Thread(target=make) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)

    assert [[(midnight(-3), midnight(3))]] * 6 == results
    assert 6 == len(names(partitioned))


def test_makers_that_have_written(partitioned: Database) -> None:
    """Transactions that wrote to the table and then both need a partition do not deadlock."""
    partitioned.rows(ENSURE, midnight(), midnight())
    barrier = threading.Barrier(2)
    results: list[object] = []

    def make(hour: int) -> None:
        with partitioned.connect() as connection:
            try:
                with connection.transaction():
                    connection.execute(insert((midnight() + timedelta(hours=hour)).isoformat()))
                    barrier.wait(10)
                    results.append(connection.execute(ENSURE, (midnight(5), midnight(6))).fetchall())
            except psycopg.Error as error:
                results.append(error)

    threads = [threading.Thread(target=make, args=(hour,)) for hour in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)

    assert [[(midnight(5), midnight(6))]] * 2 == results


def test_role_without_rights_can_be_let_in(migrated: Database) -> None:
    """A role that owns nothing can make partitions once it may call the function, and not before."""
    dsn = migrated.create_role("ingest")
    role = dsn.split("//")[1].split(":")[0]
    migrated.run(f"GRANT USAGE ON SCHEMA traksense TO {role}")
    with pytest.raises(psycopg.errors.InsufficientPrivilege, match="permission denied for function"):
        migrated.rows(ENSURE, midnight(), midnight(), dsn=dsn)
    migrated.run(f"GRANT EXECUTE ON FUNCTION traksense.ensure_partitions(timestamptz, timestamptz) TO {role}")

    assert 1 == len(migrated.rows(ENSURE, midnight(), midnight(), dsn=dsn))
