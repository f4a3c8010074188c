"""The probe of the database: it fails if and only if some message would not be stored."""

from __future__ import annotations

import secrets
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit, urlunsplit

import psycopg
import pytest
import trio
from fresh_messages import known_device, refusal

from tests.contract.test_store import open_postgres_store
from tests.patience import HANG_SECONDS
from traksense.errors import StoreError
from traksense.store import probe

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from traksense.store.postgres import PostgresStore

TABLES: Final = (
    "traksense.tenant",
    "traksense.device",
    "traksense.series",
    "traksense.meta",
    "traksense.measure",
    "traksense.dirty",
    "traksense.dictionary_epoch",
    "traksense.ingest_session",
    "public.cmd_ack",
    "public.device_event",
    "public.ingest_errors",
)

_RIGHTS: Final = """
SELECT format('%s ON %s', string_agg(DISTINCT privilege || columns, ', '), relation) FROM (
    SELECT format('%I.%I', table_schema, table_name) AS relation, privilege_type AS privilege, '' AS columns
    FROM information_schema.role_table_grants WHERE grantee = 'traksense_ingest'
    UNION ALL
    SELECT format('%I.%I', table_schema, table_name), privilege_type, format('(%I)', column_name)
    FROM information_schema.role_column_grants c WHERE grantee = 'traksense_ingest' AND NOT EXISTS (
        SELECT FROM information_schema.role_table_grants t
        WHERE (t.grantee, t.table_schema, t.table_name, t.privilege_type)
            = (c.grantee, c.table_schema, c.table_name, c.privilege_type)
    )
) AS r GROUP BY relation, privilege
UNION ALL
SELECT format('EXECUTE ON ROUTINE %s', p.oid::regprocedure)
FROM pg_proc p, aclexplode(p.proacl) a
WHERE p.pronamespace = 'traksense'::regnamespace AND a.grantee = 'traksense_ingest'::regrole
UNION ALL SELECT 'USAGE ON SCHEMA traksense'
ORDER BY 1
"""


@asynccontextmanager
async def as_service(database: str, *, timeout: str = "30") -> AsyncIterator[PostgresStore]:
    """A store that has logged in as a member of traksense_ingest, and knows a device."""
    role, password = f"service_{secrets.token_hex(4)}", secrets.token_hex(8)
    parts = urlsplit(database)
    dsn = urlunsplit(parts._replace(netloc=f"{role}:{password}@{parts.hostname}:{parts.port}"))
    with psycopg.connect(database, autocommit=True) as owner:
        owner.execute(f"CREATE ROLE {role} LOGIN PASSWORD '{password}' IN ROLE traksense_ingest".encode())
        try:
            async with open_postgres_store(dsn, DB_STATEMENT_TIMEOUT=timeout) as store:
                await store.write([known_device()])
                yield store
        finally:
            owner.execute(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = '{role}'".encode())
            owner.execute(f"DROP ROLE {role}".encode())


async def compare(store: PostgresStore, after: str) -> str | None:
    """What is wrong with the probe's answer, if anything is."""
    try:
        await store.probe()
    except StoreError as error:
        said = str(error)
    else:
        said = ""
    refused = await refusal(store)
    return None if bool(said) == bool(refused) else f"{after}: refused {refused}, but the probe says {said or 'yes'}"


async def execute(owner: psycopg.Connection[Any], statement: str) -> None:
    """In a thread: it may wait for a transaction of the store, which lives in this process and has to go on."""
    await trio.to_thread.run_sync(owner.execute, statement.encode())


@pytest.fixture
def quick_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "LOCK_SECONDS", 0.3)


@pytest.mark.usefixtures("quick_locks")
async def test_probe_misses_each_right_that_a_message_needs(database: str) -> None:
    """Whatever right is taken from the service's role: the probe fails if and only if some message needs it."""
    wrong = []
    with trio.fail_after(HANG_SECONDS), psycopg.connect(database, autocommit=True) as owner:
        rights = [str(row[0]) for row in owner.execute(_RIGHTS)]
        assert len(rights) > 25
        async with as_service(database, timeout="1") as store:
            for right in rights:
                await execute(owner, f"REVOKE {right} FROM traksense_ingest")
                wrong.append(await compare(store, f"REVOKE {right}"))
                await execute(owner, f"GRANT {right} TO traksense_ingest")
            wrong.append(await compare(store, "all rights given back"))
    assert not any(wrong), "\n".join(line for line in wrong if line)


@pytest.mark.usefixtures("quick_locks")
@pytest.mark.parametrize("how", ["locked", "renamed"])
async def test_probe_misses_each_table_that_a_message_needs(database: str, how: str) -> None:
    """Whichever table is locked against writers, or renamed: as above."""
    wrong = []
    with trio.fail_after(HANG_SECONDS), psycopg.connect(database) as owner:
        async with as_service(database, timeout="1") as store:
            for table in TABLES:
                schema, name = table.split(".")
                if how == "locked":
                    await execute(owner, f"LOCK TABLE {table} IN SHARE ROW EXCLUSIVE MODE")
                else:
                    await execute(owner, f"ALTER TABLE {table} RENAME TO elsewhere")
                    owner.commit()
                wrong.append(await compare(store, f"{table} {how}"))
                if how == "renamed":
                    await execute(owner, f"ALTER TABLE {schema}.elsewhere RENAME TO {name}")
                owner.commit()
            wrong.append(await compare(store, "all as before"))
    assert not any(wrong), "\n".join(line for line in wrong if line)


async def test_probe_leaves_nothing(database: str) -> None:
    """What it wrote is gone, and nothing of it is seen meanwhile."""
    tables = [table for table in TABLES if table not in ("traksense.dictionary_epoch", "traksense.ingest_session")]
    counts: list[Any] = []
    with trio.fail_after(HANG_SECONDS), psycopg.connect(database, autocommit=True) as owner:
        async with as_service(database) as store:
            owner.execute("DELETE FROM traksense.dirty")  # a roll-up may take the known device's at any time
            for _ in range(3):
                await store.probe()
                counts.append([owner.execute(f"SELECT count(*) FROM {t}".encode()).fetchone() for t in tables])
        # Not even a number of four bytes: there would be one every few seconds, for years.
        numbers = owner.execute("SELECT max(last_value) FROM pg_sequences WHERE schemaname = 'traksense'").fetchone()
    assert numbers == (1,)
    assert counts[0] == counts[1] == counts[2]
    assert [(1,), (1,), (1,), (0,), (1,), (0,)] == counts[0][:6]
