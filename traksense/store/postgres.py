"""The pool, the checks before the first write, and the border between Trio and asyncio.

Sources: asyncpg 0.32 (a cancelled query is cancelled on the server through a second connection; a Trio deadline around
it is therefore soft, so every time-out here is asyncpg's or the server's own, and `terminate()` stands behind them);
trio-asyncio 0.16 documentation, "Calling asyncio from Trio".
"""

from __future__ import annotations

import logging
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final

import asyncpg
import trio
from trio_asyncio import aio_as_trio

from traksense.errors import (
    ConfigError,
    DeliveriesRefusedError,
    StoreError,
    StoreUnavailableError,
)
from traksense.ingest.backoff import Backoff
from traksense.store import maintenance, migrate, pool, sessions
from traksense.store.dictionary import Dictionary
from traksense.store.partitions import Partitions
from traksense.store.rows import build, refuse_devices
from traksense.store.sqlstate import translate
from traksense.store.transaction import Transactor

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
    from datetime import datetime, timedelta

    from asyncpg.pool import PoolConnectionProxy

    from traksense.config import Settings
    from traksense.ingest.health import Health
    from traksense.ingest.ports import WriteResult
    from traksense.model import Delivery
    from traksense.store.packing import PackedRows

logger = logging.getLogger(__name__)

ACQUIRE_TIMEOUT_SECONDS: Final = 10.0
PING_EVERY_SECONDS: Final = 5.0
MAINTAIN_EVERY_SECONDS: Final = 30.0
"""How far the aggregates may be behind (plain PostgreSQL), and how coarse last_seen_at is."""

EXPIRE_EVERY_SECONDS: Final = 3600.0
"""How often partitions are made ahead, and what has expired is dropped."""


CONFIGURATION_SQLSTATES: Final = ("28P01", "28000", "3D000")
"""Wrong password, no such role, no such database: at the first connection these are configuration errors, not
trouble."""


class PostgresStore:
    """Implements `ingest.ports.Store`. Opened by `open_store`."""

    def __init__(self, settings: Settings, health: Health) -> None:
        self._settings = settings
        self._health = health
        self._dictionary = Dictionary(strict=settings.provisioning == "strict")
        self._partitions = Partitions()
        self._transactor = Transactor()
        self._pool: asyncpg.Pool | None = None
        self._incarnation: str | None = None
        self._prepared = trio.Event()
        self._wrote_at = -PING_EVERY_SECONDS
        self._seen = maintenance.Seen()
        self._retention: timedelta | None = None
        self._maintaining: asyncpg.Connection[asyncpg.Record] | None = None

    # --- the Trio side ---------------------------------------------------------------------------------------------

    async def write(self, batch: Sequence[Delivery]) -> WriteResult:
        """See `ingest.ports.Store.write`. Trio-flavored."""
        await self._prepared.wait()
        result: WriteResult = await self._call(self._write, batch)
        self._wrote_at = trio.current_time()
        self._seen.add(batch)
        return result

    async def probe(self) -> None:
        """See `ingest.ports.Store.probe`. Trio-flavored."""
        await self._prepared.wait()
        await self._call(self._probe)

    async def connected(self, client_id: str, broker: str, at: datetime) -> datetime | None:
        """See `ingest.ports.SessionLog.connected`. Trio-flavored."""
        await self._prepared.wait()
        last_alive: datetime | None = await self._call(self._with_connection, sessions.connected, client_id, broker, at)
        return last_alive

    async def alive(self, client_id: str, at: datetime) -> None:
        """See `ingest.ports.SessionLog.alive`. Trio-flavored."""
        await self._prepared.wait()
        await self._call(self._with_connection, sessions.alive, client_id, at)

    async def subscriptions(self, client_id: str) -> tuple[frozenset[str], frozenset[str]]:
        """See `ingest.handover.SubscriptionLog.subscriptions`. Trio-flavored."""
        await self._prepared.wait()
        found: tuple[frozenset[str], frozenset[str]] = await self._call(
            self._with_connection, sessions.subscriptions, client_id
        )
        return found

    async def claims_of_others(self, client_id: str, broker: str) -> frozenset[str]:
        """See `ingest.handover.SubscriptionLog.claims_of_others`. Trio-flavored."""
        await self._prepared.wait()
        claims: frozenset[str] = await self._call(self._with_connection, sessions.claims_of_others, client_id, broker)
        return claims

    async def remember(self, client_id: str, held: Collection[str], claimed: Collection[str]) -> None:
        """See `ingest.handover.SubscriptionLog.remember`. Trio-flavored."""
        await self._prepared.wait()
        await self._call(self._with_connection, sessions.remember, client_id, held, claimed)

    async def forget(self, client_id: str) -> None:
        """The session has been ended: its absence is no loss. Trio-flavored."""
        await self._prepared.wait()
        await self._call(self._with_connection, sessions.forget, client_id)

    async def run(self) -> None:
        """Connect, check, then keep the health of the database true and its partitions ahead, until cancelled.

        Error handling: whatever the database does is retried and said in the health; a configuration that can never
        work raises ConfigError, but only before the first success. Trio-flavored.
        """
        await self._prepare()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._keep_maintained)
            while True:
                await trio.sleep(PING_EVERY_SECONDS)
                try:
                    if trio.current_time() - self._wrote_at >= PING_EVERY_SECONDS:
                        await self._call(self._with_connection, pool.ping)
                        self._health.set("database")
                except StoreError as error:
                    self._health.set("database", str(error))

    async def _keep_maintained(self) -> None:
        """Aggregates, retention, partitions ahead. Error handling: what fails is logged and done next time."""
        expired_at = trio.current_time() - EXPIRE_EVERY_SECONDS
        while True:
            expire = trio.current_time() - expired_at >= EXPIRE_EVERY_SECONDS
            try:
                await self._call(self._maintain, expire)
            except StoreError as error:
                logger.warning("maintenance_failed", extra={"traksense_error": str(error)})
            else:
                expired_at = trio.current_time() if expire else expired_at
            await trio.sleep(MAINTAIN_EVERY_SECONDS)

    async def _prepare(self) -> None:
        backoff = Backoff(0.1, 5.0)
        while True:
            try:
                await self._call(self._connect)
            except StoreError as error:
                if error.sqlstate in CONFIGURATION_SQLSTATES:
                    raise ConfigError([f"{error} @ DATABASE_URL"]) from error
                self._health.set("database", str(error))
                await trio.sleep(backoff.next())
            else:
                self._health.set("database")
                self._prepared.set()
                return

    async def _call(self, coroutine_function: Any, *args: object) -> Any:
        """Run one asyncio-flavoured coroutine and translate what it raises.

        Cancellation: passed on to asyncpg once; it ends when asyncpg has cleaned up (rolled back, released).
        """
        try:
            return await aio_as_trio(coroutine_function)(*args)
        except (trio.Cancelled, StoreError, ConfigError):
            raise
        except BaseException as error:
            if isinstance(error, (KeyboardInterrupt, SystemExit, GeneratorExit, BaseExceptionGroup)):
                raise
            raise translate(error) from error

    # --- the asyncio side -------------------------------------------------------------------------------------------

    async def _write(self, batch: Sequence[Delivery]) -> WriteResult:
        """asyncio-flavored."""
        if self._retention is not None and (refused := maintenance.too_old(batch, self._retention)):
            raise DeliveriesRefusedError(refused)
        async with self._acquire() as connection:
            self._dictionary.make_room()
            # Not before: a new connection may have found that what the dictionary knows is of another database.
            rows, missing = build(batch, self._dictionary)
            if missing:
                # Again: series and meta hang on their device, whose number of new meta objects decides where they go.
                # And some more, if other writers make room meanwhile.
                for _ in range(5):
                    unknown = await self._dictionary.register(connection, missing)
                    if refused := refuse_devices(batch, unknown):
                        raise DeliveriesRefusedError(refused)
                    rows, missing = build(batch, self._dictionary)
                    if not missing:
                        break
                else:
                    raise StoreUnavailableError("the series dictionary changed while it was being filled")
            await self._ensure_partitions(connection, rows.measures)
            try:
                return await self._transactor.store(connection, rows)
            except asyncpg.ReadOnlySQLTransactionError:
                # The server has become a standby: what is written next shall look for the new primary.
                await self._expire()
                raise
            except asyncpg.CheckViolationError as error:
                if "no partition of relation" not in str(error):
                    raise
                self._partitions.forget()
                raise StoreUnavailableError(
                    "a partition has disappeared; it will be made again", error.sqlstate
                ) from error

    async def _ensure_partitions(self, connection: PoolConnectionProxy, measures: Sequence[PackedRows]) -> None:
        """asyncio-flavored."""
        if not measures:
            return
        instants = [packed.ts for packed in measures]
        if not self._partitions.covers(min(instants), max(instants)):
            await self._partitions.ensure(connection, instants)

    async def _probe(self) -> None:
        """Insert a row for real, then take it back: it finds a full disk, a read-only server, a missing right.
        asyncio-flavored.
        """
        async with self._acquire() as connection:
            transaction = connection.transaction()
            await transaction.start()
            try:
                await connection.execute("INSERT INTO traksense.measure (series_id, ts, v_num) VALUES (0, now(), 0)")
            finally:
                await transaction.rollback()

    async def _with_connection(self, function: Callable[..., Awaitable[Any]], *args: object) -> Any:
        """asyncio-flavored."""
        async with self._acquire() as connection:
            return await function(connection, *args)

    async def _connect(self) -> None:
        """Open the pool and check the server. asyncio-flavored."""
        if self._pool is None:
            self._pool = await pool.open_pool(self._settings, self._look_around)
        async with self._acquire() as connection:
            await pool.check_server(connection, allow_unsafe=self._settings.db_allow_unsafe)
            self._transactor.marking = await migrate.read_engine(connection) == "postgresql"
            self._retention = await maintenance.read_retention(connection)
            await self._partitions.ensure_ahead(connection)

    async def _look_around(self, connection: Any) -> None:
        """On each new connection: after a restart, a failover or a restore, numbers of series that were given out last
        may be gone, or be given to others. asyncio-flavored.
        """
        incarnation = await pool.read_incarnation(connection)
        if self._incarnation not in (None, incarnation):
            self._dictionary.forget()
            self._partitions.forget()
            logger.info("database_restarted")
        self._incarnation = incarnation

    async def _maintain(self, expire: bool) -> None:  # noqa: FBT001  (called through _call, by position)
        """On a connection of its own: writers and probes never wait for it. asyncio-flavored."""
        name = f"traksense maintenance {self._settings.client_id}"
        connection = self._maintaining = await maintenance.connect(self._settings.database.dsn.reveal(), name)
        try:
            await maintenance.write_seen(connection, self._seen)
            self._retention = await maintenance.read_retention(connection)
            report = await maintenance.maintain(connection, expire=expire)
        finally:
            connection.terminate()
        if report.dropped or report.purged:
            logger.info(
                "expired", extra={"traksense_dropped": len(report.dropped), "traksense_purged_rows": report.purged}
            )

    async def _expire(self) -> None:
        """Replace every connection before it is used again. asyncio-flavored."""
        assert self._pool is not None  # somebody had a connection of it
        await self._pool.expire_connections()

    def _acquire(self) -> Any:
        assert self._pool is not None  # writes wait for _prepared
        return self._pool.acquire(timeout=ACQUIRE_TIMEOUT_SECONDS)

    def terminate(self) -> None:
        """Close every connection now; whatever waits for one fails. Needs no event loop turn."""
        if self._maintaining is not None:
            self._maintaining.terminate()
        if self._pool is not None:
            self._pool.terminate()


@asynccontextmanager
async def open_store(settings: Settings, health: Health) -> AsyncIterator[PostgresStore]:
    """A store for the duration; needs a surrounding `trio_asyncio.open_loop()`.

    Resource handling: on the way out every connection is terminated rather than closed politely: at that point nothing
    is under way that was promised to anybody. Trio-flavored.
    """
    store = PostgresStore(settings, health)
    try:
        yield store
    finally:
        store.terminate()
