"""The background work of a running service: done round by round, and how it gets on is known.

On plain PostgreSQL the service does it all. On TimescaleDB the jobs of its scheduler do, and the service looks after
them: a job that is not run, or fails, is as visible as a step of our own.
"""

from __future__ import annotations

import logging
import math
import time
from collections import Counter
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import asyncpg
import trio

from traksense.errors import StoreError
from traksense.store import maintenance, migrate, session_settings
from traksense.store.fault_words import describe
from traksense.store.rollup import PIECE
from traksense.store.steps import STEPS, StepState, read_states, trouble

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from datetime import timedelta

    from traksense.config import Settings
    from traksense.ingest.health import Health

logger = logging.getLogger(__name__)

CONDITION: Final = "maintenance"

_now: Final = partial(datetime.now, UTC)

ROUND_EVERY_SECONDS: Final = 30.0
"""How far the aggregates are behind at most while there is no backlog (plain PostgreSQL), and how coarse last_seen_at
is."""

ROUND_SECONDS: Final = 20.0
"""How long a round aggregates, and how long it expires, before the other steps have their turn."""

EXPIRE_EVERY_SECONDS: Final = 3600.0
"""How often partitions are made ahead, and what has expired is dropped."""

RETRY_EVERY_SECONDS: Final = 300.0
"""How often that is tried after it has failed: a drop that waits for a reader holds up writers for three seconds."""

WATCH_EVERY_SECONDS: Final = 5.0


class Upkeep:
    """Runs beside the writers, on connections of its own.

    Attributes:
        seen: What the devices were heard of, to be written down.
        retention: For how long raw points are kept; None is for ever. Read in each round.
        fleet: How many series there were at the last round; more than `rollup.PIECE` are not counted.
        states: The steps, as they were after the last round.
        failures: Attempts of this process that failed, by step.
    """

    def __init__(
        self,
        settings: Settings,
        health: Health,
        on_connect: Callable[[Any], Awaitable[None]],
        *,
        now: Callable[[], datetime] = _now,
    ) -> None:
        """Do nothing yet.

        Args:
            settings: Where the database is.
            health: Where to say how it gets on.
            on_connect: Awaited with each new connection: it may lead to another server than before. asyncio-flavored.
            now: What time it is at the database, which says when the steps were done.
        """
        self.seen = maintenance.Seen(settings.gone_words)
        self.retention: timedelta | None = None
        self.fleet = math.inf
        self.states: Sequence[StepState] = ()
        self.failures: Counter[str] = Counter(dict.fromkeys(STEPS, 0))
        self._dsn = settings.database.dsn.reveal()
        self._name = f"traksense maintenance {settings.client_id}"
        self._health = health
        self._on_connect = on_connect
        self._now = now
        self._maintainer = maintenance.Maintainer()
        self._expire_at = -EXPIRE_EVERY_SECONDS
        self._backlog = False
        self._lost: str | None = None
        self._told: dict[str, str] = {}
        self._connection: asyncpg.Connection[asyncpg.Record] | None = None

    async def run(self, call: Callable[[Callable[[], Awaitable[None]]], Awaitable[None]]) -> None:
        """Do a round, wait, and so on, until cancelled. Trio-flavored.

        Args:
            call: Runs an asyncio-flavored coroutine function, and raises StoreError only.

        Error handling: a step that fails is tried again in a later round, and logged once for each error until it
        succeeds; the others are done. A database that is not there is said in the health.
        """
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watch)
            while True:
                try:
                    await call(self.round)
                except StoreError as error:
                    self._lost = str(error)
                else:
                    self._lost = None
                self._judge()
                await trio.sleep(1.0 if self._backlog else ROUND_EVERY_SECONDS)

    async def _watch(self) -> None:
        """That a round hangs must not keep a step that is late from being noticed."""
        while True:
            await trio.sleep(WATCH_EVERY_SECONDS)
            self._judge()

    def _judge(self) -> None:
        if self.states or self._lost is not None:
            found = trouble(self.states, self._now())
            lost = f"no round could be done: {self._lost}" if self._lost is not None else None
            self._health.set(CONDITION, "; ".join(filter(None, (found, lost))) or None)

    async def round(self) -> None:
        """One round. asyncio-flavored."""
        connection = self._connection = await maintenance.connect(
            self._dsn, self._name, seconds=maintenance.PIECE_SECONDS
        )
        try:
            await self._on_connect(connection)
            self.retention = await maintenance.read_retention(connection)
            self.fleet = await connection.fetchval("SELECT traksense.count_series($1)", PIECE + 1)
            if await migrate.read_engine(connection) == "postgresql":
                await self._do_steps(connection)
            self.states = await read_states(connection)
            failing = {state.name for state in self.states if state.failing_since}
            self._told = {name: error for name, error in self._told.items() if name in failing}
            await maintenance.write_seen(connection, self.seen)
        except asyncpg.ReadOnlySQLTransactionError:
            await session_settings.end_pooled(connection)
            raise
        finally:
            connection.terminate()

    async def _do_steps(self, connection: Any) -> None:
        report = maintenance.Report()
        aggregating = _Budget()
        self._backlog = False
        await self._maintainer.aggregate(connection, report, aggregating)
        if time.monotonic() >= self._expire_at:
            expiring = _Budget()
            await self._maintainer.expire(connection, report, expiring)
            failed = report.failed.keys() - {"aggregate"}
            wait = RETRY_EVERY_SECONDS if failed else EXPIRE_EVERY_SECONDS
            self._expire_at = time.monotonic() + (0.0 if expiring.spent and not failed else wait)
            self._backlog = expiring.spent
        self._backlog |= aggregating.spent
        for name, error in report.failed.items():
            self.failures[name] += 1
            if self._told.get(name) != (text := describe(error)):
                self._told[name] = text
                logger.warning("maintenance_failed", extra={"traksense_step": name, "traksense_error": text})
        if report.dropped or report.purged:
            logger.info("expired", extra={"traksense_dropped": report.dropped, "traksense_purged_rows": report.purged})

    async def leave(self, call: Callable[..., Awaitable[None]]) -> None:
        """Write down now when devices were last heard: no round will. Trio-flavored.

        Args:
            call: Calls an asyncio-flavored function with a connection, and raises StoreError only.

        Error handling: that it fails is logged.
        """
        if not self.seen:
            return
        try:
            await call(maintenance.write_seen, self.seen)
        except StoreError as error:
            logger.warning("last_seen_failed", extra={"traksense_reason": str(error)})

    def terminate(self) -> None:
        """Close the connection now. Needs no event loop turn."""
        if self._connection is not None:
            self._connection.terminate()


class _Budget:
    """The time that the steps of a round may take: asked before each piece whether there is some left."""

    def __init__(self) -> None:
        self._until = time.monotonic() + ROUND_SECONDS
        self.spent = False

    def __call__(self) -> bool:
        self.spent = time.monotonic() >= self._until
        return not self.spent
