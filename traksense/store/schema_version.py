"""Which migrations a database has had: the first question of whoever works on it. asyncio-flavored throughout."""

from __future__ import annotations

from typing import TYPE_CHECKING

from traksense.errors import StoreMisconfiguredError
from traksense.store.migration_lock import schema_exists
from traksense.store.sql_files import LATEST
from traksense.store.sqlstate import FOREIGN, translate

if TYPE_CHECKING:
    from traksense.store.migrate import Connection


async def read_version(connection: Connection) -> int | None:
    """The schema version of the database, or None if it has no traksense schema.

    Raises:
        StoreMisconfiguredError: The role may not read `traksense.schema_version`.
        StoreUnavailableError: The connection was lost.
    """
    try:
        if not await schema_exists(connection):
            return None
        version: int | None = await connection.fetchval("SELECT max(version) FROM traksense.schema_version")
    except FOREIGN as error:
        raise translate(error) from error
    return version


async def check_schema(connection: Connection) -> int:
    """Make sure that the schema is what this release needs, or newer; its version.

    Raises:
        StoreMisconfiguredError: There is none, or it is older.
        StoreError: The database refused or failed.
    """
    version = await read_version(connection)
    if version is None or version < LATEST:
        raise StoreMisconfiguredError(
            f"the database schema is at version {version or 0}, this release needs {LATEST}: run `traksense migrate`"
        )
    return version


def newer(version: int) -> str:
    """What there is to say of a database that a newer release has migrated."""
    return f"the database has schema version {version}, this release knows {LATEST}: upgrade traksense"
