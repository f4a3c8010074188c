"""A database that goes back in time under a running service: nothing may end up under another series' name."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import psycopg
import pytest
import trio
from psycopg import sql

from tests.contract.test_store import open_postgres_store
from tests.patience import HANG_SECONDS
from traksense.errors import StoreError
from traksense.model import Delivery, Kind, Message, Point, Route, Telemetry

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from traksense.ingest.ports import Store
    from traksense.tools.stack import PostgresProcess

NOON = datetime(2026, 11, 20, 12, tzinfo=UTC)


def delivery(tenant: str, value: float, second: int) -> Delivery:
    route = Route(tenant, "site", "device", Kind.TELEM)
    message = Message(f"traksense/{route.path}/telem", b"{}", 1, 1, 1, False, NOON, route)
    return Delivery(message, [Telemetry(NOON + timedelta(seconds=second), [Point("p", value)])], 1)


@pytest.fixture
def backup(postgres_server: PostgresProcess, database: str, unique: Callable[[str], str]) -> Iterator[str]:
    """The name of a copy of the empty, migrated database, whose next series has the number that is given out first."""
    name = unique("backup")
    with psycopg.connect(postgres_server.dsn_of("postgres"), autocommit=True) as connection:
        _copy(connection, psycopg.conninfo.conninfo_to_dict(database)["dbname"], name)
    yield name
    postgres_server.drop_database_sync(name)


def _copy(connection: psycopg.Connection, origin: object, name: object) -> None:
    statement = sql.SQL("CREATE DATABASE {} TEMPLATE {}")
    connection.execute(statement.format(sql.Identifier(str(name)), sql.Identifier(str(origin))))


async def write_when_possible(store: Store, batch: list[Delivery]) -> None:
    """What a writer does: the connections to the old database fail first."""
    while True:
        try:
            await store.write(batch)
        except StoreError:
            await trio.sleep(0.05)
        else:
            return


async def test_restored_database_gets_no_points_under_old_numbers(
    postgres_server: PostgresProcess, database: str, backup: str
) -> None:
    """Two tenants; after the restore the first number belongs to the other one."""
    name = str(psycopg.conninfo.conninfo_to_dict(database)["dbname"])
    with trio.fail_after(HANG_SECONDS):
        async with open_postgres_store(database) as store:
            await store.write([delivery("acme", 1.0, 0)])

            with psycopg.connect(postgres_server.dsn_of("postgres"), autocommit=True) as connection:
                connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))
                _copy(connection, backup, name)
            with psycopg.connect(database) as other_replica:
                other_replica.execute("INSERT INTO traksense.tenant VALUES ('bravo')")
                other_replica.execute(
                    "INSERT INTO traksense.device (tenant_id, site_id, device_id) VALUES ('bravo', 'site', 'device')"
                )
                other_replica.execute(
                    "INSERT INTO traksense.series (tenant_id, site_id, device_id, point_id)"
                    " VALUES ('bravo', 'site', 'device', 'p')"
                )
            await write_when_possible(store, [delivery("acme", 2.0, 1)])

    with psycopg.connect(database) as reader:
        stored = reader.execute(
            "SELECT s.tenant_id, m.v_num FROM traksense.measure m LEFT JOIN traksense.series s USING (series_id)"
        ).fetchall()
    assert [("acme", 2.0)] == stored
