"""ops/reading.md: what it says of `latest` and `device_status`, and its patterns; `test_reading` has its queries."""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from tests.manuals import block_of

if TYPE_CHECKING:
    from schema_servers import Database

pytest_plugins = ("schema_fixtures",)


@pytest.fixture(scope="module")
def filled(schema_server_module: Database) -> Database:
    """Two tenants with devices of the same name, two days of points, acks, events and dead letters."""
    database = schema_server_module
    database.run("SELECT traksense.ensure_partitions(now() - interval '2 days', now())")
    for tenant, number in (("acme", 1), ("bravo", 100)):
        for point, columns, values in (
            ("temperature", "v_num", "85 - n % 5"),
            ("energy", "v_num", f"n * {number}"),
            ("status", "v_text", "CASE WHEN n / 100 % 2 = 0 THEN 'RUN' ELSE 'STOP' END"),
        ):
            series = database.add_series(tenant, "pump-1", point, "Cel" if point == "temperature" else None)
            database.run(
                f"INSERT INTO traksense.measure (series_id, ts, {columns})"
                f" SELECT {series}, now() - n * interval '5 min', {values} FROM generate_series(0, 500) n"
            )
        database.run(
            "INSERT INTO cmd_ack (tenant_id, site_id, device_id, cmd_id, ok, payload)"
            f" VALUES ('{tenant}', 'site', 'pump-1', 'c {tenant}', true, '{{}}')",
            "INSERT INTO device_event (tenant_id, site_id, device_id, event_type, ts)"
            f" VALUES ('{tenant}', 'site', 'pump-1', 'boot {tenant}', now())",
            "INSERT INTO ingest_errors (tenant_id, topic, payload, reason, digest)"
            f" VALUES ('{tenant}', 'topic', 'x', 'parse_error', decode(md5('{tenant}'), 'hex'))",
        )
    database.run("SELECT traksense.mark_dirty(now() - interval '3 days', now())")
    database.aggregate()
    return database


@pytest.fixture(scope="module")
def reader(filled: Database) -> str:
    return filled.create_member("traksense_readonly")


def test_latest_is_not_overwritten_by_late_points(filled: Database, reader: str) -> None:
    """A point that arrives late, or with a quality, does not replace a newer one; a newer one does."""
    value = "SELECT v_num FROM latest WHERE device_id = 'pump-1' AND point_id = 'temperature'"
    series = filled.value(
        "SELECT series_id FROM traksense.series WHERE tenant_id = 'acme' AND point_id = 'temperature'"
    )
    before = filled.value(value, dsn=reader, tenant="acme")
    insert = f"INSERT INTO traksense.measure (series_id, ts, v_num) VALUES ({series}, now() + interval '{{}}', {{}})"
    filled.run(insert.format("-1 day 13 s", 1))
    assert before == filled.value(value, dsn=reader, tenant="acme")
    filled.run(insert.format("1 s", 99))
    assert 99 == filled.value(value, dsn=reader, tenant="acme")


def test_latest_has_one_row_for_a_point(filled: Database, reader: str) -> None:
    """The newest reading, whatever its unit: what came in another unit, or without one, is history."""
    units = {None: "-3 min", "ppm": "-1 min", "\u00b5g/m\u00b3": "-2 min"}
    for unit, ago in units.items():
        series = filled.add_series("acme", "sniffer", "pm10", unit)
        values = f"{series}, now() + interval '{ago}', {series}"
        filled.run(f"INSERT INTO traksense.measure (series_id, ts, v_num) VALUES ({values})")

    for condition in ("device_id = 'sniffer'", "device_id = 'sniffer' AND point_id = 'pm10'", "point_id = 'pm10'"):
        query = f"SELECT unit FROM latest WHERE {condition}"
        assert [("ppm",)] == filled.rows(query, dsn=reader, tenant="acme"), condition
    # A condition on what was measured looks at the newest reading: it does not bring an older one forward.
    for condition in ("unit IS NULL", "v_num < (SELECT max(v_num) FROM latest WHERE device_id = 'sniffer')"):
        query = f"SELECT unit FROM latest WHERE device_id = 'sniffer' AND {condition}"
        assert [] == filled.rows(query, dsn=reader, tenant="acme"), condition


def test_reading_that_is_dated_ahead(filled: Database, reader: str) -> None:
    """It stays in `latest` after the clock was set right; the query of the manual has what came since."""
    filled.run("SELECT traksense.ensure_partitions(now(), now() + interval '1 day')")
    series = filled.add_series("acme", "hasty", "level", None)
    for ago, value in (("-5 min", 1), ("1 hour", 2), ("-1 min", 3)):
        values = f"{series}, now() + interval '{ago}', {value}"
        filled.run(f"INSERT INTO traksense.measure (series_id, ts, v_num) VALUES ({values})")
    newest = block_of("reading.md -- the newest reading").text

    latest = filled.rows("SELECT device_id, v_num FROM latest WHERE ts > now()", dsn=reader, tenant="acme")
    assert ("hasty", 2) in latest
    assert [3] == [row[4] for row in filled.rows(newest, dsn=reader, tenant="acme") if row[1] == "hasty"]


def test_device_status(filled: Database, reader: str) -> None:
    """A device is online while it was heard within the setting, offline before and after."""
    online = "SELECT online FROM device_status WHERE device_id = 'pump-1'"
    found = [filled.value(online, dsn=reader, tenant="acme")]
    for ago in ("4 min", "6 min"):
        filled.run(f"UPDATE traksense.device SET last_seen_at = now() - interval '{ago}' WHERE tenant_id = 'acme'")
        found.append(filled.value(online, dsn=reader, tenant="acme"))

    assert [False, True, False] == found
    assert not filled.value(online, dsn=reader, tenant="bravo")


def test_middleware_with_a_reused_connection(filled: Database, reader: str) -> None:
    """One connection serves one tenant's request after another's, also after a failed one, and none between. It is
    psycopg's in place of Django's.
    """
    with psycopg.connect(reader, autocommit=True) as connection:

        def view(request: SimpleNamespace) -> list[Any]:
            if request.tenant == "fails":
                raise ZeroDivisionError
            return connection.execute("SELECT DISTINCT tenant_id FROM ts_measure").fetchall()

        names: dict[str, Any] = {"connection": connection}
        exec(block_of("reading.md class TenantMiddleware").text, names)
        middleware = names["TenantMiddleware"](view)
        assert [("acme",)] == middleware(SimpleNamespace(tenant="acme"))
        with pytest.raises(ZeroDivisionError):
            middleware(SimpleNamespace(tenant="fails"))
        assert [] == connection.execute("SELECT * FROM ts_measure").fetchall()
        assert [("bravo",)] == middleware(SimpleNamespace(tenant="bravo"))
        assert [] == connection.execute("SELECT * FROM latest").fetchall()


def test_transaction_mode(filled: Database, reader: str) -> None:
    """Two users' transactions in turn on one server connection, as pgbouncer would do it, each see their own."""
    block = block_of("reading.md with transaction.atomic").text
    query = block.replace("SELECT …", "SELECT DISTINCT tenant_id FROM cmd_ack") + "    rows = cursor.fetchall()"
    with psycopg.connect(reader) as connection:
        transaction = SimpleNamespace(atomic=connection.transaction)
        for tenant in ("acme", "bravo", "acme"):
            names: dict[str, Any] = {"connection": connection, "transaction": transaction, "tenant": tenant}
            exec(query, names)
            assert [(tenant,)] == names["rows"]
            assert [] == connection.execute("SELECT * FROM cmd_ack").fetchall()
            connection.rollback()


def test_latest_of_one_device_is_quick(filled: Database, reader: str) -> None:
    """The newest values of a device are found through the key, not by reading its history."""
    filled.rows("SELECT * FROM latest WHERE device_id = 'pump-1'", dsn=reader, tenant="acme")
    plan = "\n".join(
        row[0]
        for row in filled.rows("EXPLAIN SELECT * FROM latest WHERE device_id = 'pump-1'", dsn=reader, tenant="acme")
    )

    assert "Limit" in plan
    assert re.search(r"Index.* on series s", plan)
    assert not re.search("Seq Scan on (measure|series)", plan), plan
