"""The pool of connections, who uses them, and what is checked before the first of them is used."""

from __future__ import annotations

import logging
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any, Final, TypeVar

import asyncpg

from traksense.errors import PoolBusyError, ServerUnfitError
from traksense.store import migrate, session_settings
from traksense.store.connecting import explain
from traksense.store.schema_version import check_schema
from traksense.store.sql_files import LATEST
from traksense.store.sqlstate import FOREIGN, is_broken_session

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine

    from asyncpg.pool import PoolConnectionProxy

    from traksense.config import Settings

logger = logging.getLogger(__name__)

T = TypeVar("T")

CONNECT_TIMEOUT_SECONDS: Final = 10.0
COMMAND_GRACE_SECONDS: Final = 5.0
"""How much longer than the server's statement time-out the client waits: only a server that does not answer reaches
it."""

ACQUIRE_SECONDS: Final = 10.0
"""For a connection to be free, or made."""

IDLE_CONNECTION_SECONDS: Final = 60.0

# asyncpg keeps DB_POOL_MIN connections open by itself, and tells with a traceback each time that it cannot. The health
# of the database says so, too, in one line.
logging.getLogger("asyncpg.pool").addFilter(lambda record: record.exc_info is None)


async def open_pool(settings: Settings, on_connect: Callable[..., Coroutine[Any, Any, None]]) -> asyncpg.Pool:
    """Open `DB_POOL_MIN` connections; opens more as needed. asyncio-flavored.

    Args:
        settings: Where to, and how many.
        on_connect: Awaited with each new connection before it is used, once its session is prepared; asyncio-flavored.

    Source: asyncpg 0.32 has no time-outs of its own; a server behind a black hole is found only by `command_timeout`.

    Raises:
        ServerUnfitError: The server, or a pooler before it, cannot keep what is promised.
        StoreError: The server is away or refuses.
    """
    dsn = settings.database.dsn.reveal()
    session = session_settings.wanted(settings.db_statement_timeout)

    async def prepare(connection: Any) -> None:
        await session_settings.prepare(connection, session)
        try:
            if not settings.db_allow_unsafe:
                await session_settings.check_durability(connection)
            await on_connect(connection)
        except Exception:
            # The driver only hangs up: a pooler's other clients would be given what the session has been told.
            await session_settings.end_pooled(connection)
            raise

    pool = asyncpg.create_pool(
        dsn,
        min_size=settings.db_pool_min,
        max_size=settings.db_pool_max,
        timeout=CONNECT_TIMEOUT_SECONDS,
        command_timeout=settings.db_statement_timeout + COMMAND_GRACE_SECONDS,
        max_inactive_connection_lifetime=IDLE_CONNECTION_SECONDS,
        connection_class=session_settings.ServiceConnection,
        # A connection carries nothing from one batch to the next but its staging table: no round trip to reset it.
        reset=_keep,
        init=prepare,
        server_settings={"application_name": f"traksense {settings.client_id}"[:63]},
        **session_settings.target(dsn),
    )
    try:
        return await pool
    except FOREIGN as error:
        pool.terminate()
        raise await explain(error, dsn) from error
    except BaseException:
        pool.terminate()
        raise


class Connections:
    """The pool, and what is done about a connection that is of no use. asyncio-flavored."""

    def __init__(self, settings: Settings, on_connect: Callable[..., Coroutine[Any, Any, None]]) -> None:
        """Not open yet. For `on_connect` see `open_pool`."""
        self._settings = settings
        self._on_connect = on_connect
        self._pool: asyncpg.Pool | None = None

    async def open(self) -> None:
        """Open the pool, unless it is open; raises what `open_pool` does."""
        if self._pool is None:
            self._pool = await open_pool(self._settings, self._on_connect)

    @asynccontextmanager
    async def acquire(self) -> AsyncIterator[Any]:
        """A connection, for the duration.

        Raises:
            PoolBusyError: Others have all of them for too long.
        """
        pool = self._pool
        assert pool is not None  # nobody asks before it is open
        try:
            connection = await pool.acquire(timeout=ACQUIRE_SECONDS)
        except TimeoutError as error:
            if pool.get_idle_size() == 0 and pool.get_size() == pool.get_max_size():
                raise PoolBusyError("all connections to the database are in use, each of them for long") from error
            raise
        try:
            yield connection
        finally:
            await pool.release(connection)

    async def use(self, function: Callable[..., Awaitable[T]], *args: object) -> T:
        """Call a function with a connection; one that has turned out to be of no use is not used again."""
        async with self.acquire() as connection:
            try:
                return await function(connection, *args)
            except asyncpg.PostgresError as error:
                if isinstance(error, asyncpg.ReadOnlySQLTransactionError):
                    # The server has become a standby, or was told to take nothing. What comes next shall look for the
                    # one that takes writes, and find out when this one does again: for a session, that may never be.
                    await self.expire()
                    await session_settings.end_pooled(connection)
                if is_broken_session(error.sqlstate):
                    with suppress(asyncpg.InterfaceError):  # it has ended
                        connection.terminate()
                raise

    async def expire(self) -> None:
        """Replace every connection before it is used again."""
        if self._pool is not None:  # else it is being opened
            await self._pool.expire_connections()

    def terminate(self) -> None:
        """End every connection now. Needs no event loop turn."""
        if self._pool is not None:
            self._pool.terminate()


async def check_server(connection: PoolConnectionProxy) -> None:
    """Check version and schema; a newer schema is told in the log. asyncio-flavored.

    Raises:
        ServerUnfitError: The server is too old.
        StoreMisconfiguredError: The schema is missing or older than this release.
    """
    server = connection.get_server_version()
    if server.major < migrate.SERVER_MINIMUM:
        raise ServerUnfitError(f"PostgreSQL {server.major} is too old, {migrate.SERVER_MINIMUM} or newer is needed")
    version = await check_schema(connection)
    if version > LATEST:
        logger.warning("schema_newer", extra={"traksense_version": version, "traksense_known": LATEST})


async def read_incarnation(connection: Any) -> str:
    """What another database than before shows itself by, beside its dictionary's token: a copy under the same address
    has another oid, and a server that was restored or promoted has been started at another time. asyncio-flavored.
    """
    incarnation: str = await connection.fetchval(
        "SELECT pg_postmaster_start_time() || ' ' || oid FROM pg_database WHERE datname = current_database()"
    )
    return incarnation


async def _keep(_connection: Any) -> None:
    """Reset nothing when a connection goes back to the pool. asyncio-flavored."""
