"""`ops/schema.sql` and the migrations make the same database: whoever adds a migration makes the file again."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Final

import asyncpg
import pytest
from schema_catalog import read_catalog

from traksense.tools import reference

if TYPE_CHECKING:
    from schema_servers import Database, Server

pytest_plugins = ("schema_fixtures",)

PAGE: Final = Path(__file__).parents[2] / "ops" / "reference" / "columns.md"
FILE: Final = Path(__file__).parents[2] / "ops" / "schema.sql"


@pytest.fixture
def from_file(other_bare: Database, schema_server: Server) -> Database:
    """A database that psql has made from the file."""
    psql = str(schema_server.bindir / "psql") if schema_server.bindir else shutil.which("psql")
    if psql is None or not Path(psql).exists():
        pytest.skip("no psql here")
    done = subprocess.run(
        [psql, "-X", "-q", "-d", other_bare.dsn, "-v", "ON_ERROR_STOP=1", "-f", str(FILE)],
        env={**os.environ, "PGOPTIONS": "-c client_min_messages=warning"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (0, "") == (done.returncode, done.stderr)
    return other_bare


def test_file_makes_what_the_migrations_make(from_file: Database, migrated: Database) -> None:
    """Relations, columns, constraints, indexes, functions, views, policies, grants, comments, settings and all."""
    expected, actual = read_catalog(migrated), read_catalog(from_file)
    remedy = "python -m traksense.tools.schema > ops/schema.sql"

    for kind in expected:
        assert expected[kind] == actual[kind], f"{kind}: {remedy}"


def test_reference_page_has_the_columns(migrated: Database) -> None:
    """`ops/reference/columns.md`: each relation that applications read, with types and meanings."""

    async def read() -> str:
        connection = await asyncpg.connect(migrated.dsn)
        try:
            return reference.columns(await reference.read_columns(connection))
        finally:
            connection.terminate()

    assert asyncio.run(read()) == PAGE.read_text(encoding="utf-8"), "python -m traksense.tools.reference"


def test_migrate_goes_on_from_the_file(from_file: Database, migrated: Database) -> None:
    """A database made from the file is one that has been migrated, and migrate changes nothing in it."""
    report = from_file.migrate()

    assert () == report.applied
    assert read_catalog(migrated) == read_catalog(from_file)


@pytest.mark.parametrize(
    "change",
    [
        "ALTER TABLE traksense.dirty ADD COLUMN surplus int",
        "ALTER TABLE traksense.device ALTER COLUMN created_at SET DEFAULT '2000-01-01'",
        "ALTER TABLE traksense.device ALTER COLUMN site_id SET STATISTICS 10",
        "ALTER TABLE public.cmd_ack NO FORCE ROW LEVEL SECURITY",
        "ALTER VIEW public.latest RESET (security_barrier)",
        (
            "CREATE OR REPLACE VIEW public.device_status WITH (security_barrier) AS SELECT tenant_id, site_id,"
            " device_id, created_at AS first_seen_at, last_seen_at, true AS online FROM traksense.device"
        ),
        "DROP INDEX public.cmd_ack_updated_idx",
        "ALTER TABLE public.ingest_errors DROP CONSTRAINT ingest_errors_reason_check",
        "DROP POLICY tenant ON public.device_event",
        "GRANT SELECT ON traksense.measure TO PUBLIC",
        "GRANT UPDATE (doc) ON traksense.meta TO PUBLIC",
        "REVOKE EXECUTE ON FUNCTION traksense.is_operator() FROM PUBLIC",
        "ALTER FUNCTION traksense.opaque(text) LEAKPROOF",
        "COMMENT ON TABLE traksense.series IS 'other'",
        "UPDATE traksense.setting SET value = '1 day' WHERE name = 'retain_errors'",
        "INSERT INTO traksense.schema_version (version, name) VALUES (9999, 'of_tomorrow')",
        "CREATE TABLE public.surplus ()",
    ],
)
def test_difference_is_seen(migrated: Database, change: str) -> None:
    """The comparison is not blind to what it claims to compare."""
    before = read_catalog(migrated)
    migrated.run(change)

    assert before != read_catalog(migrated)


@pytest.mark.parametrize(
    "change",
    [
        "SELECT set_chunk_time_interval('traksense.measure', interval '2 days')",
        "SELECT delete_job(job_id) FROM timescaledb_information.jobs WHERE proc_name = 'refresh_aggregates'",
        "SELECT delete_job(job_id) FROM timescaledb_information.jobs WHERE proc_name = 'lifecycle_job'",
        "ALTER MATERIALIZED VIEW traksense.rollup_1h SET (timescaledb.compress_orderby = 'bucket')",
    ],
)
def test_difference_in_timescaledb_is_seen(migrated: Database, change: str) -> None:
    """Hypertables, jobs and the settings of the columnstore are compared too."""
    if not migrated.server.timescaledb:
        pytest.skip("plain PostgreSQL has none of these")
    before = read_catalog(migrated)
    migrated.run(change)

    assert before != read_catalog(migrated)
