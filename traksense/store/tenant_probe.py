"""Looks at the public relations through the eyes of a tenant: what `validate` knows of the walls between tenants."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Final

import asyncpg
import attrs

from traksense.errors import TraksenseError
from traksense.store.roles import READONLY

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import TypeAlias

    Connection: TypeAlias = asyncpg.Connection[asyncpg.Record]

RELATIONS: Final = (
    "ts_measure",
    "ts_measure_1m",
    "ts_measure_5m",
    "ts_measure_1h",
    "cmd_ack",
    "device_event",
    "ingest_errors",
    "latest",
    "device_status",
)
"""What tenants may be given to read. Those that this database does not have are left out; the rest of the schema public
is not ours."""

_PRESENT: Final = "SELECT r FROM unnest($1::text[]) AS r WHERE to_regclass('public.' || r) IS NOT NULL"

_PRIVATE: Final = """
SELECT format('%I.%I', 'traksense', relname) FROM pg_catalog.pg_class
WHERE relnamespace = 'traksense'::regnamespace AND relkind IN ('r', 'p', 'v', 'm') AND NOT relispartition ORDER BY 1
"""


class NoReaderError(TraksenseError):
    """Our role may not become the one that dashboards have: the walls cannot be looked at from inside.

    Attributes:
        remedy: What a superuser runs.
    """

    def __init__(self, what: str, remedy: str) -> None:
        self.remedy = remedy
        super().__init__(what)


@attrs.frozen
class View:
    """What a session sees of one relation.

    Attributes:
        own: Rows of the tenant that it named.
        others: Whether it sees any row of somebody else.
    """

    own: int
    others: bool


@attrs.define
class Walls:
    """What was seen. Keys of the views are (tenant, relation).

    Attributes:
        relations: Which were looked at.
        operator: As the operator sees it, who sees all.
        tenant: As `traksense_readonly` sees it, having named the tenant.
        unreadable: Relations that the role may not read at all, and should.
        unnamed: Relations that show rows to a session that named no tenant.
        private: Private relations that the role can read.
    """

    relations: list[str] = attrs.field(factory=list)
    operator: dict[tuple[str, str], int] = attrs.field(factory=dict)
    tenant: dict[tuple[str, str], View] = attrs.field(factory=dict)
    unreadable: list[str] = attrs.field(factory=list)
    unnamed: list[str] = attrs.field(factory=list)
    private: list[str] = attrs.field(factory=list)


async def look(connection: Connection, tenants: Sequence[str]) -> Walls:
    """Become the role that dashboards have, look, and roll everything back.

    Raises:
        NoReaderError: The connection's role may not do that.

    asyncio-flavored.
    """
    walls = Walls()
    with contextlib.suppress(_RollBackError):
        async with connection.transaction(isolation="repeatable_read"):
            await _look(connection, tenants, walls)
            raise _RollBackError
    return walls


class _RollBackError(Exception):
    """Nothing of what was done is to stay."""


async def _look(connection: Connection, tenants: Sequence[str], walls: Walls) -> None:
    relations = walls.relations = [row[0] for row in await connection.fetch(_PRESENT, RELATIONS)]
    private = [row[0] for row in await connection.fetch(_PRIVATE)]
    for tenant in tenants:
        for relation in relations:
            walls.operator[tenant, relation] = await connection.fetchval(_own(relation), tenant)
    await _become_reader(connection)
    await _name(connection, "")
    walls.unreadable = [r for r in relations if not await _readable(connection, f"public.{r}")]
    readable = [r for r in relations if r not in walls.unreadable]
    for tenant in tenants:
        await _name(connection, tenant)
        for relation in readable:
            own = await connection.fetchval(_own(relation), tenant)
            walls.tenant[tenant, relation] = View(own, await connection.fetchval(_others(relation), tenant))
    await _name(connection, "")
    walls.unnamed = [r for r in readable if await connection.fetchval(_others(r), "")]
    walls.private = [r for r in private if await _readable(connection, r)]


async def _become_reader(connection: Connection) -> None:
    if await connection.fetchval("SELECT to_regrole($1) IS NULL", READONLY):
        remedy = f"CREATE ROLE {READONLY} NOLOGIN; then run `traksense migrate` again as the owner"
        raise NoReaderError(f"there is no role {READONLY}", remedy)
    major = connection.get_server_version().major
    # Since PostgreSQL 16, who has created a role may grant it, but is not yet allowed to become it.
    option = " WITH SET TRUE, INHERIT FALSE" if major >= 16 else ""
    for grant in ("", f"GRANT {READONLY} TO CURRENT_USER{option};"):
        try:
            async with connection.transaction():
                await connection.execute(f"{grant} SET LOCAL ROLE {READONLY}")
            return
        except asyncpg.InsufficientPrivilegeError:
            continue
    user = await connection.fetchval("SELECT quote_ident(current_user)")
    raise NoReaderError(f"the role {user} of DATABASE_URL may not become {READONLY}", f"GRANT {READONLY} TO {user}")


async def _name(connection: Connection, tenant: str) -> None:
    await connection.execute("SELECT set_config('app.tenant_id', $1, true)", tenant)


async def _readable(connection: Connection, relation: str) -> bool:
    try:
        async with connection.transaction():
            await connection.fetch(f"SELECT FROM {relation} LIMIT 1")
    except asyncpg.InsufficientPrivilegeError:
        return False
    return True


def _own(relation: str) -> str:
    return f"SELECT count(*) FROM public.{relation} WHERE tenant_id = $1"  # noqa: S608  (constants)


def _others(relation: str) -> str:
    # EXISTS, so that a wall with a hole costs no scan of everybody's rows.
    return f"SELECT EXISTS (SELECT FROM public.{relation} WHERE tenant_id IS DISTINCT FROM $1)"  # noqa: S608  (constants)
