"""Random tenants, random queries, several users on one pooled session: nothing foreign, ever."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

import attrs
import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

if TYPE_CHECKING:
    from collections.abc import Iterator

    from schema_servers import Database

pytest_plugins = ("schema_fixtures",)

# Names that sort next to each other, contain each other, or look like patterns and ends of ranges.
TENANTS: Final = ("a", "a ", "a%", "a_", "ab", "A", "b", "\U0010ffff", "\U0010ffff" * 128, "'", "a/b", "é", "NULL")
NAMES: Final = {tenant: f"<{number}>" for number, tenant in enumerate(TENANTS)}
"""What is in every name and value of a tenant, and in no other's."""

COLUMNS: Final = {
    "ts_measure": ("tenant_id", "site_id", "device_id", "point_id", "ts", "v_num", "v_text", "unit", "qual", "meta"),
    "latest": ("tenant_id", "site_id", "device_id", "point_id", "ts", "v_num", "v_text", "unit", "meta"),
    "device_status": ("tenant_id", "site_id", "device_id", "first_seen_at", "last_seen_at", "online"),
    "ts_measure_1m": ("tenant_id", "site_id", "device_id", "point_id", "bucket", "v_avg", "v_max", "v_count"),
    "ts_measure_1h": ("tenant_id", "site_id", "device_id", "point_id", "bucket", "v_avg", "v_min", "v_count"),
    "cmd_ack": ("tenant_id", "site_id", "device_id", "cmd_id", "err", "payload", "updated_at"),
    "device_event": ("tenant_id", "site_id", "device_id", "event_id", "event_type", "ts", "data"),
    "ingest_errors": ("tenant_id", "topic", "reason", "detail", "ts", "payload", "id"),
}
PREDICATES: Final = (
    "{c} IS NOT NULL",
    "{c}::text >= ''",
    "{c}::text <> {v}",
    "{c}::text LIKE '%'",
    "{c}::text ~ '.'",
    "NOT ({c}::text = {v})",
    "tenant_id = {v}",
    "tenant_id <> {v}",
    "tenant_id = ANY (ARRAY[{v}, 'b', 'a', 'ab'])",
    "tenant_id IN (SELECT tenant_id FROM cmd_ack)",
    "EXISTS (SELECT FROM ingest_errors e WHERE e.tenant_id <> {v})",
    "true OR tenant_id IS NULL",
)
SHAPES: Final = (
    "SELECT {c}::text FROM {r} WHERE {p}",
    "SELECT json_agg(t)::text FROM (SELECT * FROM {r} WHERE {p}) t",
    "SELECT string_agg(tenant_id || {c}::text, ',') FROM {r} WHERE {p}",
    "SELECT max(tenant_id) || min({c}::text) FROM {r} WHERE {p}",
    "SELECT a::text || b::text FROM {r} a JOIN {r2} b ON a.tenant_id <> b.tenant_id OR {q}",
    "SELECT a::text || b::text FROM {r} a FULL JOIN {r2} b ON a.device_id = b.tenant_id",
    "SELECT tenant_id || {c}::text FROM {r} WHERE {p} UNION ALL SELECT tenant_id FROM {r2}",
    "SELECT tenant_id FROM {r2} EXCEPT SELECT {v}",
    "SELECT lag(tenant_id) OVER (ORDER BY {c}) || tenant_id FROM {r} WHERE {p}",
    "WITH w AS MATERIALIZED (SELECT * FROM {r}) SELECT w::text FROM w WHERE {p}",
    "SELECT (SELECT b::text FROM {r2} b WHERE b.tenant_id >= a.tenant_id ORDER BY b.tenant_id DESC LIMIT 1) FROM {r} a",
    "SELECT {c}::text FROM {r} GROUP BY ROLLUP (tenant_id, {c}) HAVING count(*) > 0",
)
SWITCHES: Final = ("enable_nestloop", "enable_hashjoin", "enable_indexscan", "enable_seqscan", "enable_bitmapscan")


@attrs.frozen
class Query:
    """One user of the session, and what he asks."""

    tenant: str
    local: bool
    switch: str
    sql: str


@st.composite
def queries(draw: st.DrawFn) -> Query:
    """A query with everything filled in."""
    relation, other = draw(st.sampled_from(sorted(COLUMNS))), draw(st.sampled_from(sorted(COLUMNS)))
    column = draw(st.sampled_from(COLUMNS[relation]))
    value = "'" + draw(st.sampled_from(TENANTS)).replace("'", "''") + "'"
    predicate = " AND ".join(draw(st.lists(st.sampled_from(PREDICATES), min_size=1, max_size=3)))
    text = draw(st.sampled_from(SHAPES)).format(
        r=relation, r2=other, c=column, v=value, q="a.device_id <= b.device_id", p=predicate.format(c=column, v=value)
    )
    tenant = draw(st.sampled_from([*TENANTS, "", "nobody"]))
    return Query(tenant, draw(st.booleans()), draw(st.sampled_from(SWITCHES)), text)


@pytest.fixture(scope="module")
def crowd(schema_server_module: Database) -> Database:
    """Some rows of every tenant in every relation."""
    database = schema_server_module
    database.run("SELECT traksense.ensure_partitions('2026-01-01', '2026-01-02')")
    for tenant, name in NAMES.items():
        series = database.add_series(tenant, f"device {name}", f"point {name}", f"unit {name}", f"site {name}")
        with database.connect() as connection:
            document = json.dumps({"of": name})
            for statement, arguments in (
                (
                    (
                        "INSERT INTO traksense.measure (series_id, ts, v_num, v_text, meta)"
                        " SELECT %s, timestamptz '2026-01-01' + n * interval '1 min', n, %s, %s"
                        " FROM generate_series(1, 3) n"
                    ),
                    (series, f"text {name}", document),
                ),
                (
                    (
                        "INSERT INTO cmd_ack (tenant_id, site_id, device_id, cmd_id, ok, err, payload)"
                        " VALUES (%s, 'site', %s, %s, true, %s, %s)"
                    ),
                    (tenant, name, name, name, document),
                ),
                (
                    (
                        "INSERT INTO device_event (tenant_id, site_id, device_id, event_id, event_type, ts, data)"
                        " VALUES (%s, 'site', %s, %s, %s, now(), %s)"
                    ),
                    (tenant, name, name, name, document),
                ),
                (
                    (
                        "INSERT INTO ingest_errors (tenant_id, topic, payload, reason, detail, digest)"
                        " VALUES (%s, %s, 'x', 'reason', %s, decode(md5(%s), 'hex'))"
                    ),
                    (tenant, name, name, name),
                ),
            ):
                connection.execute(statement.encode(), arguments)
    database.run(
        "INSERT INTO ingest_errors (topic, payload, reason, digest) VALUES ('<nobody>', '<nobody>', '<nobody>',"
        " decode(md5(''), 'hex'))",
        "SELECT traksense.mark_dirty('2026-01-01', '2026-01-02')",
    )
    database.aggregate()
    database.run("ANALYZE")
    return database


@pytest.fixture(scope="module", params=["traksense_app", "traksense_readonly"])
def pooled(request: pytest.FixtureRequest, crowd: Database) -> Iterator[psycopg.Connection[tuple[Any, ...]]]:
    """One session that all of these users share."""
    with psycopg.connect(crowd.create_member(request.param), autocommit=True) as connection:
        yield connection


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(queries(), min_size=1, max_size=5))
def test_nothing_foreign_ever(pooled: psycopg.Connection[tuple[Any, ...]], users: list[Query]) -> None:
    """Whatever one user after another asks on one session, each is told of the tenant that he named."""
    for user in users:
        pooled.execute("BEGIN")
        try:
            pooled.execute(f"SET LOCAL {user.switch} = off".encode())
            pooled.execute("SELECT set_config('app.tenant_id', %s, %s)", (user.tenant, user.local))
            told = repr(pooled.execute(user.sql.encode()).fetchall())
        except psycopg.errors.Error as error:
            told = f"{error} {error.diag.message_detail}"
        finally:
            pooled.execute("ROLLBACK" if user.local else "COMMIT")
        own = NAMES.get(user.tenant)
        foreign = [name for name in (*NAMES.values(), "<nobody>") if name != own and name in told]
        assert [] == foreign, user.sql
