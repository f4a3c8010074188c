"""A database that an earlier release has made and filled is brought up to date with its data."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

import pytest
from test_rollup import check

from traksense.store import migrate as module
from traksense.store import sql_files

if TYPE_CHECKING:
    from schema_servers import Database

pytest_plugins = ("schema_fixtures",)

log = logging.getLogger(__name__)

CONTENT = (
    "SELECT tenant_id, site_id, device_id, point_id, ts, v_num, v_bool, v_text, unit, qual, meta FROM ts_measure",
    "SELECT * FROM cmd_ack",
    "SELECT * FROM device_event",
    "SELECT * FROM ingest_errors",
)
AGGREGATES = (
    "SELECT bucket, tenant_id, device_id, point_id, v_min, v_max, v_count FROM ts_measure_1h ORDER BY 1, 2, 3, 4"
)


@pytest.fixture
def first(bare: Database, monkeypatch: pytest.MonkeyPatch) -> Database:
    """A database at the first schema, with data of every kind, as its service would have written them."""
    only = sql_files.migrations()[:1]
    with monkeypatch.context() as patch:
        patch.setattr(module, "migrations", lambda: only)
        patch.setattr(module, "LATEST", 1)
        asyncio.run(module.migrate(bare.dsn, log=log, roles=False))
    bare.run(
        "SELECT traksense.ensure_partitions('2025-03-01', '2025-03-02')",
        "SELECT traksense.ensure_partitions(now() - interval '3 days', now())",
    )
    for tenant in ("acme", "bravo"):
        for point, unit in (("temperature", "Cel"), ("state", None)):
            series = bare.add_series(tenant, "device", point, unit)
            bare.run(
                "INSERT INTO traksense.meta (tenant_id, digest, doc)"
                f" VALUES ('{tenant}', decode(md5('{point}'), 'hex'), '{{\"fw\": 1}}')",
                "INSERT INTO traksense.measure (series_id, ts, meta_id, v_num, v_text)"
                f" SELECT {series}, t, (SELECT max(meta_id) FROM traksense.meta),"
                f" {'extract(epoch FROM t), NULL' if unit else 'NULL::float8, ' + chr(39) + 'RUN' + chr(39)}"
                " FROM (SELECT generate_series('2025-03-01 00:00Z', '2025-03-01 23:00Z', interval '13 min')"
                " UNION ALL SELECT generate_series(now() - interval '3 days', now(), interval '29 min')) AS g (t)",
            )
        bare.run(
            "INSERT INTO cmd_ack (tenant_id, site_id, device_id, cmd_id, ok, payload)"
            f" VALUES ('{tenant}', 'site', 'device', 'c', true, '{{}}')",
            "INSERT INTO device_event (tenant_id, site_id, device_id, event_type, ts)"
            f" VALUES ('{tenant}', 'site', 'device', 'boot', now())",
            "INSERT INTO ingest_errors (tenant_id, topic, payload, reason, digest)"
            f" VALUES ('{tenant}', 'topic', 'x', 'parse_error', decode(md5('{tenant}'), 'hex'))",
        )
    bare.run(
        "INSERT INTO ingest_errors (topic, payload, reason, digest) VALUES ('t', 'x', 'r', decode(md5(''), 'hex'))",
        "ANALYZE",
    )
    return bare


def test_upgrade_from_the_first_schema(first: Database) -> None:
    """Every row is there afterwards, the aggregates too, and the statistics that could be probed are gone."""
    before = [sorted(map(repr, first.rows(query))) for query in CONTENT]
    aggregates = first.rows(AGGREGATES)
    report = first.migrate()
    assert (1, sql_files.LATEST) == (report.from_version, report.to_version)

    assert before == [sorted(map(repr, first.rows(query))) for query in CONTENT]
    first.aggregate()
    check(first)
    assert aggregates == first.rows(AGGREGATES)
    probed = (
        "SELECT tablename, attname FROM pg_stats WHERE attname IN ('device_id', 'tenant_id', 'v_text', 'v_num')"
        " AND schemaname IN ('traksense', 'public', '_timescaledb_internal')"
    )
    assert [] == first.rows(probed)
    reader = first.create_member("traksense_readonly")
    assert ["acme"] == sorted({row[0] for row in first.rows("SELECT tenant_id FROM latest", dsn=reader, tenant="acme")})
