"""ops/tenant-walls.sql and ops/tenant-login.sql: what a tenant's login can hold or use up, with and without them."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg
import pytest
from schema_servers import user_of, with_parts

if TYPE_CHECKING:
    from schema_servers import Database, Server

pytest_plugins = ("schema_fixtures",)

OPS = Path(__file__).parents[2] / "ops"

HOARDING = (
    "CREATE TEMPORARY TABLE hoard (x int)",
    "SELECT 1 AS x INTO TEMPORARY hoard",
    "CREATE TABLE public.hoard (x int)",
    "SELECT lo_create(0)",
    "SELECT lo_creat(-1)",
    "SELECT lo_from_bytea(0, repeat('x', 1000)::bytea)",
    "SELECT pg_advisory_lock(1953653099, 2)",
    "SELECT pg_try_advisory_lock(n) FROM generate_series(1, 100) n",
    "SELECT pg_advisory_xact_lock_shared(1)",
    "SELECT pg_try_advisory_xact_lock(1, 2)",
    "SELECT pg_logical_emit_message(false, 'hoard', repeat('x', 1000))",
    "SELECT pg_logical_emit_message(true, 'hoard', '\\x00'::bytea)",
    "SELECT txid_current()",
    "SELECT pg_current_xact_id()",
    "CREATE SCHEMA hoard",
    "CREATE SEQUENCE public.hoard",
    "SELECT nextval('traksense.series_series_id_seq')",
    "LOCK TABLE public.ts_measure IN ACCESS EXCLUSIVE MODE",
    "LOCK TABLE public.cmd_ack IN ROW SHARE MODE",
    "SELECT * FROM public.cmd_ack FOR SHARE",
)
"""What fills the disk, holds up others, or uses up what all share."""


@pytest.fixture
def psql(schema_server: Server) -> str:
    found = str(schema_server.bindir / "psql") if schema_server.bindir else shutil.which("psql")
    if found is None or not Path(found).exists():
        pytest.skip("no psql here")
    return found


def run_file(psql: str, database: Database, name: str, **values: str) -> None:
    """As the manual says, by the superuser."""
    variables = [word for pair in values.items() for word in ("-v", "=".join(pair))]
    done = subprocess.run(
        [psql, "-X", "-q", "-v", "ON_ERROR_STOP=1", "-d", database.admin, *variables, "-f", str(OPS / name)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (0, "") == (done.returncode, done.stderr)


def refused(dsn: str, statement: str) -> bool:
    """Whether the statement is refused for want of a right, in a session that wants to write."""
    with psycopg.connect(dsn) as connection:
        connection.execute("SET default_transaction_read_only = off; SET app.tenant_id = 'acme'")
        connection.commit()
        try:
            connection.execute(statement.encode())
        except psycopg.errors.InsufficientPrivilege:
            return True
        finally:
            connection.rollback()
    return False


def test_tenant_walls_take_what_can_be_hoarded(psql: str, migrated: Database) -> None:
    """Everything of the list is refused afterwards, for members of both reading roles; reading still works."""
    migrated.add_series("acme", "pump", "p")
    readers = [migrated.create_member(role) for role in ("traksense_readonly", "traksense_app")]
    before = {statement for statement in HOARDING if not refused(readers[0], statement)}
    for _ in range(2):  # safe to repeat
        run_file(psql, migrated, "tenant-walls.sql")

    for reader in readers:
        assert [] == [statement for statement in HOARDING if not refused(reader, statement)]
        assert [] == migrated.rows("SELECT * FROM latest", dsn=reader, tenant="acme")
        migrated.rows("SELECT pg_advisory_unlock_all()", dsn=reader)
    assert {"SELECT lo_create(0)", "SELECT pg_advisory_lock(1953653099, 2)"} <= before


def test_tenant_walls_close_the_databases_that_every_server_has(psql: str, migrated: Database) -> None:
    """Nothing is walled in there; what lets everybody in besides is named."""
    reader = migrated.create_member("traksense_readonly")
    migrated.run("GRANT CONNECT ON DATABASE postgres TO PUBLIC", dsn=migrated.admin)
    psycopg.connect(with_parts(reader, database="postgres")).close()
    run_file(psql, migrated, "tenant-walls.sql")

    for name in ("postgres", "template1"):
        with pytest.raises(psycopg.OperationalError, match="does not have CONNECT privilege"):
            psycopg.connect(with_parts(reader, database=name))
    psycopg.connect(reader).close()


def test_tenant_walls_leave_the_service_and_the_owner(psql: str, owned: Database) -> None:
    """The owner migrates, the service stages and emits, as before."""
    ingest = owned.create_member("traksense_ingest")
    run_file(psql, owned, "tenant-walls.sql")

    owned.migrate()
    for statement in ("CREATE TEMPORARY TABLE s (x int)", "SELECT pg_logical_emit_message(true, 'traksense', '')"):
        assert not refused(ingest, statement)
        assert not refused(owned.dsn, statement)


def test_tenant_login_has_its_limits(psql: str, migrated: Database) -> None:
    """One connection more than allowed is refused, the settings are there, and the tenant is named."""
    migrated.create_member("traksense_readonly")  # the role exists
    login = migrated.create_role("tenant")
    for connections in ("9", "2"):  # with other values to change them
        values = {"login": user_of(login), "role": "traksense_readonly", "tenant": "ac'me", "connections": connections}
        run_file(psql, migrated, "tenant-login.sql", **values)

    names = ("statement_timeout", "idle_session_timeout", "idle_in_transaction_session_timeout", "lock_timeout")
    found = {name: migrated.value(f"SHOW {name}", dsn=login) for name in (*names, "temp_file_limit", "app.tenant_id")}
    assert found == {
        "statement_timeout": "30s",
        "idle_session_timeout": "10min",
        "idle_in_transaction_session_timeout": "30s",
        "lock_timeout": "5s",
        "temp_file_limit": "1GB",
        "app.tenant_id": "ac'me",
    }
    with psycopg.connect(login), psycopg.connect(login), pytest.raises(psycopg.OperationalError, match="too many"):
        psycopg.connect(login)
    elsewhere = migrated.rows(
        "SELECT setdatabase, setconfig FROM pg_db_role_setting WHERE setrole = %s::regrole", user_of(login)
    )
    assert {0, migrated.value("SELECT oid FROM pg_database WHERE datname = current_database()")} == {
        r[0] for r in elsewhere
    }
    assert [["app.tenant_id=ac'me"]] == [config for database, config in elsewhere if database]
    with migrated.connect(login) as session, pytest.raises(psycopg.errors.InsufficientPrivilege):
        session.execute("SET temp_file_limit = -1")


def test_tenant_login_is_made_if_it_is_not_there(psql: str, migrated: Database) -> None:
    """Without a tenant none is named."""
    migrated.create_member("traksense_app")
    name = f"made_{migrated.value('SELECT md5(random()::text)')[:8]}"
    run_file(psql, migrated, "tenant-login.sql", login=name, role="traksense_app")
    migrated.roles.append(name)
    migrated.run(f"ALTER ROLE {name} PASSWORD 'made'", dsn=migrated.admin)
    login = with_parts(migrated.dsn, user=name, password="made")

    assert "5" == str(migrated.value("SELECT rolconnlimit FROM pg_roles WHERE rolname = %s", name))
    assert [] == migrated.rows("SELECT * FROM ts_measure", dsn=login)


def test_manual_ends_transactions_of_readers_only(owned: Database) -> None:
    """The query of operations.md, with an age of zero: the reader's session is ended, the service's and the owner's are
    not, though the owner may become the reader's role.
    """
    manual = (OPS / "operations.md").read_text(encoding="utf-8")
    (query,) = re.findall(r"(SELECT pg_terminate_backend\(pid\).*?;)", manual, re.DOTALL)
    reader, ingest = owned.create_member("traksense_readonly"), owned.create_member("traksense_ingest")
    owned.run(f"GRANT traksense_readonly TO {user_of(owned.dsn)}", dsn=owned.admin)
    with (
        psycopg.connect(reader) as reading,
        psycopg.connect(ingest) as writing,
        psycopg.connect(owned.dsn) as owning,
    ):
        for session in (reading, writing, owning):
            session.execute("SELECT 1")
        owned.rows(f"{query.rstrip(';').replace('10 minutes', '0')} AND datname = current_database()", dsn=owned.admin)

        writing.execute("SELECT 1")
        owning.execute("SELECT 1")
        with pytest.raises(psycopg.errors.AdminShutdown):
            reading.execute("SELECT 1")
