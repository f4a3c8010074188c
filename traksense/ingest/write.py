"""Writers: each takes a batch and does not let go of it until all of it is stored or dead-lettered.

Whose fault is a failure? The store says (`errors`): nobody's, then the whole batch waits and is tried again for ever,
or in halves if it took too long; an operator's, then it waits likewise and the health says what is missing; the data's,
then the batch is halved until the message at fault is alone, its neighbours are stored, and it becomes a dead letter.
k poison messages among n cost about k·log2(n) transactions more.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

import trio

from traksense.errors import (
    DataRefusedError,
    DeliveriesRefusedError,
    StoreError,
    StoreMisconfiguredError,
    StoreTooSlowError,
    StoreUnavailableError,
    UnclassifiedStoreError,
)
from traksense.ingest.backoff import Backoff
from traksense.model import Reason, Rejection

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from traksense.ingest.ack import Acknowledger
    from traksense.ingest.batch import Batcher
    from traksense.ingest.health import Health
    from traksense.ingest.ledger import Ledger
    from traksense.ingest.ports import Store, WriteResult
    from traksense.model import Delivery

logger = logging.getLogger(__name__)

RETRY_INITIAL_SECONDS: Final = 0.1
RETRY_MAXIMUM_SECONDS: Final = 5.0
"""A database that comes back is used again within this time. Chosen by guess: a failover takes tens of seconds."""

UNCLASSIFIED_TRIES: Final = 3
"""How often a message must fail alone, for an unknown reason, while the database takes other writes, to be called
poison."""


class Writer:
    """One of the tasks that write; see the module docstring for what it does about failures."""

    def __init__(
        self,
        batches_receive: trio.MemoryReceiveChannel[list[Delivery]],
        *,
        store: Store,
        batcher: Batcher,
        ledger: Ledger,
        acknowledger: Acknowledger,
        health: Health,
        on_committed: Callable[[Sequence[Delivery], WriteResult], None] = lambda _deliveries, _result: None,
        name: str = "writer",
    ) -> None:
        self._batches_receive = batches_receive
        self._store = store
        self._batcher = batcher
        self._ledger = ledger
        self._acknowledger = acknowledger
        self._health = health
        self._on_committed = on_committed
        self._name = name
        self.retries = 0

    async def run(self) -> None:
        """Write batches until the channel is closed.

        Error handling: every StoreError is handled here; anything else is a bug and ends the service, which is safe:
        what was not committed was not acknowledged.

        Cancellation: a batch under way is given up; it is not acknowledged, whether or not it was committed.
        """
        async with self._batches_receive:
            async for deliveries in self._batches_receive:
                with self._batcher.writing():
                    await self._write(deliveries)

    async def _write(self, deliveries: list[Delivery]) -> None:
        parts = [deliveries]
        while parts:
            part = parts.pop()
            try:
                result = await self._write_when_possible(part)
            except DeliveriesRefusedError as error:
                for index, rejection in error.rejections.items():
                    part[index].reject(rejection)
                parts.append(part)
            except (DataRefusedError, UnclassifiedStoreError, StoreTooSlowError) as error:
                if len(part) > 1:
                    middle = len(part) // 2
                    parts += [part[middle:], part[:middle]]
                else:
                    await self._write_alone(part[0], error)
            else:
                self._settle(part, result)

    async def _write_when_possible(self, part: Sequence[Delivery]) -> WriteResult:
        """Write, however long the database is away or misconfigured.

        Raises:
            StoreTooSlowError: Several deliveries at once take too long.
        """
        backoff = Backoff(RETRY_INITIAL_SECONDS, RETRY_MAXIMUM_SECONDS)
        while True:
            try:
                result = await self._store.write(part)
            except (StoreUnavailableError, StoreMisconfiguredError) as error:
                if isinstance(error, StoreTooSlowError) and len(part) > 1:
                    self._note(error)
                    raise
                await self._pause(error, backoff)
            else:
                self._health.set("database", voice=self._name)
                return result

    async def _write_alone(self, delivery: Delivery, error: StoreError) -> None:
        """A delivery that failed alone: find out whether it is to blame, and dead-letter it if so."""
        backoff = Backoff(RETRY_INITIAL_SECONDS, RETRY_MAXIMUM_SECONDS)
        tries = 1
        while True:
            if not await self._probe(backoff):
                # It took no other write either: what it said before says nothing about the delivery.
                tries = 0
            elif self._is_poison(delivery, error, tries):
                delivery.reject(Rejection(Reason.DATABASE_REFUSED, f"SQLSTATE {error.sqlstate or 'none'}: {error}"))
            else:
                await self._pause(error, backoff)
            try:
                result = await self._write_when_possible([delivery])
            except DeliveriesRefusedError as refused:
                delivery.reject(refused.rejections[0])
            except (DataRefusedError, UnclassifiedStoreError) as again:
                error = again
                tries += 1
            else:
                self._settle([delivery], result)
                return

    async def _probe(self, backoff: Backoff) -> bool:
        """Wait until the database takes other writes; whether it did at once."""
        at_once = True
        while True:
            try:
                await self._store.probe()
            except StoreError as error:
                # Whatever it says, the class that would condemn a delivery included: nothing was said about one.
                at_once = False
                await self._pause(error, backoff)
            else:
                return at_once

    @staticmethod
    def _is_poison(delivery: Delivery, error: StoreError, tries: int) -> bool:
        if delivery.rejection is not None and not delivery.items:
            # Not even the dead letter is taken: there is no further place to put it, so it waits, unacknowledged.
            return False
        return isinstance(error, DataRefusedError) or (
            isinstance(error, UnclassifiedStoreError) and tries >= UNCLASSIFIED_TRIES
        )

    async def _pause(self, error: StoreError, backoff: Backoff) -> None:
        self._note(error)
        await trio.sleep(backoff.next())

    def _note(self, error: StoreError) -> None:
        self.retries += 1
        self._health.set("database", str(error), voice=self._name)

    def _settle(self, part: Sequence[Delivery], result: WriteResult) -> None:
        """Account for a committed part and let its messages be acknowledged. Does not await: nobody sees it half
        done.
        """
        ledger = self._ledger
        ledger.points_stored += result.points_stored
        ledger.points_duplicate += result.points_duplicate
        ledger.points_conflicting += result.points_conflicting
        for index, rejection in result.rejected.items():
            part[index].rejection = rejection
        dead = {index: delivery.rejection for index, delivery in enumerate(part) if delivery.rejection is not None}
        duplicates = len(result.duplicates - dead.keys())
        ledger.dead += len(dead)
        ledger.dead_reasons.update([rejection.reason for rejection in dead.values()])
        ledger.duplicate += duplicates
        ledger.stored += len(part) - len(dead) - duplicates
        messages = [delivery.message for delivery in part]
        ledger.settle(messages)
        self._acknowledger.settle(messages)
        self._on_committed(part, result)
