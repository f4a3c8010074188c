"""One session migrates at a time, and nobody who may not migrate can keep it from doing so.

asyncio-flavored throughout.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

import asyncpg

from traksense.errors import StoreUnavailableError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from traksense.store.migrate import Connection, Log

LOCK_POLL_SECONDS: Final = 0.25
LOCK_WAIT_SECONDS: Final = 600.0
"""How long another replica's migration is waited for. Chosen by guess: longer than a migration takes."""

LOCK: Final = "LOCK TABLE traksense.schema_version IN SHARE ROW EXCLUSIVE MODE NOWAIT"
"""Nobody may take this but who may write the table: an advisory lock could be held by any role for ever."""


@asynccontextmanager
async def take_turn(connection: Connection, log: Log) -> AsyncIterator[None]:
    """A transaction in which no other session migrates.

    By polling: a session that waits for a lock holds a snapshot all the while, for which VACUUM and CREATE INDEX
    CONCURRENTLY in other sessions would wait, and it could not say that it waits.

    Raises:
        StoreUnavailableError: Another migration takes too long.
    """
    started = time.monotonic()
    waiting = False
    while True:
        transaction = connection.transaction()
        await transaction.start()
        try:
            await _try_lock(connection)
        except asyncpg.LockNotAvailableError:
            await transaction.rollback()
        except BaseException:
            await transaction.rollback()
            raise
        else:
            break
        waited = time.monotonic() - started
        if waited > LOCK_WAIT_SECONDS:
            raise StoreUnavailableError(
                f"another migration of this database has been running for {waited:.0f} s", sqlstate="55P03"
            )
        if not waiting:
            log.info("migration_lock_waited_for", extra={"traksense_limit_seconds": LOCK_WAIT_SECONDS})
            waiting = True
        await asyncio.sleep(LOCK_POLL_SECONDS)
    if waiting:
        waited = time.monotonic() - started
        log.info("migration_lock_taken", extra={"traksense_waited_seconds": round(waited, 3)})
    try:
        yield
    except BaseException:
        await transaction.rollback()
        raise
    else:
        await transaction.commit()


async def _try_lock(connection: Connection) -> None:
    """Take the lock, or what stands for it while there is no schema: its name, which can be in use once only."""
    if await schema_exists(connection):
        await connection.execute(LOCK)
        return
    attempt = connection.transaction()
    await attempt.start()
    try:
        await connection.execute(f"SET LOCAL lock_timeout = '{int(LOCK_POLL_SECONDS * 1000)}'")
        await connection.execute("CREATE SCHEMA traksense")
    finally:
        await attempt.rollback()


async def schema_exists(connection: Connection) -> bool:
    """Whether the first migration has been applied. asyncio-flavored."""
    # The catalog rather than to_regclass(), which raises if the role may not use the schema.
    exists: bool = await connection.fetchval(
        "SELECT EXISTS (SELECT FROM pg_catalog.pg_class c"
        " JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace"
        " WHERE n.nspname = 'traksense' AND c.relname = 'schema_version')"
    )
    return exists
