"""The broker sessions that we have had, so that a lost one is noticed even across a restart.

A broker that has forgotten our session has forgotten its queue: what was published since we were last connected is
gone. We cannot get it back, but we can say from when to when.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Iterable
    from datetime import datetime

    from asyncpg.pool import PoolConnectionProxy

_LAST_ALIVE: Final = """
SELECT least(last_alive_at, $3) FROM traksense.ingest_session WHERE client_id = $1 AND broker = $2
"""

_CONNECTED: Final = """
INSERT INTO traksense.ingest_session AS known (client_id, broker, connected_at, last_alive_at)
VALUES ($1, $2, $3, least($3, now()))
ON CONFLICT (client_id) DO UPDATE
SET broker = excluded.broker, connected_at = excluded.connected_at, last_alive_at = excluded.last_alive_at,
    claimed = CASE WHEN known.broker = excluded.broker THEN known.claimed ELSE '{}' END
"""
# What was claimed at another broker is not granted here yet.

_ALIVE: Final = "UPDATE traksense.ingest_session SET last_alive_at = now() WHERE client_id = $1"
# Others compare it with now(): the clock of the replica, which may be minutes off, must not make a session look dead,
# or alive for longer. A connection is recorded late if the database was away, so that keeps its own time, up to now.

_SUBSCRIPTIONS: Final = "SELECT held, claimed FROM traksense.ingest_session WHERE client_id = $1"

_CLAIMS: Final = """
SELECT DISTINCT unnest(claimed) FROM traksense.ingest_session
WHERE client_id <> $1 AND broker = $2 AND last_alive_at > now() - make_interval(secs => $3)
"""

_REMEMBER: Final = "UPDATE traksense.ingest_session SET held = $2, claimed = $3 WHERE client_id = $1"

CLAIM_SECONDS: Final = 60.0
"""A session that was not alive for so long claims nothing: six times the interval at which it says that it is
(`ingest.session.ALIVE_EVERY_SECONDS`)."""


IN_USE_SECONDS: Final = 30.0
"""A session that was alive so lately has a service: three times that interval. For commands that must not meet one."""


class Call(Protocol):
    """Calls an asyncio-flavored function with a connection, from Trio."""

    async def __call__(self, function: Callable[..., Awaitable[Any]], *args: object) -> Any:
        """What the function returns."""
        ...


class SessionLog:
    """Implements `ingest.ports.SessionLog` and `ingest.handover.SubscriptionLog`. Trio-flavored."""

    def __init__(self, call: Call) -> None:
        self._call = call

    async def connected(self, client_id: str, broker: str, at: datetime) -> datetime | None:
        """See `ingest.ports.SessionLog.connected`."""
        last_alive: datetime | None = await self._call(connected, client_id, broker, at)
        return last_alive

    async def alive(self, client_id: str) -> None:
        """See `ingest.ports.SessionLog.alive`."""
        await self._call(alive, client_id)

    async def subscriptions(self, client_id: str) -> tuple[frozenset[str], frozenset[str]]:
        """See `ingest.handover.SubscriptionLog.subscriptions`."""
        found: tuple[frozenset[str], frozenset[str]] = await self._call(subscriptions, client_id)
        return found

    async def claims_of_others(self, client_id: str, broker: str) -> frozenset[str]:
        """See `ingest.handover.SubscriptionLog.claims_of_others`."""
        claims: frozenset[str] = await self._call(claims_of_others, client_id, broker)
        return claims

    async def remember(self, client_id: str, held: Collection[str], claimed: Collection[str]) -> None:
        """See `ingest.handover.SubscriptionLog.remember`."""
        await self._call(remember, client_id, held, claimed)


async def connected(connection: PoolConnectionProxy, client_id: str, broker: str, at: datetime) -> datetime | None:
    """Record a connection; returns when the session was last known to be alive, or None if there was none.
    asyncio-flavored.
    """
    async with connection.transaction():
        last_alive: datetime | None = await connection.fetchval(_LAST_ALIVE, client_id, broker, at)
        await connection.execute(_CONNECTED, client_id, broker, at)
    return last_alive


async def alive(connection: PoolConnectionProxy, client_id: str) -> None:
    """Record that the session is alive now, by the database's clock. asyncio-flavored."""
    await connection.execute(_ALIVE, client_id)


async def subscriptions(connection: PoolConnectionProxy, client_id: str) -> tuple[frozenset[str], frozenset[str]]:
    """See `ingest.handover.SubscriptionLog.subscriptions`. asyncio-flavored."""
    row = await connection.fetchrow(_SUBSCRIPTIONS, client_id)
    return (frozenset(), frozenset()) if row is None else (frozenset(row["held"]), frozenset(row["claimed"]))


async def claims_of_others(connection: PoolConnectionProxy, client_id: str, broker: str) -> frozenset[str]:
    """See `ingest.handover.SubscriptionLog.claims_of_others`. asyncio-flavored."""
    return frozenset(row[0] for row in await connection.fetch(_CLAIMS, client_id, broker, CLAIM_SECONDS))


async def remember(
    connection: PoolConnectionProxy, client_id: str, held: Iterable[str], claimed: Iterable[str]
) -> None:
    """See `ingest.handover.SubscriptionLog.remember`. asyncio-flavored."""
    await connection.execute(_REMEMBER, client_id, sorted(held), sorted(claimed))
