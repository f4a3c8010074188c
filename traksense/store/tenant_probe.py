"""Looks at the public relations through the eyes of a tenant: what `validate` knows of the walls between tenants."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Final

import asyncpg
import attrs

from traksense.errors import TraksenseError

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


class NoTemporaryRoleError(TraksenseError):
    """This role may not create another and become it: the walls cannot be looked at from inside."""


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
        tenant: As a role with nothing but SELECT on the public relations sees it, having named the tenant.
        unnamed: Relations that show rows to a session that named no tenant.
        private: Private relations that the role can read.
    """

    relations: list[str] = attrs.field(factory=list)
    operator: dict[tuple[str, str], int] = attrs.field(factory=dict)
    tenant: dict[tuple[str, str], View] = attrs.field(factory=dict)
    unnamed: list[str] = attrs.field(factory=list)
    private: list[str] = attrs.field(factory=list)


async def look(connection: Connection, role: str, tenants: Sequence[str]) -> Walls:
    """Create the role, look as that role, and roll everything back.

    Raises:
        NoTemporaryRoleError: The connection's role may not do that.

    asyncio-flavored.
    """
    walls = Walls()
    with contextlib.suppress(_RollBackError):
        async with connection.transaction(isolation="repeatable_read"):
            await _look(connection, role, tenants, walls)
            raise _RollBackError
    return walls


class _RollBackError(Exception):
    """Nothing of what was done is to stay."""


async def _look(connection: Connection, role: str, tenants: Sequence[str], walls: Walls) -> None:
    relations = walls.relations = [row[0] for row in await connection.fetch(_PRESENT, RELATIONS)]
    private = [row[0] for row in await connection.fetch(_PRIVATE)]
    for tenant in tenants:
        for relation in relations:
            walls.operator[tenant, relation] = await connection.fetchval(_own(relation), tenant)
    try:
        await _become(connection, role, relations)
    except asyncpg.InsufficientPrivilegeError as error:
        raise NoTemporaryRoleError(str(error).splitlines()[0]) from error
    for tenant in tenants:
        await _name(connection, tenant)
        for relation in relations:
            own = await connection.fetchval(_own(relation), tenant)
            walls.tenant[tenant, relation] = View(own, await connection.fetchval(_others(relation), tenant))
    await _name(connection, "")
    walls.unnamed = [r for r in relations if await connection.fetchval(_others(r), "")]
    walls.private = [r for r in private if await _readable(connection, r)]


async def _become(connection: Connection, role: str, relations: Sequence[str]) -> None:
    await connection.execute(f'CREATE ROLE "{role}" NOLOGIN')
    superuser = await connection.fetchval("SELECT rolsuper FROM pg_catalog.pg_roles WHERE rolname = current_user")
    if not superuser:
        # Since PostgreSQL 16, whoever creates a role may grant it, but is not yet allowed to become it.
        option = " WITH SET TRUE, INHERIT FALSE" if connection.get_server_version().major >= 16 else ""
        await connection.execute(f'GRANT "{role}" TO CURRENT_USER{option}')
    for relation in relations:
        await connection.execute(f'GRANT SELECT ON public.{relation} TO "{role}"')
    await connection.execute(f'SET LOCAL ROLE "{role}"')


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
