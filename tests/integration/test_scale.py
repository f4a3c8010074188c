"""Millions of points through a whole life: stored, aggregated, compressed, asked for, dropped; what each takes.

Skipped unless TRAKSENSE_TEST_POINTS says how many (six million at least: the oldest three days are dropped), since ten
million take minutes and some gigabytes:

    TRAKSENSE_TEST_POINTS=10_000_000 pytest -s tests/integration/test_scale.py

With TRAKSENSE_TEST_TIMESCALE_DSN on TimescaleDB as well. What was measured is in ops/decisions/0032.
"""

from __future__ import annotations

import os
import statistics
import time
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

import pytest
from test_rollup import LEVELS

from traksense.store import lifecycle, maintenance
from traksense.store.policy import Policy

if TYPE_CHECKING:
    from collections.abc import Callable

    import psycopg
    from schema_servers import Database

pytest_plugins = ("schema_fixtures",)

POINTS: Final = int(os.environ.get("TRAKSENSE_TEST_POINTS", "0"))
pytestmark = [
    pytest.mark.timeout(3600),
    pytest.mark.skipif(not POINTS, reason="TRAKSENSE_TEST_POINTS is not set"),
]

SERIES: Final = 1_000
DAY: Final = timedelta(days=1)
OLDEST_DAYS: Final = 38
"""Within the time for which partitions are of a day, and so old that the aggregates' chunks of ten days have ended."""

RAW_BYTES_MAX: Final = 100
COMPRESSED_BYTES_MAX: Final = 6
"""For a point. Source of both: the issue about the store."""

VIEW_COST_MAX: Final = 1.2
VIEW_SLACK_MS: Final = 0.7
"""What a query through the view may take in proportion to the base table; the time is for who am I and what may I see,
which is the same for a query of any size."""

POLICY: Final = Policy(retain_raw=timedelta(days=34), compress_after=2 * DAY, compress_aggregates_after=2 * DAY)

# By series_id % 10: 0-4 temperatures in steps of 0.1, 5 an energy counter, 6 watts, 7 a switch, 8 a state, 9 an
# unrounded sine with noise. A row a minute for each series, ten minutes at once.
FILL: Final = """
INSERT INTO traksense.measure (series_id, ts, v_num, v_bool, v_text)
SELECT s, %(at)s + (m * 60 + s %% 60) * interval '1 s',
    CASE
        WHEN s %% 10 < 5
            THEN round((20 + 5 * sin(e / 86400 * 2 * pi() + s) + 0.15 * (random() - 0.5))::numeric, 1)::float8
        WHEN s %% 10 = 5 THEN round((e / 3600 * 1.7 + s)::numeric, 2)::float8
        WHEN s %% 10 = 6
            THEN round((500 + 300 * sin(e / 3600 * 2 * pi() + s) + 40 * (random() - 0.5))::numeric)::float8
        WHEN s %% 10 = 9 THEN 20 + 5 * sin(e / 86400 * 2 * pi() + s) + 0.1 * (random() - 0.5)
    END,
    CASE WHEN s %% 10 = 7 THEN (floor(e / 1800)::int + s) %% 3 = 0 END,
    CASE WHEN s %% 10 = 8 THEN (ARRAY['RUN', 'RUN', 'STOP', 'FAULT'])[(floor(e / 3600)::int + s) %% 4 + 1] END
FROM generate_series(1, %(series)s) s, generate_series(0, 9) m,
    LATERAL (SELECT extract(epoch FROM %(at)s + m * interval '1 min')::float8) x (e)
ORDER BY 1, 2
"""

# The table of the system that this one replaced, and its index.
FLAT: Final = """
CREATE TABLE public.flat_measure (
    tenant_id text NOT NULL, device_id text NOT NULL, point_id text NOT NULL, ts timestamptz NOT NULL,
    v_num double precision, v_bool boolean, v_text text, unit text, qual smallint DEFAULT 0, meta jsonb
)
"""
FLAT_INDEX: Final = "CREATE INDEX ON public.flat_measure (tenant_id, device_id, point_id, ts DESC)"
FLAT_FILL: Final = """
INSERT INTO public.flat_measure
SELECT tenant_id, device_id, point_id, ts, v_num, v_bool, v_text, unit, 0, '{"fw": "1.2.3", "src": "test"}'
FROM public.ts_measure WHERE ts >= %s AND ts < %s
"""

VIEW: Final = (
    "SELECT ts, v_num FROM ts_measure WHERE device_id = 'device3' AND point_id = 'p4' AND ts >= %s AND ts < %s"
)
BASE: Final = (
    "SELECT ts, v_num FROM traksense.measure JOIN traksense.series USING (series_id) WHERE tenant_id = 'tenant7'"
    " AND device_id = 'device3' AND point_id = 'p4' AND ts >= %s AND ts < %s"
)


class Book:
    """Figures, printed as they come: `pytest -s` shows them."""

    def __init__(self, engine: str) -> None:
        self._engine = engine

    def note(self, what: str, figure: object) -> None:
        """One figure."""
        print(f"{self._engine}: {what}: {figure}", flush=True)

    def timed(self, what: str, action: Callable[[], Any]) -> Any:
        """Do it; note how long it took."""
        started = time.monotonic()
        result = action()
        self.note(what, f"{time.monotonic() - started:.2f} s")
        return result


def size(database: Database, relation: str) -> int:
    """Bytes on disk, indexes and all partitions or chunks included."""
    if not database.server.timescaledb:
        # The tree of a table without partitions is empty.
        tree = (
            "SELECT coalesce(sum(pg_total_relation_size(relid)), pg_total_relation_size(%s::regclass))"
            " FROM pg_partition_tree(%s::regclass)"
        )
        return int(database.value(tree, relation, relation))
    hypertable = database.rows(
        "SELECT format('%%I.%%I', materialization_hypertable_schema, materialization_hypertable_name)"
        " FROM timescaledb_information.continuous_aggregates WHERE format('%%I.%%I', view_schema, view_name) = %s",
        relation,
    )
    return int(database.value("SELECT hypertable_size(%s::regclass)", hypertable[0][0] if hypertable else relation))


def median_ms(connection: psycopg.Connection[Any], query: str, day: datetime) -> float:
    """The time that the client sees, the median of thirty; the first ones warm the cache and are not counted."""
    took = []
    for _ in range(35):
        started = time.perf_counter()
        rows = connection.execute(query.encode(), (day, day + DAY)).fetchall()
        took.append((time.perf_counter() - started) * 1000)
        assert 1440 == len(rows)
    return statistics.median(took[5:])


def compare_queries(database: Database, book: Book, reader: str, day: datetime, state: str) -> None:
    """One device and point of one day, through the view as a tenant and on the base tables."""
    with database.connect(reader) as tenant, database.connect() as owner:
        tenant.execute("SET app.tenant_id = 'tenant7'")
        view, base = median_ms(tenant, VIEW, day), median_ms(owner, BASE, day)
    book.note(f"query of a point and day, {state}", f"view {view:.2f} ms, base {base:.2f} ms")
    assert view <= base * VIEW_COST_MAX + VIEW_SLACK_MS


def with_connection(database: Database, function: Callable[[Any], Any]) -> Any:
    return maintenance.run_once(database.dsn, "test_scale", function)


def compress_all(database: Database, book: Book) -> None:
    with database.connect() as connection:
        while True:
            started = time.monotonic()
            row = connection.execute("SELECT traksense.compress_next()").fetchone()
            if row is None or row[0] is None:
                return
            book.note(f"compress and analyze {row[0]}", f"{time.monotonic() - started:.2f} s")


def measure_flat(database: Database, book: Book, day: datetime) -> None:
    """The first system's flat table with a day of the same points, beside ours."""
    database.run(FLAT)
    if database.server.timescaledb:
        database.run("SELECT create_hypertable('public.flat_measure', 'ts', create_default_indexes => false)")
    database.run(FLAT_INDEX)
    with database.connect() as connection:
        connection.execute(FLAT_FILL, (day, day + DAY))
    rows = int(database.value("SELECT count(*) FROM public.flat_measure"))
    book.note("flat table, raw", f"{size(database, 'public.flat_measure') / rows:.1f} bytes a point")
    if database.server.timescaledb:
        database.run(
            "ALTER TABLE public.flat_measure SET (timescaledb.compress, timescaledb.compress_orderby = 'ts DESC',"
            " timescaledb.compress_segmentby = 'tenant_id, device_id, point_id')",
            "SELECT compress_chunk(c) FROM show_chunks('public.flat_measure') c",
        )
        book.note("flat table, compressed", f"{size(database, 'public.flat_measure') / rows:.1f} bytes a point")
    database.run("DROP TABLE public.flat_measure")


def test_life_of_many_points(migrated: Database) -> None:
    """Plan, apply, compress, query and drop at scale, within the bytes and times that were promised."""
    database, book = migrated, Book(migrated.server.engine)
    timescaledb = database.server.timescaledb
    if timescaledb:
        # Run by hand below, where they can be timed.
        database.run(
            "SELECT alter_job(job_id, scheduled => false) FROM timescaledb_information.jobs WHERE job_id >= 1000"
        )
    begin = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0) - OLDEST_DAYS * DAY
    steps = max(1, round(POINTS / SERIES / 10))
    reader = database.create_member("traksense_readonly")
    database.run(
        "INSERT INTO traksense.tenant SELECT 'tenant' || t FROM generate_series(1, 20) t",
        "INSERT INTO traksense.device SELECT tenant_id, 'site', 'device' || d"
        " FROM traksense.tenant, generate_series(1, 5) d",
        "INSERT INTO traksense.series (tenant_id, site_id, device_id, point_id, unit)"
        " SELECT tenant_id, site_id, device_id, 'p' || p, 'Cel' FROM traksense.device, generate_series(1, 10) p",
        f"SELECT traksense.ensure_partitions('{begin}', now())",
    )

    def fill() -> None:
        with database.connect() as connection:
            for step in range(steps):
                at = begin + step * timedelta(minutes=10)
                connection.execute(FILL.encode(), {"at": at, "series": SERIES})

    book.timed(f"store {steps * SERIES * 10:,} points by INSERT", fill)
    count = int(database.value("SELECT count(*) FROM traksense.measure"))
    assert steps * SERIES * 10 == count
    database.run("ANALYZE")
    raw = size(database, "traksense.measure") / count
    book.note("raw", f"{raw:.1f} bytes a point")
    database.run(f"SELECT traksense.mark_dirty('{begin}', '{begin + steps * timedelta(minutes=10)}')")
    book.timed("aggregate all to 1 m, 5 m and 1 h", database.aggregate)
    aggregated = {level: int(database.value(f"SELECT count(*) FROM traksense.rollup_{level}")) for level in LEVELS}
    for level, rows in aggregated.items():
        each = size(database, f"traksense.rollup_{level}") / rows
        book.note(f"rollup_{level}, {rows:,} rows", f"{each:.1f} bytes a row")
    compare_queries(database, book, reader, begin + 5 * DAY, "raw")
    measure_flat(database, book, begin)

    plan = book.timed("plan", lambda: with_connection(database, lambda c: lifecycle.plan(c, POLICY)))
    book.note("planned", f"compress {plan.compress}, drop {plan.expired}")
    book.timed("apply", lambda: with_connection(database, lambda c: lifecycle.apply(c, POLICY)))
    if timescaledb:
        book.timed("compress all", lambda: compress_all(database, book))
        compressed = size(database, "traksense.measure") / count
        book.note("compressed", f"{compressed:.2f} bytes a point")
        for level, rows in aggregated.items():
            each = size(database, f"traksense.rollup_{level}") / rows
            book.note(f"rollup_{level} compressed", f"{each:.1f} bytes a row")
        compare_queries(database, book, reader, begin + 5 * DAY, "compressed")
        assert compressed <= COMPRESSED_BYTES_MAX
    book.timed("status", lambda: with_connection(database, lambda c: lifecycle.status(c, POLICY)))
    dropped = book.timed("drop a retention window", lambda: database.rows("SELECT traksense.drop_expired()"))
    left = int(database.value("SELECT count(*) FROM traksense.measure"))
    book.note("dropped", f"{len(dropped)} parts, {count - left:,} points; {left:,} are left")

    assert raw <= RAW_BYTES_MAX
    assert len(dropped) == sum(parts.number for parts in plan.expired if parts.relation == "measure") > 0
    assert begin + len(dropped) * DAY <= database.value("SELECT min(ts) FROM traksense.measure")
    # What was aggregated stays.
    assert aggregated == {level: database.value(f"SELECT count(*) FROM traksense.rollup_{level}") for level in LEVELS}
