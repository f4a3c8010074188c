"""Looking at the walls between tenants from inside: who can, what is seen, and that nothing of it stays."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
import trio

from traksense.config import DatabaseUrl, Secret
from traksense.store import tenant_probe
from traksense.store.connection import open_connection
from traksense.store.tenant_probe import NoTemporaryRoleError, View, Walls

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
    with trio.fail_after(30):
        async with open_connection(DatabaseUrl(Secret(dsn)), application="test") as connection:
            return await connection.call(tenant_probe.look, "probe_of_a_test", TENANTS)


def own(superuser: psycopg.Connection[Any], dsn: str, role: str, attributes: str) -> str:
    """Gives the schema to a new role; its DSN."""
    superuser.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'x' {attributes}".encode())
    for name in ("traksense", "public"):
        superuser.execute(f"GRANT ALL ON SCHEMA {name} TO {role}".encode())
        superuser.execute(f"GRANT ALL ON ALL TABLES IN SCHEMA {name} TO {role} WITH GRANT OPTION".encode())
    superuser.execute(f"GRANT {'postgres'} TO {role}".encode())
    return re.sub("//postgres:[^@]*@", f"//{role}:x@", dsn)


@pytest.mark.every_postgres
async def test_look_sees_the_tenant_that_it_names(database: str, superuser: psycopg.Connection[Any]) -> None:
    """With the walls whole, a role sees the rows of the tenant that it names and no others; the role does not stay."""
    walls = await look(database)

    for tenant in TENANTS:
        assert 1 == walls.operator[tenant, "ingest_errors"]
        assert View(own=1, others=False) == walls.tenant[tenant, "ingest_errors"]
    assert ([], []) == (walls.unnamed, walls.private)
    assert superuser.execute("SELECT FROM pg_roles WHERE rolname = 'probe_of_a_test'").fetchone() is None


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


@pytest.mark.every_postgres
async def test_look_works_for_whoever_may_create_roles(
    database: str, superuser: psycopg.Connection[Any], unique: Callable[[str], str]
) -> None:
    """A role that is no superuser but may create roles can become the one that it created."""
    role = unique("maker").replace("-", "_")
    dsn = own(superuser, database, role, "CREATEROLE")
    try:
        walls = await look(dsn)
    finally:
        superuser.execute(f"DROP OWNED BY {role}; DROP ROLE {role}".encode())

    assert View(own=1, others=False) == walls.tenant["acme", "ingest_errors"]


async def test_look_says_that_it_may_not(
    database: str, superuser: psycopg.Connection[Any], unique: Callable[[str], str]
) -> None:
    """A role that may not create roles gets an error of its own, so that the check is skipped and not failed."""
    role = unique("plain").replace("-", "_")
    dsn = own(superuser, database, role, "")
    try:
        with pytest.raises(NoTemporaryRoleError, match="permission denied"):
            await look(dsn)
    finally:
        superuser.execute(f"DROP OWNED BY {role}; DROP ROLE {role}".encode())
