"""The pool of connections, and what is checked before the first of them is used."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Final

import asyncpg

from traksense.errors import ConfigError, StoreMisconfiguredError, StoreUnavailableError
from traksense.store import migrate

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from asyncpg.pool import PoolConnectionProxy

    from traksense.config import Settings

logger = logging.getLogger(__name__)

CONNECT_TIMEOUT_SECONDS: Final = 10.0
COMMAND_GRACE_SECONDS: Final = 5.0
"""How much longer than the server's statement time-out the client waits: only a server that does not answer reaches
it."""

LOCK_SHARE: Final = 0.5
"""lock_timeout as a share of statement_timeout, so that waiting for a lock is told apart from slow work."""

IDLE_CONNECTION_SECONDS: Final = 60.0


async def open_pool(settings: Settings, on_connect: Callable[..., Coroutine[Any, Any, None]]) -> asyncpg.Pool:
    """Open `DB_POOL_MIN` connections; more follow by need. asyncio-flavored.

    Args:
        settings: Where to, and how many.
        on_connect: Awaited with each new connection before it is used; asyncio-flavored.

    Source: asyncpg 0.32 has no time-outs of its own; a server behind a black hole is found only by `command_timeout`.

    Raises:
        asyncpg.PostgresError, OSError: The server is away or refuses.
    """
    milliseconds = int(settings.db_statement_timeout * 1000)
    pool = asyncpg.create_pool(
        settings.database.dsn.reveal(),
        min_size=settings.db_pool_min,
        max_size=settings.db_pool_max,
        timeout=CONNECT_TIMEOUT_SECONDS,
        command_timeout=settings.db_statement_timeout + COMMAND_GRACE_SECONDS,
        max_inactive_connection_lifetime=IDLE_CONNECTION_SECONDS,
        # A connection carries nothing from one batch to the next but its staging table: no round trip to reset it.
        reset=_keep,
        init=on_connect,
        server_settings={
            "application_name": f"traksense {settings.client_id}"[:63],
            "statement_timeout": str(milliseconds),
            "lock_timeout": str(int(milliseconds * LOCK_SHARE)),
            "idle_in_transaction_session_timeout": str(milliseconds),
            # Set per session, so that a default of the role or the database cannot weaken what PUBACK promises.
            "synchronous_commit": "on",
            "timezone": "UTC",
        },
    )
    try:
        return await pool
    except BaseException:
        pool.terminate()
        raise


async def check_server(connection: PoolConnectionProxy, *, allow_unsafe: bool) -> None:
    """Check version, durability and schema. asyncio-flavored.

    Raises:
        ConfigError: The server is too old, or would lose what it has committed.
        StoreMisconfiguredError: The schema is missing or older than this release.
    """
    server = connection.get_server_version()
    if server.major < migrate.SERVER_MINIMUM:
        raise ConfigError(
            [f"PostgreSQL {server.major} is too old, {migrate.SERVER_MINIMUM} or newer is needed @ DATABASE_URL"]
        )
    unsafe = await connection.fetchval(
        "SELECT string_agg(name, ' and ') FROM pg_settings"
        " WHERE name IN ('fsync', 'full_page_writes') AND setting = 'off'"
    )
    if unsafe and not allow_unsafe:
        fault = f"the server runs with {unsafe} off and would lose committed data in a crash"
        raise ConfigError([f"{fault}; DB_ALLOW_UNSAFE=true accepts that @ DATABASE_URL"])
    version = await migrate.read_version(connection)
    if version is None or version < migrate.LATEST:
        raise StoreMisconfiguredError(
            f"the database schema is at version {version or 0}, this release needs {migrate.LATEST}: "
            "run `traksense migrate`"
        )
    if version > migrate.LATEST:
        logger.warning("schema_newer", extra={"traksense_version": version, "traksense_known": migrate.LATEST})


async def read_incarnation(connection: Any) -> str:
    """What another database than before shows itself by: most restores need a restart or a new database, and a standby
    that was promoted has been started at another time. Tables that are refilled in place are not noticed.
    asyncio-flavored.
    """
    incarnation: str = await connection.fetchval(
        "SELECT pg_postmaster_start_time() || ' ' || oid FROM pg_database WHERE datname = current_database()"
    )
    return incarnation


async def ping(connection: PoolConnectionProxy) -> None:
    """Make sure that the server answers and takes writes. asyncio-flavored.

    Raises:
        StoreUnavailableError: It is read-only: a standby, or told so.
    """
    if await connection.fetchval("SHOW transaction_read_only") == "on":
        raise StoreUnavailableError("the server is read-only (SQLSTATE 25006)", "25006")


async def _keep(_connection: Any) -> None:
    """Reset nothing when a connection goes back to the pool. asyncio-flavored."""
