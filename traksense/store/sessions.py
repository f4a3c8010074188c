"""The broker sessions that we have had, so that a lost one is noticed even across a restart.

A broker that has forgotten our session has forgotten its queue: what was published since we were last connected is
gone. We cannot get it back, but we can say from when to when. The same goes for what a broker dropped, and for one that
was restarted.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Protocol

from traksense.ingest.ports import Remembered, Told

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Iterable
    from datetime import datetime

    from asyncpg.pool import PoolConnectionProxy

_REMEMBERED: Final = """
SELECT least(last_alive_at, $3) AS last_alive, extract(epoch FROM now() - least(last_alive_at, $3))::float8 AS seconds,
    extract(epoch FROM now() - broker_started_at)::float8 AS started, broker_dropped AS dropped,
    broker_denies_session AS denies
FROM traksense.ingest_session WHERE client_id = $1 AND broker = $2
"""

_CONNECTED: Final = """
INSERT INTO traksense.ingest_session AS known (client_id, broker, connected_at, last_alive_at)
VALUES ($1, $2, $3, least($3, now()))
ON CONFLICT (client_id) DO UPDATE
SET broker = excluded.broker, connected_at = excluded.connected_at, last_alive_at = excluded.last_alive_at,
    left_at = NULL,
    claimed = CASE WHEN known.broker = excluded.broker THEN known.claimed ELSE '{}' END,
    broker_started_at = CASE WHEN known.broker = excluded.broker THEN known.broker_started_at END,
    broker_dropped = CASE WHEN known.broker = excluded.broker THEN known.broker_dropped END,
    broker_denies_session = known.broker = excluded.broker AND known.broker_denies_session
"""
# What was claimed at another broker is not granted here yet.

_TOLD: Final = """
UPDATE traksense.ingest_session SET
    broker_started_at = coalesce(now() - make_interval(secs => $2), broker_started_at),
    broker_dropped = coalesce($3, broker_dropped),
    broker_denies_session = coalesce($4, broker_denies_session)
"""
# Others compare it with now(): the clock of the replica, which may be minutes off, must not make a session look dead,
# or alive for longer. A connection is recorded late if the database was away, so that keeps its own time, up to now.

_ALIVE: Final = f"{_TOLD}, last_alive_at = now() WHERE client_id = $1 AND connected_at = $5 AND left_at IS NULL"
_NEWER: Final = """
SELECT EXISTS (
    SELECT FROM traksense.ingest_session WHERE client_id = $1 AND connected_at > $2 AND connected_at <= now()
)
"""
# What has a time to come, a wrong clock has written: that keeps nobody from being known.
_LEFT: Final = f"""{_TOLD}, left_at = now(), last_alive_at = CASE WHEN $6 THEN now() ELSE last_alive_at END
WHERE client_id = $1 AND connected_at = $5
"""
# Another process may have taken the session over, and connected since.

_SUBSCRIPTIONS: Final = "SELECT held, claimed FROM traksense.ingest_session WHERE client_id = $1"

_CLAIMS: Final = """
SELECT DISTINCT unnest(claimed) FROM traksense.ingest_session
WHERE client_id <> $1 AND broker = $2 AND last_alive_at > now() - make_interval(secs => $3)
    AND coalesce(left_at < last_alive_at, true)
"""
# A session that was left on purpose is queued for, but nobody knows whether anybody will read it again.

_REMEMBER: Final = "UPDATE traksense.ingest_session SET held = $2, claimed = $3 WHERE client_id = $1"

CLAIM_SECONDS: Final = 60.0
"""A session that was not alive for so long claims nothing: six times the interval at which it says that it is
(`ingest.session.ALIVE_EVERY_SECONDS`)."""

IN_USE_SECONDS: Final = 30.0
"""A session that was alive so lately, and not left since, has a service: three times that interval. For commands that
must not meet one."""

STOP_IT: Final = f"stop it first, or wait {IN_USE_SECONDS:.0f} s if it was killed"


class Call(Protocol):
    """Calls an asyncio-flavored function with a connection, from Trio."""

    async def __call__(self, function: Callable[..., Awaitable[Any]], *args: object) -> Any:
        """What the function returns."""
        ...


class SessionLog:
    """Implements `ingest.ports.SessionLog` and `ingest.handover.SubscriptionLog`. Trio-flavored."""

    def __init__(self, call: Call) -> None:
        self._call = call

    async def remembered(self, client_id: str, broker: str, at: datetime) -> Remembered | None:
        """See `ingest.ports.SessionLog.remembered`."""
        found: Remembered | None = await self._call(remembered, client_id, broker, at)
        return found

    async def connected(self, client_id: str, broker: str, at: datetime) -> None:
        """See `ingest.ports.SessionLog.connected`."""
        await self._call(connected, client_id, broker, at)

    async def alive(self, client_id: str, connected_at: datetime, told: Told) -> bool:
        """See `ingest.ports.SessionLog.alive`."""
        known: bool = await self._call(alive, client_id, connected_at, told)
        return known

    async def left(self, client_id: str, connected_at: datetime, told: Told, was_alive: bool) -> None:  # noqa: FBT001
        """See `ingest.ports.SessionLog.left`."""
        await self._call(left, client_id, connected_at, told, was_alive)

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


async def remembered(connection: PoolConnectionProxy, client_id: str, broker: str, at: datetime) -> Remembered | None:
    """See `ingest.ports.SessionLog.remembered`. asyncio-flavored."""
    row = await connection.fetchrow(_REMEMBERED, client_id, broker, at)
    if row is None:
        return None
    dropped = None if row["dropped"] is None else int(row["dropped"])
    return Remembered(row["last_alive"], row["seconds"], Told(row["started"], dropped, row["denies"]))


async def connected(connection: PoolConnectionProxy, client_id: str, broker: str, at: datetime) -> None:
    """See `ingest.ports.SessionLog.connected`. asyncio-flavored."""
    await connection.execute(_CONNECTED, client_id, broker, at)


async def alive(connection: PoolConnectionProxy, client_id: str, connected_at: datetime, told: Told) -> bool:
    """See `ingest.ports.SessionLog.alive`; by the database's clock. asyncio-flavored."""
    told_by_broker = told.started_seconds, told.dropped, told.denies_session
    status: str = await connection.execute(_ALIVE, client_id, *told_by_broker, connected_at)
    return status == "UPDATE 1" or await connection.fetchval(_NEWER, client_id, connected_at)


async def left(
    connection: PoolConnectionProxy,
    client_id: str,
    connected_at: datetime,
    told: Told,
    was_alive: bool,  # noqa: FBT001
) -> None:
    """See `ingest.ports.SessionLog.left`; by the database's clock. asyncio-flavored."""
    told_by_broker = told.started_seconds, told.dropped, told.denies_session
    await connection.execute(_LEFT, client_id, *told_by_broker, connected_at, was_alive)


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
