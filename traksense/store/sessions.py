"""The broker sessions that we have had, so that a lost one is noticed even across a restart.

A broker that has forgotten our session has forgotten its queue: what was published since we were last connected is
gone. We cannot get it back, but we can say from when to when.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from datetime import datetime

    from asyncpg.pool import PoolConnectionProxy

_LAST_ALIVE: Final = "SELECT last_alive_at FROM traksense.ingest_session WHERE client_id = $1 AND broker = $2"

_CONNECTED: Final = """
INSERT INTO traksense.ingest_session (client_id, broker, connected_at, last_alive_at) VALUES ($1, $2, $3, $3)
ON CONFLICT (client_id) DO UPDATE
SET broker = excluded.broker, connected_at = excluded.connected_at, last_alive_at = excluded.last_alive_at
"""

_ALIVE: Final = "UPDATE traksense.ingest_session SET last_alive_at = $2 WHERE client_id = $1"


async def connected(connection: PoolConnectionProxy, client_id: str, broker: str, at: datetime) -> datetime | None:
    """Record a connection; returns when the session was last known to be alive, or None if there was none.
    asyncio-flavored.
    """
    async with connection.transaction():
        last_alive: datetime | None = await connection.fetchval(_LAST_ALIVE, client_id, broker)
        await connection.execute(_CONNECTED, client_id, broker, at)
    return last_alive


async def alive(connection: PoolConnectionProxy, client_id: str, at: datetime) -> None:
    """Record that the session is alive. asyncio-flavored."""
    await connection.execute(_ALIVE, client_id, at)
