"""The stored aggregates equal a direct computation over the raw points, whatever arrives in whatever order."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.contract.test_store import open_postgres_store
from traksense.model import Delivery, Kind, Message, Point, Route, Telemetry
from traksense.store.packing import PackedRows, pack_head, pack_row
from traksense.store.rollup import RECENT, SERIES_MAX, marks

if TYPE_CHECKING:
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
@given(batches, st.integers(0, 5))
def test_aggregates_equal_direct_computation(
    schema_server_module: Database, arrivals: list[list[Delivery]], pause: int
) -> None:
    """Late, duplicate and out-of-order points, in any batches, with roll-ups in between: the aggregates are right."""

    async def arrive() -> None:
        async with open_postgres_store(schema_server_module.dsn) as store:
            for number, batch in enumerate(arrivals):
                await store.write(batch)
                if number == pause:
                    await trio.to_thread.run_sync(schema_server_module.aggregate)
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


def row(series: int, ts: datetime) -> PackedRows:
    packed = pack_row(pack_head(series), ts, 1.0, None, None)
    return PackedRows(packed, 1, len(packed), ts, 0)


def test_marks_of_recent_points_are_one() -> None:
    """A batch without late points makes one mark for all series."""
    rows = [row(n, NOON - timedelta(seconds=n)) for n in range(600)]

    assert [(None, NOON - timedelta(seconds=599), NOON)] == marks(rows)


def test_marks_of_a_few_late_series_are_their_own() -> None:
    """A device that was away marks its own series, hour by hour; the rest of the batch is marked as ever."""
    rows = [row(1, NOON), row(7, NOON - RECENT - timedelta(minutes=1)), row(7, NOON - timedelta(days=3))]

    expected = [(None, NOON, NOON), *((7, r.ts, r.ts) for r in rows[1:])]
    assert expected == marks(rows)


def test_marks_of_many_late_series_are_by_hour() -> None:
    """A fleet that was away marks hours of all series, not each series."""
    late = NOON - timedelta(hours=5)
    rows = [row(0, NOON), *(row(n, late + timedelta(seconds=n)) for n in range(SERIES_MAX + 1))]

    assert [(None, NOON, NOON), (None, late, late + timedelta(seconds=SERIES_MAX))] == marks(rows)


@given(st.lists(st.tuples(st.integers(1, 3), instants), min_size=1))
def test_marks_cover_every_row(points: list[tuple[int, datetime]]) -> None:
    """Whatever a batch holds, each of its rows is in a mark for its series or for all."""
    made = marks([row(series, ts) for series, ts in points])

    for series, ts in points:
        assert any(marked in (None, series) and low <= ts <= high for marked, low, high in made)
