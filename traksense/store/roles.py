"""The roles that operators give to login roles, and their rights: `sql/roles.sql`, run after the migrations.

asyncio-flavored throughout.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import logging
    from collections.abc import Iterable

INGEST: Final = "traksense_ingest"
APP: Final = "traksense_app"
READONLY: Final = "traksense_readonly"
ROLES: Final = (INGEST, APP, READONLY)

FILE: Final = "roles.sql"

_MISSING: Final = "SELECT name FROM unnest($1::text[]) AS name WHERE pg_catalog.to_regrole(name) IS NULL"
_NAME_TENANTS: Final = "SELECT set_config('app.tenant_ids', $1, true)"


async def apply_roles(
    connection: Any, sql: str, *, log: logging.Logger | logging.LoggerAdapter[logging.Logger]
) -> tuple[str, ...]:
    """Create the roles that this one may create, and give those that exist their rights; returns those that are
    missing.

    Args:
        connection: A session of the owner of the schema.
        sql: What `roles.sql` says.
        log: Where missing roles are told.

    asyncio-flavored.
    """
    async with connection.transaction():
        await connection.execute(sql)
    missing = tuple(row["name"] for row in await connection.fetch(_MISSING, list(ROLES)))
    if missing:
        log.warning("roles_missing", extra={"traksense_roles": ", ".join(missing)})
    return missing


async def name_tenants(connection: Any, tenants: Iterable[str]) -> None:
    """Name the tenants that this transaction writes for: the database refuses a row of any other.

    Only for a member of `traksense_ingest`; an operator is bound by nothing. asyncio-flavored.
    """
    await connection.execute(_NAME_TENANTS, "/".join(sorted(tenants)))
