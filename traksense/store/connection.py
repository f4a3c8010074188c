"""One connection for a command, and its border between Trio and asyncio (`postgres` is that border for the service)."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final, TypeVar

import asyncpg
import trio
from trio_asyncio import aio_as_trio

from traksense.errors import StoreError, StoreUnavailableError, TraksenseError
from traksense.store import session_settings
from traksense.store.asyncio_loop import open_asyncio_loop
from traksense.store.connecting import connect, named
from traksense.store.sqlstate import translate

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from typing import Concatenate, ParamSpec

    from traksense.config import DatabaseUrl
    from traksense.store.session_settings import ServiceConnection

    P = ParamSpec("P")

T = TypeVar("T")

CONNECT_SECONDS: Final = 10.0
STATEMENT_SECONDS: Final = 60.0
"""For one statement. Chosen by guess: a person waits for it, and the service goes on beside it."""

GRACE_SECONDS: Final = 5.0
"""How much longer we wait than the server's own time-out: only a server that does not answer reaches it."""


class DatabaseConnection:
    """See `open_connection`. Any task may call; one call at a time is on the wire."""

    def __init__(self, connection: asyncpg.Connection[asyncpg.Record], url: DatabaseUrl) -> None:
        self._connection = connection
        self._url = url
        self._turn = trio.Lock()

    @property
    def server_version(self) -> str:
        """PostgreSQL's version, like `15.18`."""
        return str(self._connection.get_settings().server_version).split()[0]

    async def fetch(self, sql: str, *arguments: object) -> list[tuple[Any, ...]]:
        """Run one statement, in a transaction of its own; its rows. Trio-flavored.

        Raises:
            StoreError: The database refused or failed.
        """
        return [tuple(row) for row in await self.call(asyncpg.Connection.fetch, sql, *arguments)]

    async def call(
        self,
        function: Callable[Concatenate[asyncpg.Connection[asyncpg.Record], P], Awaitable[T]],
        *arguments: P.args,
        **options: P.kwargs,
    ) -> T:
        """Run an asyncio-flavored coroutine function that takes the connection first. Trio-flavored.

        Raises:
            StoreError: The database refused or failed.
        """
        async with self._turn:
            try:
                return await _call(function, self._connection, *arguments, **options)
            except StoreError as error:
                if self._connection.is_closed():
                    raise StoreUnavailableError(f"{self._url}: {error}", error.sqlstate) from error
                raise named(self._url, error) from error


@asynccontextmanager
async def open_connection(
    url: DatabaseUrl, *, application: str, schema: bool = True
) -> AsyncIterator[DatabaseConnection]:
    """Connect, for the duration; with an asyncio loop of its own. With `schema`, the database has to have the one that
    this release needs.

    Raises:
        ConfigError: The URL cannot work: a parameter, a wrong password, no such role or database.
        StoreError: The database is not available, or refuses, or has not that schema.

    Resource handling: on the way out the connection is terminated, which rolls back what is open, and takes no time but
    where a pooler is told to keep nothing of it.

    Trio-flavored.
    """
    alone: BaseException
    try:
        async with open_asyncio_loop():
            connection = await _connect(url, application, schema=schema)
            try:
                yield DatabaseConnection(connection, url)
            finally:
                with trio.CancelScope(shield=True):
                    await aio_as_trio(session_settings.close)(connection)
        return
    except BaseExceptionGroup as group:
        # The loop's nurseries are our own affair: the caller's exception, or ours, leaves as it is.
        alone = group
        while isinstance(alone, BaseExceptionGroup) and len(alone.exceptions) == 1:
            alone = alone.exceptions[0]
    raise alone


async def _connect(url: DatabaseUrl, application: str, *, schema: bool) -> ServiceConnection:
    return await _call(
        connect,
        url,
        application=application,
        settings=session_settings.wanted(STATEMENT_SECONDS),
        connect_seconds=CONNECT_SECONDS,
        statement_seconds=STATEMENT_SECONDS + GRACE_SECONDS,
        schema=schema,
    )


async def _call(function: Callable[..., Awaitable[T]], *arguments: Any, **options: Any) -> T:
    """Cancellation: passed on to asyncpg once; it ends when asyncpg has cleaned up."""
    try:
        result: T = await aio_as_trio(function)(*arguments, **options)
    except (trio.Cancelled, TraksenseError):
        raise
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt | SystemExit | GeneratorExit | BaseExceptionGroup):
            raise
        raise translate(error) from error
    return result
