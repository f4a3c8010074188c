"""What each session of the service is told at its start, and the check that the server has listened.

Told by SQL, after connecting: PgBouncer refuses most parameters in the startup message, or drops them in silence if it
was told to ignore them, and a promise that rests on one of them is then empty. So each is read back. What cannot be set
is asked for: a server that would lose what it has committed is refused.

asyncio-flavored throughout. Sources: PostgreSQL 18 documentation, chapter 19; PgBouncer 1.24 documentation,
`ignore_startup_parameters`, `pool_mode`.
"""

from __future__ import annotations

import asyncio
import secrets
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any, Final, TypeAlias
from urllib.parse import parse_qs, urlsplit

import asyncpg

from traksense.errors import ServerUnfitError, StoreMisconfiguredError
from traksense.store.fault_words import POOLER

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

_FIXED: Final = {
    # No default of a role or a database may weaken what a PUBACK promises.
    "synchronous_commit": "on",
    # Its warning is how a cancelled wait for a synchronous standby is known.
    "client_min_messages": "warning",
    # hold_dictionary must see what was committed while it waited for its lock.
    "default_transaction_isolation": "read committed",
    "row_security": "on",
    "search_path": "pg_catalog",
    "TimeZone": "UTC",
    # A statement over many partitions takes JIT compilation seconds to minutes, in which nothing can interrupt it.
    "jit": "off",
    # Constants instead of parameters: the planner then looks at those partitions alone that a statement can need, and
    # locks no others.
    "plan_cache_mode": "force_custom_plan",
    "enable_partition_pruning": "on",
    # Our statements are small; what makes them slow is a server that was told to avoid the only good plan.
    "enable_indexscan": "on",
    "enable_nestloop": "on",
    "max_parallel_workers_per_gather": "0",
}

_SET: Final = """
SELECT name, set_config(name, value, false), pg_backend_pid() FROM unnest($1::text[], $2::text[]) AS s (name, value)
"""
_READ: Final = "SELECT name, current_setting(name, true) FROM unnest($1::text[]) AS name"
_MARKER: Final = "traksense.session"
_READ_MARKER: Final = "SELECT current_setting('traksense.session', true)"
_UNSAFE: Final = """
SELECT string_agg(name, ' and ') FROM pg_catalog.pg_settings
WHERE name IN ('fsync', 'full_page_writes') AND setting = 'off'
"""

# By the simple query protocol: nothing has to be prepared in a session that ends. As the login, which may end it; a
# role that it was given by ALTER ROLE … SET role may not. Statements sent together are one transaction.
_END_POOLED: Final = """
SET LOCAL ROLE NONE;
SELECT pg_terminate_backend(pid) FROM pg_catalog.pg_stat_activity
WHERE pid IN ({}) AND (state = 'idle' OR pid = pg_backend_pid())
"""
"""Not in the middle of what another client has begun there."""


END_SECONDS: Final = 5.0
"""How long that may take. Chosen by guess."""

WRITABLE: Final = "read-write"
"""Of several hosts, the one that takes writes. Source: libpq, target_session_attrs."""


if TYPE_CHECKING:
    _Connection: TypeAlias = asyncpg.Connection[asyncpg.Record]
else:
    _Connection = asyncpg.Connection  # the stubs' class is generic, the real one is not


class ServiceConnection(_Connection):
    """A connection that remembers what a COMMIT alone does not say.

    Attributes:
        marker: A text that only the server process of this connection was told.
        incarnation: Which server, and database, it leads to (`pool.read_incarnation`).
        process: The number of the server's process that has our settings. A pooler stands between if it is another one
            than the connection began with, in whose place PgBouncer gives a key of its own.
    """

    marker: str = ""
    process: int = 0
    incarnation: str | None = None
    _unreplicated: bool = False

    def take_unreplicated(self) -> bool:
        """Whether a COMMIT has returned before the synchronous standby had it, since this was last asked."""
        unreplicated, self._unreplicated = self._unreplicated, False
        return unreplicated

    def _process_log_message(self, fields: Mapping[str, Any], last_query: str) -> None:
        """Hear a notice as it arrives, so before whoever waits for the COMMIT goes on.

        asyncpg calls public log listeners later, from the event loop. Cancelling the wait for a standby makes COMMIT
        succeed, with a warning: the transaction is committed here alone. The name of the server's function tells it in
        every language. Source: PostgreSQL, src/backend/replication/syncrep.c, SyncRepWaitForLSN.
        """
        if fields.get("R") == "SyncRepWaitForLSN":
            self._unreplicated = True
        super()._process_log_message(fields, last_query)  # type: ignore[misc]  # private: setup.cfg pins asyncpg


def wanted(statement_timeout: float, *, lock_timeout: float | None = None) -> dict[str, str]:
    """The settings of a session whose statements may take so many seconds, and wait so many for a lock (0: for ever).

    By default it waits half as long for a lock, so that this is told apart from slow work.
    """
    lock_timeout = statement_timeout / 2 if lock_timeout is None else lock_timeout
    return {
        **_FIXED,
        "statement_timeout": str(int(statement_timeout * 1000)),
        "lock_timeout": str(int(lock_timeout * 1000)),
        "idle_in_transaction_session_timeout": str(int(statement_timeout * 1000)),
    }


def target(dsn: str) -> dict[str, Any]:
    """The arguments for asyncpg by which a list of hosts means the one that takes writes, unless the URL says else."""
    parts = urlsplit(dsn)
    query = parse_qs(parts.query)
    hosts = parts.netloc.rpartition("@")[2] or ",".join(query.get("host", []))
    several = "," in hosts and "target_session_attrs" not in query
    return {"target_session_attrs": WRITABLE} if several else {}


async def connect(
    dsn: str,
    *,
    application: str,
    settings: Mapping[str, str],
    connect_seconds: float,
    statement_seconds: float,
    **options: Any,
) -> ServiceConnection:
    """One connection of a command, told these settings.

    Args:
        dsn: Where to.
        application: For `pg_stat_activity`.
        settings: What to tell the session.
        connect_seconds: How long connecting may take.
        statement_seconds: How long each statement may take, should the server go silent.
        options: Others of asyncpg's.

    Raises:
        StoreMisconfiguredError: A setting does not hold.
        asyncpg.PostgresError, OSError, ValueError: The server is away or refuses, or the URL cannot be read.
    """
    connection = await asyncpg.connect(
        dsn,
        timeout=connect_seconds,
        command_timeout=statement_seconds,
        connection_class=ServiceConnection,
        server_settings={"application_name": application[:63]},
        **target(dsn),
        **options,
    )
    try:
        await prepare(connection, settings)
    except BaseException:
        connection.terminate()
        raise
    return connection


async def prepare(connection: ServiceConnection, settings: Mapping[str, str]) -> None:
    """Tell a new session its settings, and read them back.

    Raises:
        ServerUnfitError: A pooler stands between, which keeps no session.
        StoreMisconfiguredError: A setting does not hold.
        asyncpg.PostgresError, OSError: The server failed.
    """
    connection.marker = secrets.token_hex(8)
    told = {**settings, _MARKER: connection.marker}
    async with _noticing_poolers(connection):
        accepted = await connection.fetch(_SET, list(told), list(told.values()))
        connection.process = accepted[0][2]
        found = await connection.fetch(_READ, list(told))
        if (_MARKER, connection.marker) not in {tuple(row) for row in found}:
            raise ServerUnfitError(POOLER)
    if lost := sorted(name for (name, value, _), (_, kept) in zip(accepted, found, strict=True) if value != kept):
        raise StoreMisconfiguredError(f"the server does not keep {', '.join(lost)} of a session as it was set")


async def end_pooled(connection: Any, *others: Any) -> None:
    """End the session at the server, if a pooler would keep it for whoever comes next.

    With others, by one statement: in the place of what has ended the pool makes new ones, which are told all of it.

    What a session has from `ALTER DATABASE` or `ALTER ROLE`, such as that it only reads, it has for as long as it
    lives, and so has each client of the pooler that gets it (PgBouncer keeps one for an hour); in transaction mode, all
    that we have told it as well.
    """
    # However it ends, which the driver has many words for, the connection is not used again.
    with suppress(asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError, EOFError):
        own, processes = connection.get_server_pid(), {each.process for each in (connection, *others)}
        if own in processes:
            return
        # Not the driver's: what has been cancelled before is waited for, too.
        async with asyncio.timeout(END_SECONDS):
            await connection.execute(_END_POOLED.format(", ".join(map(str, processes))))


async def close(connection: ServiceConnection) -> None:
    """End the connection: at once, but for what a pooler would keep of it."""
    try:
        await end_pooled(connection)
    finally:
        connection.terminate()


async def check_durability(connection: ServiceConnection) -> None:
    """Ask for what cannot be set.

    Raises:
        ServerUnfitError: The server would lose committed data in a crash.
    """
    if unsafe := await connection.fetchval(_UNSAFE):
        fault = f"the server runs with {unsafe} off and would lose committed data in a crash"
        raise ServerUnfitError(f"{fault}; DB_ALLOW_UNSAFE=true accepts that")


async def check_pooler(first: ServiceConnection, second: ServiceConnection) -> None:
    """Make sure that two sessions are two, whatever stands between.

    Raises:
        ServerUnfitError: What one was told, the other one says.
    """
    async with _noticing_poolers(first, second):
        for connection in (first, second, first):
            if await connection.fetchval(_READ_MARKER) != connection.marker:
                raise ServerUnfitError(POOLER)


@asynccontextmanager
async def _noticing_poolers(*connections: ServiceConnection) -> AsyncIterator[None]:
    """A prepared statement that has gone, or is there already, is of another server process.

    What sessions have been told by then, the pooler's other clients would be given with them.
    """
    try:
        yield
    except (ServerUnfitError, asyncpg.InvalidSQLStatementNameError, asyncpg.DuplicatePreparedStatementError) as error:
        await end_pooled(*connections)
        raise ServerUnfitError(POOLER) from error
    except asyncpg.PostgresError:
        # Another client's statement of the same name, perhaps, which takes other parameters.
        await end_pooled(*connections)
        raise
