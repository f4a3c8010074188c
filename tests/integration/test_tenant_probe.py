"""Looking at the walls between tenants from inside: who can, what is seen, and that nothing of it stays."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
import trio

from tests.patience import HANG_SECONDS
from traksense.config import DatabaseUrl, Secret
from traksense.store import tenant_probe
from traksense.store.connection import open_connection
from traksense.store.tenant_probe import NoReaderError, View, Walls

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

TENANTS = ["acme", "bravo"]


@pytest.fixture
def superuser(database: str) -> Iterator[psycopg.Connection[Any]]:
    """A session in a database where two tenants have a dead letter each."""
    with psycopg.connect(database, autocommit=True) as connection:
        for tenant in TENANTS:
            connection.execute(
                "INSERT INTO ingest_errors (tenant_id, topic, payload, reason, digest)"
                " VALUES (%s, 't', '', 'parse_error', sha256(%s::bytea))",
                (tenant, tenant.encode()),
            )
        yield connection


async def look(dsn: str) -> Walls:
    with trio.fail_after(HANG_SECONDS):
        async with open_connection(DatabaseUrl(Secret(dsn)), application="test") as connection:
            return await connection.call(tenant_probe.look, TENANTS)


def own(superuser: psycopg.Connection[Any], dsn: str, role: str, attributes: str) -> str:
    """Gives the schema to a new role; its DSN."""
    superuser.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'x' {attributes}".encode())
    for name in ("traksense", "public"):
        superuser.execute(f"GRANT ALL ON SCHEMA {name} TO {role}".encode())
        superuser.execute(f"GRANT ALL ON ALL TABLES IN SCHEMA {name} TO {role} WITH GRANT OPTION".encode())
    return re.sub("//postgres:[^@]*@", f"//{role}:x@", dsn)


@pytest.mark.every_postgres
async def test_look_sees_the_tenant_that_it_names(database: str, superuser: psycopg.Connection[Any]) -> None:
    """With the walls whole, the dashboards' role sees the rows of the tenant that it names and no others."""
    walls = await look(database)

    for tenant in TENANTS:
        assert 1 == walls.operator[tenant, "ingest_errors"]
        assert View(own=1, others=False) == walls.tenant[tenant, "ingest_errors"]
    assert ([], [], []) == (walls.unreadable, walls.unnamed, walls.private)


@pytest.mark.parametrize(
    ("hole", "seen"),
    [
        ("CREATE POLICY hole ON ingest_errors USING (true)", (True, ["ingest_errors"], [])),
        (
            "CREATE POLICY hole ON ingest_errors USING (tenant_id <> 'x' AND current_setting('app.tenant_id') <> '')",
            (True, [], []),
        ),
        (
            "GRANT USAGE ON SCHEMA traksense TO PUBLIC; GRANT SELECT ON traksense.measure TO PUBLIC",
            (False, [], ["traksense.measure"]),
        ),
    ],
)
async def test_look_finds_the_hole(
    database: str, superuser: psycopg.Connection[Any], hole: str, seen: tuple[bool, list[str], list[str]]
) -> None:
    """A policy that shows too much, or a right on what is private, is seen as what it is."""
    superuser.execute(hole.encode())

    walls = await look(database)

    assert seen == (walls.tenant["acme", "ingest_errors"].others, walls.unnamed, walls.private)


async def test_look_names_what_cannot_be_read(database: str, superuser: psycopg.Connection[Any]) -> None:
    """A relation that the role has no right on is named; the others are looked at."""
    superuser.execute("REVOKE SELECT ON cmd_ack FROM traksense_readonly")

    walls = await look(database)

    assert ["cmd_ack"] == walls.unreadable
    assert View(own=1, others=False) == walls.tenant["acme", "ingest_errors"]


@pytest.mark.every_postgres
async def test_look_works_for_an_owner_of_nothing_else(
    database: str, superuser: psycopg.Connection[Any], unique: Callable[[str], str]
) -> None:
    """A role without attributes can look once it is a member of the dashboards' role; before, it is told how."""
    role = unique("plain").replace("-", "_")
    dsn = own(superuser, database, role, "")
    try:
        with pytest.raises(NoReaderError, match=f"{role} of DATABASE_URL may not become traksense_readonly") as raised:
            await look(dsn)
        superuser.execute(raised.value.remedy.encode())
        walls = await look(dsn)
    finally:
        superuser.execute(f"DROP OWNED BY {role}; DROP ROLE {role}".encode())

    assert View(own=1, others=False) == walls.tenant["acme", "ingest_errors"]


@pytest.mark.every_postgres
async def test_look_works_for_whoever_may_grant_it(
    database: str, superuser: psycopg.Connection[Any], unique: Callable[[str], str]
) -> None:
    """A role that may grant the dashboards' role, as whoever has created it may, becomes it; nothing of it stays."""
    role = unique("maker").replace("-", "_")
    dsn = own(superuser, database, role, "CREATEROLE")
    sixteen = superuser.info.server_version >= 160000
    if sixteen:
        superuser.execute(f"GRANT traksense_readonly TO {role} WITH ADMIN TRUE, SET FALSE, INHERIT FALSE".encode())
    members = f"SELECT admin_option FROM pg_auth_members WHERE member = '{role}'::regrole ORDER BY 1".encode()
    before = superuser.execute(members).fetchall()
    try:
        walls = await look(dsn)
        assert before == superuser.execute(members).fetchall()
    finally:
        superuser.execute(f"DROP OWNED BY {role}; DROP ROLE {role}".encode())

    assert View(own=1, others=False) == walls.tenant["acme", "ingest_errors"]
