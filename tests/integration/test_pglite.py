"""The SQL on a real TimescaleDB (2.23) where there is no server with one: see `pglite_fixtures`.

The code that runs is the service's own: its migrations, its COPY and its road for duplicates, `lifecycle` and
`maintain`, over a socket. Some tests of other modules that get along with one session at a time are taken over.

What cannot be had here: background workers, so the jobs are run by `maintain --jobs`; a second session at the same
time, so no races and no pool of more than one connection; authentication, so a session could take its superuser's
rights back with SET SESSION AUTHORIZATION, and the attack suite is not run; fsync. A server with TimescaleDB, if one is
given (TRAKSENSE_TEST_TIMESCALE_DSN), runs everything.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final

import psycopg
import pytest
import trio
from pglite_fixtures import bare, migrated, other_bare, pglite_directory, schema_server_module
from schema_catalog import read_catalog
from schema_servers import PRIVATE_TABLES, PUBLIC_RELATIONS, user_of
from test_lifecycle import test_chunks_are_compressed_and_analyzed as test_lifecycle_compression
from test_lifecycle import test_duplicates_among_news_in_a_compressed_chunk as test_lifecycle_duplicates
from test_lifecycle import test_plan_apply_and_maintain as test_lifecycle_policy
from test_rollup import LEVELS, check, compress
from test_schema import test_measure_is_stored_as_reported as test_schema_hypertable
from test_schema_file import FILE
from test_upgrade import first
from test_upgrade import test_upgrade_from_the_first_schema as test_upgrade
from walls_data import FOREIGN, MARK, OWN, READERS, fill

from tests.contract.test_store import delivery
from tests.patience import HANG_SECONDS
from traksense.config import load
from traksense.ingest.health import Health
from traksense.model import CommandAck, Event, Point, Reason, Rejection, Telemetry
from traksense.store.asyncio_loop import open_asyncio_loop
from traksense.store.postgres import open_store

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from schema_servers import Database

    from traksense.ingest.ports import WriteResult
    from traksense.model import Delivery

# Not as a plugin: these fixtures have the names of `schema_fixtures`, and a plugin's would serve all modules.
__all__ = [
    "bare",
    "first",
    "migrated",
    "other_bare",
    "pglite_directory",
    "schema_server_module",
    "test_lifecycle_compression",
    "test_lifecycle_duplicates",
    "test_lifecycle_policy",
    "test_schema_hypertable",
    "test_upgrade",
]

HOUR: Final = timedelta(hours=1)


def create_service(database: Database) -> str:
    """A login for the service; returns its DSN.

    It may read everything besides: a stale entry in PGlite's cache keeps all but the superuser from pg_range, where
    asyncpg looks for types. What it may write is what counts here.
    """
    dsn = database.create_member("traksense_ingest")
    database.run(f"GRANT pg_read_all_data TO {user_of(dsn)}")
    return dsn


def store(dsn: str, *batches: Sequence[Delivery], between: Callable[[], None] = lambda: None) -> list[WriteResult]:
    """Write batches as the service does; `between` is called before all but the first, while nobody is connected."""

    async def write(batch: Sequence[Delivery]) -> WriteResult:
        environ = {"DATABASE_URL": dsn, "DB_POOL_MIN": "1", "DB_POOL_MAX": "1", "DB_ALLOW_UNSAFE": "1"}
        async with (
            open_asyncio_loop(),
            open_store(load(environ), Health(["database", "maintenance"])) as opened,
            trio.open_nursery() as nursery,
        ):
            nursery.start_soon(opened.run)
            with trio.fail_after(HANG_SECONDS):
                result = await opened.write(batch)
            nursery.cancel_scope.cancel()
        return result

    results = []
    for number, batch in enumerate(batches):
        if number:
            between()
        results.append(trio.run(write, batch))
    return results


def telemetry(at: datetime, minutes: int) -> list[Delivery]:
    """A message a minute: a temperature, a switch, a state."""
    return [
        delivery(
            Telemetry(
                at + timedelta(minutes=n),
                [
                    Point("t", 20 + n % 50 / 10, "num", "Cel"),
                    Point("on", n % 3 == 0, "bool"),
                    Point("s", "RUN", "text"),
                ],
                b'{"fw": "1.2"}',
            )
        )
        for n in range(minutes)
    ]


def test_service_writes_as_its_role(migrated: Database) -> None:
    """Points by COPY, acks, events and dead letters are stored under the walls, and once: what comes again is known."""
    now = datetime.now(UTC).replace(microsecond=0)
    batch = [
        *telemetry(now - HOUR, 60),
        delivery(CommandAck("c1", ok=True, payload=b'{"cmd_id": "c1"}', ts_exec=now)),
        delivery(Event("boot", now, "e1")),
        delivery(payload=b"?", rejection=Rejection(Reason.PARSE_ERROR, "not JSON")),
    ]
    service = create_service(migrated)
    stored, again = store(service, batch, batch)

    assert (180, 0) == (stored.points_stored, stored.points_duplicate)
    assert (0, 180) == (again.points_stored, again.points_duplicate)
    assert [180, 3, 1, 1, 1] == [
        migrated.value(f"SELECT count(*) FROM {relation}")
        for relation in ("ts_measure", "latest", "cmd_ack", "device_event", "ingest_errors")
    ]
    assert 1 == migrated.value("SELECT repeats FROM ingest_errors")
    assert [("t", 20.9, "Cel", {"fw": "1.2"})] == migrated.rows(
        "SELECT point_id, v_num, unit, meta FROM latest WHERE v_num IS NOT NULL"
    )


def test_late_points_in_compressed_chunks(migrated: Database) -> None:
    """Raw points and aggregates are in the columnstore when late points, among duplicates, arrive: all is right."""
    begin = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0) - timedelta(days=30)
    service = create_service(migrated)
    on_time, late = telemetry(begin, 600), telemetry(begin + timedelta(seconds=30), 300)

    def age() -> None:
        migrated.aggregate()
        compress(migrated)

    _, result = store(service, on_time, [*on_time[:50], *late], between=age)
    assert (900, 150) == (result.points_stored, result.points_duplicate)
    compressed = "SELECT count(*) FROM timescaledb_information.chunks WHERE is_compressed"
    assert 1 + len(LEVELS) == migrated.value(compressed)
    migrated.aggregate()

    check(migrated)
    assert 900 == migrated.value("SELECT sum(v_count) FROM ts_measure_1h")


@pytest.mark.parametrize("role", READERS)
def test_tenants_are_walls(schema_server_module: Database, role: str) -> None:
    """On raw, compressed and aggregated rows: own ones are seen, foreign ones and private tables are not."""
    database = schema_server_module
    if not database.value("SELECT count(*) FROM traksense.tenant"):
        fill(database)
        compress(database)
    reader = database.create_member(role)
    for relation in PUBLIC_RELATIONS:
        seen = database.rows(f"TABLE public.{relation}", dsn=reader, tenant=OWN)
        assert seen, relation
        assert MARK not in repr(seen).lower(), relation
        assert {FOREIGN} == {
            row[0] for row in database.rows(f"SELECT tenant_id FROM {relation}", dsn=reader, tenant=FOREIGN)
        }
        assert [] == database.rows(f"TABLE public.{relation}", dsn=reader)
        assert database.value(f"SELECT count(DISTINCT tenant_id) FROM public.{relation}") == 2
    for table in PRIVATE_TABLES:
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            database.rows(f"TABLE traksense.{table}", dsn=reader, tenant=OWN)


def test_schema_file_makes_what_the_migrations_make(other_bare: Database, migrated: Database) -> None:
    """As in `test_schema_file`, without psql."""
    with other_bare.connect() as connection:
        # The file is ours, and has no parameters.
        connection.execute(FILE.read_text(encoding="utf-8").encode())

    assert read_catalog(migrated) == read_catalog(other_bare)
