"""Whatever a tenant's reader holds, the others write, aggregate and migrate."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import psycopg
import trio
from schema_servers import PUBLIC_RELATIONS

from tests.contract.test_store import delivery, open_postgres_store
from traksense.model import Point, Telemetry
from traksense.store import maintenance

if TYPE_CHECKING:
    from collections.abc import Iterator

    from schema_servers import Database

pytest_plugins = ("schema_fixtures",)

TRAK = 0x7472616B
"""The key of the advisory locks of releases before schema version 10."""

MODES = (
    "ACCESS SHARE", "ROW SHARE", "ROW EXCLUSIVE", "SHARE UPDATE EXCLUSIVE", "SHARE", "SHARE ROW EXCLUSIVE", "EXCLUSIVE",
    "ACCESS EXCLUSIVE",
)  # fmt: skip


@contextmanager
def everything_held(database: Database, reader: str) -> Iterator[None]:
    """A session of the reader that holds all that it can get: advisory locks, tables in every mode, and a snapshot."""
    with ExitStack() as stack:
        session = stack.enter_context(psycopg.connect(reader))
        session.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        for key in range(-1, 64):
            session.execute("SELECT pg_advisory_lock(%s, %s), pg_advisory_lock(%s)", (TRAK, key, key))
        for relation in (*PUBLIC_RELATIONS, "traksense.measure", "traksense.work", "traksense.schema_version"):
            for mode in MODES:
                try:
                    with session.transaction():
                        session.execute(f"LOCK TABLE {relation} IN {mode} MODE NOWAIT".encode())
                except psycopg.errors.InsufficientPrivilege:
                    continue
        for relation in PUBLIC_RELATIONS:
            session.execute(f"SELECT count(*) FROM {relation}".encode())
        yield


async def write_points(database: Database, *instants: datetime) -> None:
    async with open_postgres_store(database.dsn) as store:
        for instant in instants:
            await store.write([delivery(Telemetry(instant, [Point("a", 1.0)]))])


def test_reader_that_holds_all_it_can(migrated: Database) -> None:
    """Late data get their partitions, aggregates follow, migrations run. Only a drop waits for who reads the table: for
    three seconds, then it says so and is tried again.
    """
    now = datetime.now(UTC)
    reader = migrated.create_member("traksense_app")
    trio.run(write_points, migrated, now)
    with everything_held(migrated, reader):
        trio.run(write_points, migrated, now - timedelta(days=400), now - timedelta(days=4000))
        migrated.aggregate()
        assert migrated.migrate().applied == ()
        migrated.run("SELECT traksense.purge_expired()")
        migrated.run("UPDATE traksense.setting SET value = '1000 days' WHERE name = 'retain_raw'")
        report = maintenance.Report()

        async def expire(connection: object) -> None:
            await maintenance.Maintainer().expire(connection, report)

        if not migrated.server.timescaledb:
            maintenance.run_once(migrated.dsn, "test", expire)
            assert {"drop": "55P03"} == {name: getattr(e, "sqlstate", None) for name, e in report.failed.items()}
            maintenance.run_once(migrated.dsn, "test", lambda c: write_after(c, now))

    assert 3 <= migrated.value("SELECT count(*) FROM traksense.rollup_1h")
    if not migrated.server.timescaledb:
        maintenance.run_once(migrated.dsn, "test", expire)
    else:
        migrated.run("CALL traksense.lifecycle_job(0, NULL)")
    assert 0 == migrated.value("SELECT count(*) FROM traksense.measure WHERE ts < now() - interval '1100 days'")
    assert None is migrated.value("SELECT error FROM traksense.step WHERE name = 'drop'")


async def write_after(connection: object, now: datetime) -> None:
    """The tries to drop have left nothing behind that writers wait for."""
    execute = connection.execute  # type: ignore[attr-defined]
    await execute("SET lock_timeout = '1s'")
    await execute("INSERT INTO traksense.measure (series_id, ts, v_num) VALUES (1, $1, 1)", now + timedelta(minutes=1))


def test_purge_waits_for_no_batch(migrated: Database) -> None:
    """An expired dead letter that just comes again is not waited for, and stays; the other one goes."""
    old = "now() - interval '20 days'"
    migrated.run(
        "INSERT INTO public.ingest_errors (tenant_id, topic, payload, reason, digest, ts) VALUES"
        f" (NULL, 'a', 'x', 'parse_error', decode(md5('a'), 'hex'), {old}),"
        f" (NULL, 'b', 'x', 'parse_error', decode(md5('b'), 'hex'), {old})"
    )
    with psycopg.connect(migrated.dsn) as batch:
        batch.execute("UPDATE public.ingest_errors SET last_ts = now() WHERE topic = 'a'")
        migrated.run("SET lock_timeout = '5s'", "SELECT traksense.purge_expired()")
        batch.commit()

    assert [("a",)] == migrated.rows("SELECT topic FROM public.ingest_errors")
