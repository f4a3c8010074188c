"""The stored aggregates equal a direct computation over the raw points, whatever arrives in whatever order."""

from __future__ import annotations

import asyncio
import math
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import asyncpg
import psycopg
import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.contract.test_store import open_postgres_store
from traksense.model import Delivery, Kind, Message, Point, Route, Telemetry
from traksense.store.packing import PackedRows, pack_head, pack_row
from traksense.store.rollup import PIECE, RollUp, marks

if TYPE_CHECKING:
    from collections.abc import Iterator

    from schema_servers import Database

pytest_plugins = ("schema_fixtures",)

NOON = datetime(2026, 11, 20, 12, tzinfo=UTC)
LEVELS = {"1m": "1 minute", "5m": "5 minutes", "1h": "1 hour"}


def direct(database: Database, level: str) -> list[Any]:
    return database.rows(
        f"SELECT date_bin('{LEVELS[level]}', ts, 'epoch'), tenant_id, device_id, point_id, unit,"
        " avg(v_num), min(v_num), max(v_num), count(*) FROM ts_measure WHERE v_num IS NOT NULL"
        " GROUP BY 1, 2, 3, 4, 5 ORDER BY 2, 3, 4, 5, 1"
    )


def stored(database: Database, level: str) -> list[Any]:
    return database.rows(
        "SELECT bucket, tenant_id, device_id, point_id, unit, v_avg, v_min, v_max, v_count"
        f" FROM ts_measure_{level} ORDER BY 2, 3, 4, 5, 1"
    )


def check(database: Database) -> None:
    for level in LEVELS:
        expected, actual = direct(database, level), stored(database, level)
        assert [row[:5] + row[6:] for row in expected] == [row[:5] + row[6:] for row in actual], level
        assert [row[5] for row in expected] == pytest.approx([row[5] for row in actual])


def compress(database: Database) -> None:
    """Put all that there is, raw and aggregated, into the columnstore, whatever its age: what comes next is late."""
    if database.server.timescaledb:
        relations = ("measure", *(f"rollup_{level}" for level in LEVELS))
        database.run(*(f"SELECT compress_chunk(c, true) FROM show_chunks('traksense.{name}') c" for name in relations))


def message(tenant: str, device: str, ts: datetime, values: list[float | str], unit: str | None) -> Delivery:
    route = Route(tenant, "site", device, Kind.TELEM)
    points = [Point(f"p{n}", v, "num" if isinstance(v, float) else "text", unit) for n, v in enumerate(values)]
    return Delivery(
        Message(f"traksense/{route.path}/telem", b"{}", 1, 1, 1, redelivered=False, received_at=NOON, route=route),
        [Telemetry(ts, points)],
        len(points),
    )


# Near each other and at the borders of buckets, in a few clusters hours, days and years apart.
instants = st.builds(
    lambda base, offset: NOON + base + offset,
    st.sampled_from([timedelta(), timedelta(hours=-3), timedelta(days=-2), timedelta(days=-70), timedelta(days=-2000)]),
    st.one_of(
        st.sampled_from([timedelta(), timedelta(microseconds=-1), timedelta(minutes=5), timedelta(hours=1)]),
        st.integers(-7_200_000, 7_200_000).map(lambda n: timedelta(milliseconds=n)),
    ),
)
messages = st.builds(
    message,
    st.sampled_from(["acme", "bravo"]),
    st.sampled_from(["d1", "d2"]),
    instants,
    st.lists(st.one_of(st.floats(-1e6, 1e6), st.just("text")), min_size=1, max_size=3),
    st.sampled_from([None, "Cel"]),
)
batches = st.lists(st.lists(messages, min_size=1, max_size=12), min_size=1, max_size=6)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(batches, st.integers(0, 5), st.booleans())
def test_aggregates_equal_direct_computation(
    schema_server_module: Database, arrivals: list[list[Delivery]], pause: int, compressed: bool
) -> None:
    """Late, duplicate and out-of-order points, in any batches, with roll-ups and compression in between: the aggregates
    are right.
    """

    async def arrive() -> None:
        async with open_postgres_store(schema_server_module.dsn) as store:
            for number, batch in enumerate(arrivals):
                await store.write(batch)
                if number == pause:
                    await trio.to_thread.run_sync(schema_server_module.aggregate)
                    if compressed:
                        await trio.to_thread.run_sync(compress, schema_server_module)
            await store.write(arrivals[0])  # redelivered

    trio.run(arrive)
    schema_server_module.aggregate()

    check(schema_server_module)


def test_upgrade_of_what_was_there(migrated: Database) -> None:
    """Points that were written without the service are aggregated once their range is marked."""
    series = migrated.add_series("acme", "device", "point")
    migrated.run(
        "SELECT traksense.ensure_partitions('2026-01-01', '2026-01-04')",
        f"INSERT INTO traksense.measure (series_id, ts, v_num) SELECT {series}, t, extract(epoch FROM t)"
        " FROM generate_series(timestamptz '2026-01-01 00:00Z', '2026-01-03 23:59Z', interval '7 min') t",
        "SELECT traksense.mark_dirty('2026-01-01 00:00Z', '2026-01-04 00:00Z')",
    )
    migrated.aggregate()

    check(migrated)


@pytest.fixture
def plain(migrated: Database) -> Database:
    """A fresh database on plain PostgreSQL."""
    if migrated.server.timescaledb:
        pytest.skip("TimescaleDB keeps its own account of what has changed")
    return migrated


def test_one_roll_up_at_a_time(plain: Database) -> None:
    """Of two sessions one works, and the other is told so at once."""
    with psycopg.connect(plain.dsn) as one, psycopg.connect(plain.dsn) as other:
        assert (0,) == one.execute("SELECT traksense.roll_up()").fetchone()
        assert (-1,) == other.execute("SELECT traksense.roll_up()").fetchone()
        one.commit()
        assert (0,) == other.execute("SELECT traksense.roll_up()").fetchone()


def test_write_under_way_is_not_forgotten(plain: Database) -> None:
    """Points whose transaction commits while a roll-up runs are in the next one."""
    series = plain.add_series("acme", "device", "point")
    plain.run("SELECT traksense.ensure_partitions('2026-01-01', '2026-01-02')")
    insert = f"INSERT INTO traksense.measure (series_id, ts, v_num) VALUES ({series}, '2026-01-01 00:00:%sZ', 1)"
    mark = "SELECT traksense.mark_dirty('2026-01-01 00:00Z', '2026-01-01 00:01Z')"
    with psycopg.connect(plain.dsn) as late:
        late.execute((insert % "01").encode())
        late.execute(mark.encode())
        plain.run(insert % "02", mark)
        plain.aggregate()
        assert [1] == [row[-1] for row in stored(plain, "1m")]
        late.commit()
    plain.aggregate()

    assert [2] == [row[-1] for row in stored(plain, "1m")]


def test_dropped_raw_points_leave_their_aggregates(plain: Database) -> None:
    """What has been aggregated stays when its raw points are dropped, even if a straggler makes a partition again."""
    series = plain.add_series("acme", "device", "point")
    plain.run(
        "SELECT traksense.ensure_partitions('2026-01-01', '2026-01-02')",
        f"INSERT INTO traksense.measure (series_id, ts, v_num)"
        f" SELECT {series}, '2026-01-01'::timestamptz + n * interval '1 s', n"
        " FROM generate_series(0, 9) n",
        "SELECT traksense.mark_dirty('2026-01-01 00:00Z', '2026-01-02 00:00Z')",
    )
    plain.aggregate()
    before = stored(plain, "1h")
    plain.run("UPDATE traksense.setting SET value = '30 days' WHERE name = 'retain_raw'")
    assert 1 == len(plain.rows("SELECT traksense.drop_expired()"))
    plain.run(
        "SELECT traksense.ensure_partitions('2026-01-01', '2026-01-02')",
        f"INSERT INTO traksense.measure (series_id, ts, v_num) VALUES ({series}, '2026-01-01 00:00:30Z', 77)",
        "SELECT traksense.mark_dirty('2026-01-01 00:00Z', '2026-01-02 00:00Z')",
    )
    plain.aggregate()

    assert before == stored(plain, "1h")
    assert 10 == before[0][-1]


def test_raw_points_are_not_dropped_before_they_are_aggregated(plain: Database) -> None:
    """What has expired stays for as long as a mark on it is to be worked off."""
    plain.run(
        "SELECT traksense.ensure_partitions('2026-01-01', '2026-01-02')",
        "UPDATE traksense.setting SET value = '30 days' WHERE name = 'retain_raw'",
        "SELECT traksense.mark_dirty('2026-01-01 00:00Z', '2026-01-02 00:00Z')",
    )

    assert [] == plain.rows("SELECT traksense.drop_expired()")
    plain.aggregate()
    assert 1 == len(plain.rows("SELECT traksense.drop_expired()"))


@contextmanager
def marks_stay(database: Database) -> Iterator[None]:
    """Nobody works marks off for the duration."""
    with database.connect() as session, session.transaction():
        session.execute("SELECT FROM traksense.work WHERE name = 'aggregate' FOR UPDATE")
        yield


def row(series: int, ts: datetime) -> PackedRows:
    packed = pack_row(pack_head(series), ts, 1.0, None, None)
    return PackedRows(packed, 1, len(packed), ts, 0)


def test_marks_of_an_hour_are_one() -> None:
    """A batch of one hour makes one mark, of the series that are in it."""
    rows = [row(n % 7, NOON + timedelta(seconds=n)) for n in range(600)]

    [(ids, low, high)] = marks(rows)
    assert ([*range(7)], NOON, NOON + timedelta(seconds=599)) == (sorted(ids or ()), low, high)


def test_marks_of_late_points_are_their_own() -> None:
    """A device that was away marks its own series, hour by hour, and so does the rest of the batch."""
    late, later = NOON - timedelta(minutes=1), NOON - timedelta(days=3)
    rows = [row(1, NOON), row(2, NOON), row(7, late), row(7, later)]

    made = [(sorted(ids or ()), low, high) for ids, low, high in marks(rows)]
    assert [([1, 2], NOON, NOON), ([7], late, late), ([7], later, later)] == made


def test_much_of_a_fleet_marks_all_of_it() -> None:
    """Where most series are written, they need no names; in a large fleet, and in a small batch, they have them."""
    rows = [row(n, NOON) for n in range(300)]

    assert [(None, NOON, NOON)] == marks(rows, 1_200)
    history = [row(7, NOON + timedelta(seconds=n)) for n in range(300)]
    named = ((rows, 1_201.0, 300), (rows, math.inf, 300), (rows[:255], 255.0, 255), (history, 2.0, 1))
    for written, fleet, number in named:
        [(ids, _, _)] = marks(written, fleet)
        assert ids is not None
        assert number == len(ids)


def test_marks_of_all_series_fold(plain: Database) -> None:
    """Batches that lie a second apart are one piece, minutes of several hours few; whatever is left is marked again."""
    series = [plain.add_series("acme", "device", f"p{n}") for n in range(10)]
    plain.run(
        "SELECT traksense.ensure_partitions('2026-11-20', '2026-11-21')",
        *(
            f"INSERT INTO traksense.measure (series_id, ts, v_num) SELECT {one}, t, 1"
            " FROM generate_series('2026-11-20 00:00Z', '2026-11-20 23:59:59Z', interval '10 s') AS t"
            for one in series
        ),
        "INSERT INTO traksense.dirty (low, high)"
        " SELECT t, t FROM generate_series('2026-11-20 12:00Z', '2026-11-20 12:29:50Z', interval '10 s') AS t",
    )
    assert [180, 0] == [plain.value("SELECT traksense.roll_up()") for _ in range(2)]
    assert 30 * 10 == plain.value("SELECT count(*) FROM traksense.rollup_1m")

    plain.run(
        "INSERT INTO traksense.dirty (low, high) SELECT t, t + interval '10 s'"
        " FROM generate_series('2026-11-20 00:00Z', '2026-11-20 23:00Z', interval '1 hour') AS t"
    )
    pieces = 0
    while plain.value("SELECT traksense.roll_up(100)"):  # ten hours of ten series
        pieces += 1
    assert pieces == 3
    assert 24 * 10 == plain.value("SELECT count(*) FROM traksense.rollup_1h")
    assert (23 + 30) * 10 == plain.value("SELECT count(*) FROM traksense.rollup_1m")


@pytest.mark.parametrize("others", [0, 2000])
def test_service_knows_how_large_the_fleet_is(plain: Database, others: int) -> None:
    """A batch of most of the fleet marks all of it; one that is a small part names its series; either is computed."""
    plain.run(
        "INSERT INTO traksense.tenant VALUES ('acme')",
        "INSERT INTO traksense.device VALUES ('acme', 'site', 'other')",
        "INSERT INTO traksense.series (tenant_id, site_id, device_id, point_id)"
        f" SELECT 'acme', 'site', 'other', 'p' || n FROM generate_series(1, {others}) n",
    )
    values: list[float | str] = [float(n) for n in range(300)]

    async def arrive() -> None:
        async with open_postgres_store(plain.dsn) as store:
            await store._call(store.upkeep.round)
            await store.write([message("acme", "device", NOON, values, None)])

    with marks_stay(plain):
        trio.run(arrive)

    assert [(300 if others else None,)] == plain.rows("SELECT cardinality(series) FROM traksense.dirty")
    plain.aggregate()
    assert [(300, 300)] == plain.rows("SELECT sum(v_count), count(DISTINCT series_id) FROM traksense.rollup_1h")


def test_old_message_marks_its_own_series(plain: Database) -> None:
    """A single old message is the newest of its batch, and late all the same: nobody else's buckets are marked."""
    plain.add_series("acme", "other", "point")

    async def arrive() -> None:
        async with open_postgres_store(plain.dsn) as store:
            for days in (300, 200, 100, 0):
                await store.write([message("acme", "device", NOON - timedelta(days=days), [1.0], None)])

    with marks_stay(plain):
        trio.run(arrive)

    [(series,)] = plain.rows("SELECT series_id FROM traksense.series WHERE device_id = 'device'")
    assert [([series],)] * 4 == plain.rows("SELECT series FROM traksense.dirty")


FLEET = 20_000
HISTORY_DAYS = 350


@pytest.fixture
def history(plain: Database) -> int:
    """A fleet that reports now, and a device that has brought a message for each day of its history since; returns the
    number of that device's series.
    """
    plain.run(
        "INSERT INTO traksense.tenant VALUES ('acme')",
        "INSERT INTO traksense.device SELECT 'acme', 'site', 'd' || n FROM generate_series(1, 200) n",
        "INSERT INTO traksense.series (tenant_id, site_id, device_id, point_id)"
        f" SELECT 'acme', 'site', 'd' || n % 200 + 1, 'p' || n FROM generate_series(1, {FLEET}) n",
        "SELECT traksense.ensure_partitions(now(), now())",
        "INSERT INTO traksense.measure (series_id, ts, v_num) SELECT series_id, now(), 1 FROM traksense.series",
        "INSERT INTO traksense.dirty (series, low, high)"
        " SELECT array_agg(series_id), now(), now() FROM traksense.series",
    )
    now = datetime.now(UTC)

    async def arrive() -> None:
        async with open_postgres_store(plain.dsn) as store:
            for day in range(1, HISTORY_DAYS + 1):
                await store.write([message("acme", "old", now - timedelta(days=day), [1.0], None)])

    with marks_stay(plain):
        trio.run(arrive)
    series: int = plain.value("SELECT series_id FROM traksense.series WHERE device_id = 'old'")
    return series


def test_history_of_one_holds_up_nobody(plain: Database, history: int) -> None:
    """What the fleet reports now is in the aggregates after the first piece, whatever history waits; and the history
    costs what it is, not the fleet for each day of it.
    """
    roll_up = "SELECT traksense.roll_up()"
    marked = plain.rows("SELECT DISTINCT unnest(series) FROM traksense.dirty WHERE high < now() - interval '12 hours'")
    assert [(history,)] == marked

    while plain.value(roll_up) < 0:  # the session of the fixture still has its lock
        pass
    assert FLEET == plain.value("SELECT sum(v_count) FROM ts_measure_1h WHERE device_id <> 'old'")
    waiting = plain.value("SELECT count(*) FROM traksense.dirty")
    assert 300 < waiting <= HISTORY_DAYS

    pieces = []
    while (worked := plain.value(roll_up)) > 0:
        pieces.append(worked)
    assert waiting == sum(pieces)
    assert len(pieces) <= HISTORY_DAYS // 31 + 1
    assert HISTORY_DAYS == plain.value("SELECT sum(v_count) FROM ts_measure_1h WHERE device_id = 'old'")


@pytest.mark.parametrize("series", ["NULL::int[]", "(SELECT array_agg(series_id) FROM traksense.series)"])
def test_pieces_are_bounded_and_kept(plain: Database, series: str) -> None:
    """A mark of many series and hours is worked off in pieces of the size asked for, the newest hours first."""
    for n in range(5):
        plain.add_series("acme", "device", f"p{n}")
    plain.run(
        "SELECT traksense.ensure_partitions('2026-01-01', '2026-01-03')",
        "INSERT INTO traksense.measure (series_id, ts, v_num) SELECT series_id, t, 1 FROM traksense.series,"
        " generate_series(timestamptz '2026-01-01 00:00Z', '2026-01-02 23:30Z', interval '30 min') t",
        "INSERT INTO traksense.dirty (series, low, high)"
        f" SELECT {series}, t, t + interval '59 min' FROM generate_series("
        " timestamptz '2026-01-01 00:00Z', '2026-01-02 23:00Z', interval '1 hour') t",
    )
    computed = "SELECT count(*), min(bucket) FROM traksense.rollup_1h"
    previous, oldest = 0, None
    while plain.value("SELECT traksense.roll_up(10)") > 0:
        [(number, first)] = plain.rows(computed)
        assert number - previous <= 10
        assert oldest is None or first <= oldest
        previous, oldest = number, first

    assert 5 * 48 == previous
    check(plain)


def test_time_ahead_of_the_clock_comes_last(plain: Database) -> None:
    """Devices whose clocks are ahead are aggregated after those whose clocks are right."""
    series = plain.add_series("acme", "device", "point")
    times = ("now()", "now() + interval '3 days'")
    plain.run(
        "SELECT traksense.ensure_partitions(now(), now() + interval '4 days')",
        *(f"INSERT INTO traksense.measure (series_id, ts, v_num) VALUES ({series}, {time}, 1)" for time in times),
        *(f"INSERT INTO traksense.dirty (series, low, high) VALUES ('{{{series}}}', {time}, {time})" for time in times),
        "SELECT traksense.roll_up(1)",
    )

    assert 0 == plain.value("SELECT count(*) FROM traksense.rollup_1h WHERE bucket > now()")
    assert 1 == plain.value("SELECT count(*) FROM traksense.rollup_1h")
    plain.aggregate()
    assert 2 == plain.value("SELECT count(*) FROM traksense.rollup_1h")


def test_marks_of_older_releases_are_worked_off(plain: Database) -> None:
    """A service that has not been upgraded yet marks as it did: one series, or all of them."""
    series = plain.add_series("acme", "device", "point")
    plain.run(
        "SELECT traksense.ensure_partitions('2026-01-01', '2026-01-03')",
        f"INSERT INTO traksense.measure (series_id, ts, v_num) VALUES ({series}, '2026-01-01 12:00Z', 1),"
        f" ({series}, '2026-01-02 12:00Z', 2)",
        f"INSERT INTO traksense.dirty (series_id, low, high) VALUES"
        f" ({series}, '2026-01-01 12:00Z', '2026-01-01 12:00Z'), (NULL, '2026-01-02 12:00Z', '2026-01-02 12:00Z')",
    )
    plain.aggregate()

    check(plain)
    assert 2 == plain.value("SELECT count(*) FROM traksense.rollup_1h")


def test_round_leaves_what_is_marked_meanwhile(plain: Database) -> None:
    """It computes what was marked before it began, and what a clock that was ahead has marked; the rest waits."""
    series = plain.add_series("acme", "device", "point")
    plain.run(
        "SELECT traksense.ensure_partitions(now(), now())",
        f"INSERT INTO traksense.measure (series_id, ts, v_num) VALUES ({series}, now(), 1)",
        "INSERT INTO traksense.dirty (series, low, high, marked_at)"
        f" SELECT ARRAY[{series}], now(), now(), now() + at"
        " FROM unnest('{-1 min, -1 sec, 1 day}'::interval[]) AS at",
    )

    before = "SELECT traksense.roll_up_until(20000, now() - interval '30 seconds')"
    assert [2, 0] == [plain.value(before), plain.value(before)]
    assert 1 == plain.value("SELECT count(*) FROM traksense.dirty")
    plain.aggregate()
    assert 0 == plain.value("SELECT count(*) FROM traksense.dirty")


class Overloaded:
    """A database that is too slow for pieces of more than a thousand; remembers the sizes asked for."""

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.left = 5

    async def fetchval(self, _statement: str, size: int | None = None, _until: datetime | None = None) -> object:
        if size is None:
            return NOON
        self.sizes.append(size)
        if size > 1_000:
            raise asyncpg.QueryCanceledError("canceling statement due to statement timeout")
        self.left -= 1
        return max(0, self.left)


def test_failed_piece_goes_on_smaller() -> None:
    """A piece that runs into a time-out is tried again smaller, until it works; then they grow again."""
    database, roll_up = Overloaded(), RollUp()

    assert 4 + 3 + 2 + 1 == asyncio.run(roll_up.run(database))
    assert [PIECE, PIECE // 4, PIECE // 16, PIECE // 64] == database.sizes[:4]
    assert max(database.sizes[4:]) <= 2 * 1_000
    assert roll_up.piece <= 1_000


@given(
    st.lists(st.tuples(st.integers(1, 300), instants), min_size=1),
    st.sampled_from([1, 300]),
    st.sampled_from([3, math.inf]),
)
def test_marks_cover_every_row(points: list[tuple[int, datetime]], repeat: int, fleet: float) -> None:
    """Whatever a batch holds, each of its rows is in a mark for its series."""
    made = marks([row(series, ts) for series, ts in points * repeat], fleet)

    for series, ts in points:
        assert any((marked is None or series in marked) and low <= ts <= high for marked, low, high in made)
