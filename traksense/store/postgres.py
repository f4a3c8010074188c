"""The pool, the checks before the first write, and the border between Trio and asyncio.

Sources: asyncpg 0.32 (a cancelled query is cancelled on the server through a second connection; a Trio deadline around
it is therefore soft, so every time-out here is asyncpg's or the server's own, and `terminate()` stands behind them);
trio-asyncio 0.16 documentation, "Calling asyncio from Trio".
"""

from __future__ import annotations

import logging
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeVar

import asyncpg
import trio
from trio_asyncio import aio_as_trio

from traksense.errors import (
    ConfigError,
    DeliveriesRefusedError,
    DictionaryChangedError,
    PoolBusyError,
    ServerUnfitError,
    StoreError,
    StoreUnavailableError,
)
from traksense.ingest.backoff import Backoff
from traksense.ingest.clock import ClockWatch
from traksense.ingest.health import Health
from traksense.store import maintenance, migrate, pool
from traksense.store.chunks import check_spread
from traksense.store.conflicts import reject
from traksense.store.dictionary import Dictionary, check_owner
from traksense.store.partitions import Partitions
from traksense.store.pool import Connections
from traksense.store.probe import probe
from traksense.store.rows import Rows, build, refuse_devices
from traksense.store.session_settings import check_pooler
from traksense.store.sessions import SessionLog
from traksense.store.sqlstate import UNUSABLE_URL, fault, translate
from traksense.store.transaction import Transactor
from traksense.store.upkeep import Upkeep

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

    from asyncpg.pool import PoolConnectionProxy

    from traksense.config import Settings
    from traksense.ingest.ports import WriteResult
    from traksense.model import Delivery
    from traksense.store.packing import PackedRows

T = TypeVar("T")

logger = logging.getLogger(__name__)

PROBE_EVERY_SECONDS: Final = 5.0
"""How long the health of the database may be out of date. Also while batches are written: they may need less than the
next message will."""

DICTIONARY_TRIES: Final = 5
"""How often a batch begins anew because the dictionary was changed meanwhile."""

NO_PARTITION: Final = "ExecFindPartition"
"""Where PostgreSQL finds that a row has no partition. Source: src/backend/executor/execPartition.c."""


class PostgresStore:
    """Implements `ingest.ports.Store`. Opened by `open_store`."""

    def __init__(self, settings: Settings, health: Health, clock: ClockWatch) -> None:
        self._settings = settings
        self._health = health
        self._clock = clock
        self._dictionary = Dictionary(strict=settings.provisioning == "strict")
        self._partitions = Partitions()
        self._transactor = Transactor(replacing=settings.conflicts == "replace")
        self._connections = Connections(settings, self._look_around)
        self._incarnation: str | None = None
        self._chunk: timedelta | None = None
        self._prepared = trio.Event()
        self.upkeep = Upkeep(settings, health, self._look_around, now=clock.store_now)
        self.sessions = SessionLog(self.call)

    # --- the Trio side ---------------------------------------------------------------------------------------------

    async def write(self, batch: Sequence[Delivery]) -> WriteResult:
        """See `ingest.ports.Store.write`. Trio-flavored."""
        await self._prepared.wait()
        result: WriteResult = await self._call(self._write, batch)
        self.upkeep.seen.add(batch)
        return result

    async def probe(self) -> None:
        """See `ingest.ports.Store.probe`. Trio-flavored."""
        await self._prepared.wait()
        await self._call(self._with_dictionary, self._probe)

    async def call(self, function: Callable[..., Awaitable[T]], *args: object) -> T:
        """Call an asyncio-flavored function that takes a connection first, once the database is there. Trio-flavored.

        Raises:
            StoreError: The database refused or failed.
        """
        await self._prepared.wait()
        result: T = await self._call(self._connections.use, function, *args)
        return result

    async def run(self) -> None:
        """Connect, check, then keep the health of the database true and its partitions ahead, until cancelled.

        Error handling: whatever the database does is retried and said in the health; a configuration that can never
        work raises ConfigError, but only before the first success. Trio-flavored.
        """
        await self._prepare()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.upkeep.run, self._call)
            while True:
                await self._judge()
                await trio.sleep(PROBE_EVERY_SECONDS)

    async def _judge(self) -> None:
        """Say in the health whether the database would take a write now."""
        try:
            await self.probe()
        except PoolBusyError:
            pass  # our own doing: those who have the connections will say what comes of it
        except StoreError as error:
            self._health.set("database", str(error))
        else:
            self._health.set("database")

    async def _prepare(self) -> None:
        backoff = Backoff(0.1, PROBE_EVERY_SECONDS)
        while True:
            try:
                await self._call(self._connect)
            except StoreError as error:
                if (
                    error.sqlstate in UNUSABLE_URL
                    or isinstance(error, ServerUnfitError)
                    or isinstance(error.__cause__, asyncpg.ClientConfigurationError)
                ):
                    raise ConfigError([f"DATABASE_URL: {error}"]) from error
                self._health.set("database", str(error))
                await trio.sleep(backoff.next())
            else:
                # That it takes a write is for the probe to say.
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
        if refused := maintenance.too_old(batch, self._clock.store_now(), self.upkeep.retention):
            raise DeliveriesRefusedError(refused)
        return await self._with_dictionary(self._store, batch)

    async def _with_dictionary(self, function: Callable[..., Awaitable[T]], *args: object) -> T:
        """Call a function with a connection, anew if what is remembered of the database turns out to be out of date.
        asyncio-flavored.
        """
        for _ in range(DICTIONARY_TRIES):
            self._dictionary.make_room()
            try:
                return await self._connections.use(self._with_token, function, *args)
            except DictionaryChangedError as error:
                changed = error
        raise changed

    async def _with_token(
        self, connection: PoolConnectionProxy, function: Callable[..., Awaitable[T]], *args: object
    ) -> T:
        """asyncio-flavored."""
        session: Any = connection  # a ServiceConnection
        if session.incarnation != self._incarnation:
            # It leads to the former server, which may have the same token, and other numbers for what is new.
            session.terminate()
            raise DictionaryChangedError("the connection leads to another server than the newest one")
        await self._dictionary.begin(connection)
        token = self._dictionary.token
        try:
            return await function(connection, *args)
        except asyncpg.PostgresError as error:
            # By the server's function: its message is in the server's language.
            if isinstance(error, asyncpg.CheckViolationError) and error.server_source_function == NO_PARTITION:
                self._partitions.forget()
                raise StoreUnavailableError("a partition has disappeared; it is made again", error.sqlstate) from error
            if fault(error.sqlstate or "") is not DictionaryChangedError:
                raise
            self._dictionary.forget(token)
            logger.info("dictionary_changed")
            raise DictionaryChangedError(str(error), error.sqlstate) from error

    async def _store(self, connection: PoolConnectionProxy, batch: Sequence[Delivery]) -> WriteResult:
        """asyncio-flavored."""
        rows = await self._build(connection, batch)
        if self._chunk is not None:
            check_spread(batch, [packed.ts for packed in rows.measures], self._chunk)
        await self._ensure_partitions(connection, rows.measures)
        self._transactor.fleet = max(self.upkeep.fleet, self._dictionary.met)
        return await self._transactor.store(connection, rows, partial(reject, batch, self._dictionary))

    async def _build(self, connection: PoolConnectionProxy, batch: Sequence[Delivery]) -> Rows:
        """The rows of a batch, with what they need registered. asyncio-flavored."""
        rows, missing = build(batch, self._dictionary)
        # Again: series and meta hang on their device, whose number of new meta objects decides where they go. And some
        # more, if other writers make room meanwhile.
        for _ in range(5):
            if not missing:
                return rows
            unknown = await self._dictionary.register(connection, missing)
            if refused := refuse_devices(batch, unknown):
                raise DeliveriesRefusedError(refused)
            rows, missing = build(batch, self._dictionary)
        if missing:
            # Whoever asks for the token anew has sequences that lag behind advanced.
            self._dictionary.forget()
            raise StoreUnavailableError("the series dictionary changed while it was being filled")
        return rows

    async def _ensure_partitions(self, connection: PoolConnectionProxy, measures: Sequence[PackedRows]) -> None:
        """asyncio-flavored."""
        if not measures:
            return
        instants = [packed.ts for packed in measures]
        if not self._partitions.covers(min(instants), max(instants)):
            await self._partitions.ensure(connection, instants)

    async def _probe(self, connection: PoolConnectionProxy) -> None:
        """asyncio-flavored."""
        now = datetime.now(UTC)
        if not self._partitions.covers(now, now):
            await self._partitions.ensure_ahead(connection)
        await self._read_clock(connection)
        try:
            await check_owner(connection)
        except asyncpg.InsufficientPrivilegeError:
            # Nothing is stored either until it is: whoever begins anew asks for it.
            self._dictionary.forget()
            raise
        strict = self._settings.provisioning == "strict"
        await probe(connection, self._dictionary.token, strict=strict, marking=self._transactor.marking)

    async def _read_clock(self, connection: PoolConnectionProxy) -> None:
        """asyncio-flavored."""
        before = datetime.now(UTC)
        theirs: datetime = await connection.fetchval("SELECT clock_timestamp()")
        self._clock.note(theirs - before - (datetime.now(UTC) - before) / 2)

    async def _connect(self) -> None:
        """Open the pool and check the server. asyncio-flavored."""
        await self._connections.open()
        await self._connections.use(self._check)

    async def _check(self, connection: Any) -> None:
        """asyncio-flavored."""
        if self._settings.db_pool_max > 1:
            async with self._connections.acquire() as second:
                await check_pooler(connection, second)
        await pool.check_server(connection)
        await self._read_clock(connection)
        self._transactor.marking = await migrate.read_engine(connection) == "postgresql"
        self._chunk = None if self._transactor.marking else await migrate.read_chunk_interval(connection)
        self.upkeep.retention = await maintenance.read_retention(connection)
        await self._partitions.ensure_ahead(connection)

    async def _look_around(self, connection: Any) -> None:
        """On each new connection: after a restart, a failover or a restore, numbers of series that were given out last
        may be gone, or be given to others. asyncio-flavored.
        """
        incarnation = connection.incarnation = await pool.read_incarnation(connection)
        if self._incarnation not in (None, incarnation):
            # Its token may be the same, in a copy.
            self._dictionary.forget()
            self._partitions.forget()
            # What is still connected to the former one, if that lives on, shall follow.
            await self._connections.expire()
            logger.info("database_restarted")
        self._incarnation = incarnation

    def terminate(self) -> None:
        """Close every connection now; whatever waits for one fails. Needs no event loop turn."""
        self.upkeep.terminate()
        self._connections.terminate()


@asynccontextmanager
async def open_store(
    settings: Settings, health: Health, clock: ClockWatch | None = None
) -> AsyncIterator[PostgresStore]:
    """A store for the duration; needs a surrounding `open_asyncio_loop()`.

    Resource handling: on the way out every connection is terminated rather than closed politely: at that point nothing
    is under way that was promised to anybody. Trio-flavored.
    """
    store = PostgresStore(settings, health, clock or ClockWatch(Health(["clock"])))
    try:
        yield store
    finally:
        store.terminate()
