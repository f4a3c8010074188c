"""Operators change the dictionary under a running service: what is acknowledged stays readable, under its own name."""

from __future__ import annotations

import itertools
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_restored_database import write_when_possible
from trio_asyncio import aio_as_trio

from tests.contract.test_store import open_postgres_store
from tests.patience import HANG_SECONDS
from traksense.model import Delivery, Kind, Message, Point, Reason, Rejection, Route, Telemetry

if TYPE_CHECKING:
    from schema_servers import Database

pytest_plugins = ("schema_fixtures",)

NOON = datetime(2026, 11, 20, 12, tzinfo=UTC)

ALL_GONE = "TRUNCATE traksense.measure, traksense.series, traksense.device, traksense.meta"

SQL_OF_A1 = """
DELETE FROM traksense.measure m USING traksense.series s WHERE s.series_id = m.series_id AND s.device_id = 'dev1';
DELETE FROM traksense.series WHERE device_id = 'dev1';
DELETE FROM traksense.device WHERE device_id = 'dev1'
"""


def delivery(
    value: float, *, device: str = "dev1", tenant: str = "acme", point: str = "p", meta: bytes | None = None
) -> Delivery:
    """A message with one point; its value is its half minute, so that each is another row."""
    route = Route(tenant, "site", device, Kind.TELEM)
    message = Message(f"traksense/{route.path}/telem", b"{}", 1, 1, 1, False, NOON, route)
    return Delivery(message, [Telemetry(NOON + timedelta(seconds=31 * value), [Point(point, value)], meta)], 1)


def stored(database: str) -> list[tuple[Any, ...]]:
    """What a user reads, and how many rows nobody can read."""
    with psycopg.connect(database) as connection:
        rows = connection.execute("SELECT device_id, v_num FROM public.ts_measure ORDER BY 1, 2").fetchall()
        ((plain,),) = connection.execute("SELECT traksense.timescaledb_schema() IS NULL").fetchall()
        # TimescaleDB's next refresh takes the aggregates of what was deleted away.
        for table in ("measure", "rollup_1m", "rollup_5m", "rollup_1h") if plain else ("measure",):
            ((hidden,),) = connection.execute(
                f"SELECT count(*) FROM traksense.{table} m WHERE NOT EXISTS"
                " (SELECT FROM traksense.series s WHERE s.series_id = m.series_id)"
            ).fetchall()
            assert (table, 0) == (table, hidden)
    return rows


async def act(database: str, *statements: str) -> None:
    """What an operator does meanwhile, in a thread: what he waits for may be waiting for us."""
    await trio.to_thread.run_sync(run, database, *statements)


def run(database: str, *statements: str) -> None:
    with psycopg.connect(database, autocommit=True) as connection:
        for statement in statements:
            connection.execute(statement.encode())


@pytest.mark.parametrize(
    ("statements", "left"),
    [
        # One statement each, as somebody types them.
        (SQL_OF_A1.split(";"), []),
        ([f"BEGIN; {SQL_OF_A1}; COMMIT"], []),
        (["DELETE FROM traksense.device WHERE device_id = 'dev1'"], []),
        (["TRUNCATE traksense.measure, traksense.series, traksense.device, traksense.tenant, traksense.meta"], []),
        (["TRUNCATE traksense.measure, traksense.series, traksense.device, traksense.meta RESTART IDENTITY"], []),
        (["UPDATE traksense.device SET device_id = 'renamed' WHERE device_id = 'dev1'"], [("renamed", 1.0)]),
        (["UPDATE traksense.series SET point_id = 'q' WHERE device_id = 'dev1'"], [("dev1", 1.0)]),
    ],
)
async def test_change_under_a_running_service_is_noticed(
    migrated: Database, statements: list[str], left: list[tuple[Any, ...]]
) -> None:
    """What the device sends afterwards is stored under its own name, and what was there before is what was left."""
    with trio.fail_after(HANG_SECONDS):
        async with open_postgres_store(migrated.dsn) as store:
            await store.write([delivery(1.0, meta=b'{"fw": 1}')])
            await act(migrated.dsn, *statements)
            await store.write([delivery(2.0, meta=b'{"fw": 1}')])

    assert sorted([*left, ("dev1", 2.0)]) == stored(migrated.dsn)


async def test_restored_in_place_is_noticed(migrated: Database) -> None:
    """The tables are dropped and made again, with the epoch of a dump and other series under the same numbers."""
    with trio.fail_after(HANG_SECONDS):
        async with open_postgres_store(migrated.dsn) as store:
            await store.write([delivery(1.0)])
            await act(
                migrated.dsn,
                "CREATE TABLE traksense.kept AS TABLE traksense.dictionary_epoch",
                # As `pg_restore --data-only --disable-triggers` does: no trigger sees it.
                f"SET session_replication_role = replica; {ALL_GONE}",
                "INSERT INTO traksense.device SELECT 'acme', 'site', 'other'",
                "INSERT INTO traksense.series (series_id, tenant_id, site_id, device_id, point_id)"
                " OVERRIDING SYSTEM VALUE VALUES (1, 'acme', 'site', 'other', 'p')",
                "UPDATE traksense.dictionary_epoch SET epoch = kept.epoch FROM traksense.kept",
            )
            await store.write([delivery(2.0)])

    assert [("dev1", 2.0)] == stored(migrated.dsn)


async def test_restored_rows_are_noticed(migrated: Database) -> None:
    """A dump of the data alone brings the old epoch back into the same tables; the number is another tenant's."""
    with trio.fail_after(HANG_SECONDS):
        async with open_postgres_store(migrated.dsn) as store:
            await store.write([delivery(1.0)])
            await act(
                migrated.dsn,
                "CREATE TABLE traksense.kept AS TABLE traksense.dictionary_epoch",
                "BEGIN; DELETE FROM traksense.series; DELETE FROM traksense.dictionary_epoch;"
                " INSERT INTO traksense.tenant VALUES ('victim');"
                " INSERT INTO traksense.device SELECT 'victim', 'site', 'other';"
                " INSERT INTO traksense.series (series_id, tenant_id, site_id, device_id, point_id)"
                " OVERRIDING SYSTEM VALUE VALUES (1, 'victim', 'site', 'other', 'p');"
                " INSERT INTO traksense.dictionary_epoch TABLE traksense.kept; COMMIT",
            )
            await store.write([delivery(2.0)])

    assert [("dev1", 2.0)] == stored(migrated.dsn)


async def test_numbers_that_are_taken_are_not_given_out(migrated: Database) -> None:
    """Rows without their sequences, as logical replication brings them; and an epoch that nobody restored."""
    rows = "SELECT n, 'acme', 'site', 'dev1', 'p' || n FROM generate_series(1, 300) n"
    run(
        migrated.dsn,
        "INSERT INTO traksense.tenant VALUES ('acme')",
        "INSERT INTO traksense.device SELECT 'acme', 'site', 'dev1'",
        "INSERT INTO traksense.series (series_id, tenant_id, site_id, device_id, point_id)"
        f" OVERRIDING SYSTEM VALUE {rows}",
        "INSERT INTO public.ingest_errors (id, tenant_id, topic, payload, reason, detail, digest)"
        " OVERRIDING SYSTEM VALUE"
        " SELECT n, 'acme', 't', '', 'r', 'd', sha256(n::text::bytea) FROM generate_series(1, 300) n",
        "INSERT INTO traksense.meta (meta_id, tenant_id, digest, doc) OVERRIDING SYSTEM VALUE"
        " SELECT n, 'acme', decode(md5(n::text), 'hex'), '{}' FROM generate_series(1, 300) n",
        "DELETE FROM traksense.dictionary_epoch",
    )
    dead = delivery(2.0)
    dead.reject(Rejection(Reason.PARSE_ERROR, "no"))
    with trio.fail_after(HANG_SECONDS):
        async with open_postgres_store(migrated.dsn) as store:
            await store.write([delivery(1.0, point="new", meta=b'{"fw": 1}'), dead])

    assert [("dev1", 1.0)] == stored(migrated.dsn)
    assert [(True,)] == migrated.rows("SELECT id > 300 FROM public.ingest_errors WHERE reason = 'parse_error'")


@pytest.mark.parametrize("novel", [{"meta": b'{"fw": 2}'}, {"point": "q"}])
async def test_change_while_a_batch_waits_to_register(migrated: Database, novel: dict[str, Any]) -> None:
    """What was known when the batch found something else missing is not there any more: it begins anew, too."""
    with trio.fail_after(HANG_SECONDS):
        async with open_postgres_store(migrated.dsn) as store, trio.open_nursery() as nursery:
            await store.write([delivery(1.0)])
            registering = store._dictionary._registering
            await aio_as_trio(registering.acquire)()
            nursery.start_soon(store.write, [delivery(2.0, **novel)])
            while not registering._waiters:
                await trio.sleep(0.01)
            await act(migrated.dsn, f"{ALL_GONE}, traksense.tenant")
            # Another batch finds it out, and asks for the new token.
            nursery.start_soon(store.write, [delivery(3.0)])
            while len(registering._waiters) < 2:
                await trio.sleep(0.01)
            registering.release()

    assert [("dev1", 2.0), ("dev1", 3.0)] == stored(migrated.dsn)


async def test_deleted_device_stays_out_with_strict_provisioning(migrated: Database) -> None:
    """What is not registered any more is refused, without a restart."""
    with trio.fail_after(HANG_SECONDS):
        async with open_postgres_store(migrated.dsn, registered=[("acme", "site", "dev1")]) as store:
            await store.write([delivery(1.0)])
            await act(migrated.dsn, "DELETE FROM traksense.device WHERE device_id = 'dev1'")
            with pytest.raises(Exception, match="refused"):
                await store.write([delivery(2.0)])

    assert [] == stored(migrated.dsn)


def test_truncating_names_alone_is_refused(migrated: Database) -> None:
    """Nobody could read the points any more."""
    run(
        migrated.dsn,
        "INSERT INTO traksense.tenant VALUES ('acme')",
        "INSERT INTO traksense.device VALUES ('acme', 'site', 'dev1')",
        "INSERT INTO traksense.series (tenant_id, site_id, device_id, point_id) VALUES ('acme', 'site', 'dev1', 'p')",
        "SELECT traksense.ensure_partitions(now(), now())",
        "INSERT INTO traksense.measure (series_id, ts, v_num) SELECT series_id, now(), 1 FROM traksense.series",
    )
    with pytest.raises(psycopg.errors.DependentObjectsStillExist, match="nobody could read"):
        run(migrated.dsn, "TRUNCATE traksense.series")


def test_truncated_aggregates_become_nobody_elses(migrated: Database) -> None:
    """Numbers of series that start over name other series, of other tenants perhaps."""
    if migrated.server.timescaledb:
        pytest.skip("aggregates of TimescaleDB follow the measurements at the next refresh")
    migrated.add_series("acme", "dev1", "p")
    run(
        migrated.dsn,
        "SELECT traksense.ensure_rollup_partitions('{[yesterday, tomorrow]}')",
        *(
            f"INSERT INTO traksense.rollup_{level} (series_id, bucket, v_sum, v_min, v_max, v_count)"
            " SELECT series_id, bucket, 42, 42, 42, 1 FROM traksense.series"
            " CROSS JOIN date_trunc('hour', now()) AS bucket"
            for level in ("1m", "5m", "1h")
        ),
        "TRUNCATE traksense.measure, traksense.series RESTART IDENTITY",
    )
    migrated.add_series("other", "dev2", "p")

    for level in ("1m", "5m", "1h"):
        assert [] == migrated.rows(f"SELECT * FROM public.ts_measure_{level}")


async def test_deletion_waits_for_a_batch_and_a_batch_for_a_deletion(migrated: Database) -> None:
    """What makes the check more than a check: nothing can come between it and the COMMIT."""
    with trio.fail_after(HANG_SECONDS):
        async with open_postgres_store(migrated.dsn) as store:
            await store.write([delivery(1.0)])
            with psycopg.connect(migrated.dsn) as operator:
                operator.execute("DELETE FROM traksense.device WHERE device_id = 'dev1'")
                finished = trio.Event()

                async def write() -> None:
                    await store.write([delivery(2.0)])
                    finished.set()

                async with trio.open_nursery() as nursery:
                    nursery.start_soon(write)
                    await _until_locked(migrated.dsn)
                    assert not finished.is_set()
                    operator.commit()

    assert [("dev1", 2.0)] == stored(migrated.dsn)


async def test_deletion_waits_for_a_roll_up(migrated: Database) -> None:
    """One that has read the points writes no aggregates that outlive their series; the writers do not wait with it."""
    if migrated.server.timescaledb:
        pytest.skip("TimescaleDB refreshes its own aggregates")
    with trio.fail_after(HANG_SECONDS):
        async with open_postgres_store(migrated.dsn) as store:
            await store.write([delivery(1.0)])
            with psycopg.connect(migrated.dsn) as roll_up:
                roll_up.execute("SELECT traksense.roll_up()")
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(trio.to_thread.run_sync, run, migrated.dsn, "DELETE FROM traksense.device")
                    try:
                        while not migrated.value(
                            "SELECT count(*) FROM pg_stat_activity "
                            "WHERE datname = current_database() AND wait_event_type = 'Lock'"
                        ):
                            await trio.sleep(0.02)
                        await store.write([delivery(2.0)])
                    finally:
                        roll_up.commit()

    assert [] == stored(migrated.dsn)
    for level in ("1m", "5m", "1h"):
        assert [] == migrated.rows(f"SELECT * FROM traksense.rollup_{level}")


async def _until_locked(database: str) -> None:
    """Until a session waits for the lock of the dictionary."""
    with psycopg.connect(database, autocommit=True) as connection:
        while not connection.execute(
            "SELECT FROM pg_locks WHERE relation = 'traksense.dictionary_epoch'::regclass AND NOT granted"
        ).rowcount:
            await trio.sleep(0.02)


OPERATORS = st.sampled_from(
    [
        "DELETE FROM traksense.device WHERE device_id = 'dev1'",
        "DELETE FROM traksense.series WHERE device_id = 'dev2'",
        "DELETE FROM traksense.meta",
        "UPDATE traksense.device SET device_id = device_id || '-old-' || gen_random_uuid() WHERE device_id = 'dev1'",
        "UPDATE traksense.series SET point_id = point_id || '-old-' || gen_random_uuid() WHERE device_id = 'dev2'",
        ALL_GONE,
    ]
)


@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(acts=st.lists(OPERATORS, min_size=1, max_size=4), batch=st.integers(1, 3))
def test_writers_beside_an_operator(migrated: Database, acts: list[str], batch: int) -> None:
    """Two writers and the aggregates go on while an operator deletes, renames and truncates: no statement of his fails,
    no row is unreadable, and each is under a name that its device has or had.
    """
    run(migrated.dsn, ALL_GONE)
    values = itertools.count(1)
    names = {"dev1", "dev2"}

    async def main() -> None:
        with trio.fail_after(HANG_SECONDS):
            async with open_postgres_store(migrated.dsn) as store, trio.open_nursery() as nursery:

                async def write(device: str) -> None:
                    for _ in range(15):
                        await write_when_possible(
                            store, [delivery(float(next(values)), device=device) for _ in range(batch)]
                        )

                async def operate() -> None:
                    for act in acts:
                        await trio.to_thread.run_sync(run, migrated.dsn, act)
                    operated.set()

                async def aggregate() -> None:
                    while not migrated.server.timescaledb and not operated.is_set():
                        await trio.to_thread.run_sync(run, migrated.dsn, "SELECT traksense.roll_up()")

                operated = trio.Event()
                nursery.start_soon(aggregate)
                nursery.start_soon(write, "dev1")
                nursery.start_soon(write, "dev2")
                nursery.start_soon(operate)
            async with open_postgres_store(migrated.dsn) as store:
                await store.write([delivery(float(next(values)), device=name) for name in sorted(names)])

    trio.run(main)
    found = stored(migrated.dsn)
    assert names <= {name for name, _ in found}
    assert {name.partition("-old")[0] for name, _ in found} <= names


def test_aggregates_do_not_outlive_their_names(migrated: Database) -> None:
    """A number that is given out again has no aggregates of the tenant that had it before, also where the raw points
    were dropped long ago.
    """
    point = """
        INSERT INTO traksense.measure (series_id, ts, v_num)
        SELECT series_id, now() - interval '2 hours', 7 FROM traksense.series
    """
    names = """
        INSERT INTO traksense.tenant VALUES ('{0}');
        INSERT INTO traksense.device VALUES ('{0}', 's', 'd');
        INSERT INTO traksense.series (tenant_id, site_id, device_id, point_id) VALUES ('{0}', 's', 'd', 'p')
    """
    run(
        migrated.dsn,
        "SELECT traksense.ensure_partitions(ARRAY[now() - interval '2 hours'])",
        *names.format("before").split(";"),
        point,
    )
    if migrated.server.timescaledb:
        run(migrated.dsn, "CALL traksense.refresh_aggregates()")
    else:
        run(
            migrated.dsn,
            """
            INSERT INTO traksense.dirty (series, low, high)
            SELECT array_agg(series_id), min(ts), max(ts) FROM traksense.measure
            """,
            "SELECT traksense.roll_up()",
        )
    assert [("before", 7.0)] == migrated.rows("SELECT tenant_id, v_avg FROM public.ts_measure_1m")

    run(
        migrated.dsn, "TRUNCATE traksense.measure, traksense.series RESTART IDENTITY", *names.format("after").split(";")
    )

    for level in ("1m", "5m", "1h"):
        assert [] == migrated.rows(f"SELECT tenant_id, v_avg FROM public.ts_measure_{level}")


async def test_probe_that_meets_a_change_asks_again(migrated: Database) -> None:
    """A deletion that is under way says nothing about whether writes are taken."""
    with trio.fail_after(HANG_SECONDS):
        async with open_postgres_store(migrated.dsn) as store:
            await store.write([delivery(1.0)])
            with psycopg.connect(migrated.dsn) as connection:
                connection.execute("DELETE FROM traksense.device WHERE device_id = 'dev1'")
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(store.probe)
                    await trio.sleep(0.5)
                    connection.commit()
