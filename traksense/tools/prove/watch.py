"""What is watched while the run lasts: the service's own ledger, and a sample of its promises."""

from __future__ import annotations

from collections import Counter
from random import Random
from typing import TYPE_CHECKING, Final

import trio

from traksense.errors import StoreError
from traksense.tools.prove.database import stored
from traksense.tools.prove.witness import Remarks
from traksense.tools.stack import StackError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from traksense.tools.prove.database import Database
    from traksense.tools.prove.keeper import Keeper
    from traksense.tools.prove.messages import Sent
    from traksense.tools.stack import Samples, ServiceProcess

SCRAPE_SECONDS: Final = 0.25
SAMPLE_SECONDS: Final = 0.1
SAMPLE_MESSAGES: Final = 10

TOTALS: Final = {
    "received": "ingest_messages_total",
    "duplicates": "ingest_messages_ended_total{outcome=duplicate}",
    "points conflicting": "ingest_points_conflicting_total",
    "store retries": "ingest_store_retries_total",
    "sessions lost": "ingest_sessions_lost_total",
}
"""What is added up over the processes. The last moments of a killed process are not in it: these are lower bounds."""


class LedgerWatch:
    """Scrapes `/metrics` all the time and checks that received = stored + duplicate + dead + in flight.

    Attributes:
        scrapes: How many were checked.
        mismatches: Scrapes whose sides differ.
        idle: Whether the last scrape found nothing in flight, queued or unacknowledged.
    """

    def __init__(self, keeper: Keeper) -> None:
        self.scrapes = 0
        self.mismatches = Remarks()
        self.idle = False
        self._keeper = keeper
        self._process: ServiceProcess | None = None
        self._last: dict[str, float] = {}
        self._finished: Counter[str] = Counter()

    async def run(self) -> None:
        """Scrape until cancelled."""
        while True:
            await self.scrape()
            await trio.sleep(SCRAPE_SECONDS)

    async def scrape(self) -> None:
        """Scrape once, if the service answers."""
        process = self._keeper.process
        if process is None:
            return
        try:
            samples = await process.metrics()
        except StackError:
            self.idle = False
            return
        if process is not self._process:
            self._finished.update(self._last)
            self._process = process
        self._last = {name: _total(samples, what) for name, what in TOTALS.items()}
        self._check(samples)

    def _check(self, samples: Samples) -> None:
        self.scrapes += 1
        received = samples.total("ingest_messages_total")
        ended = samples.total("ingest_messages_ended_total")
        in_flight = samples.value("ingest_in_flight_messages")
        if received != ended + in_flight:
            self.mismatches.add(f"received {received:.0f}, ended {ended:.0f}, in flight {in_flight:.0f}")
        waiting = samples.value("ingest_queue_size") + samples.value("ingest_unacknowledged_messages")
        self.idle = not in_flight and not waiting

    def totals(self) -> dict[str, int]:
        """The sums over all processes so far."""
        return {name: int(self._finished[name] + self._last.get(name, 0)) for name in TOTALS}


class Ledgers:
    """The ledgers of all replicas.

    Attributes:
        books: One watch for each.
    """

    def __init__(self, keepers: Iterable[Keeper]) -> None:
        self.books = [LedgerWatch(keeper) for keeper in keepers]

    async def run(self) -> None:
        """Scrape until cancelled."""
        async with trio.open_nursery() as nursery:
            for book in self.books:
                nursery.start_soon(book.run)

    async def scrape(self) -> bool:
        """Scrape each once; whether all of them are idle."""
        for book in self.books:
            await book.scrape()
        return all(book.idle for book in self.books)

    @property
    def scrapes(self) -> int:
        """How many were checked."""
        return sum(book.scrapes for book in self.books)

    @property
    def mismatches(self) -> Remarks:
        """Scrapes whose sides differ."""
        found = Remarks()
        for book in self.books:
            found.extend(book.mismatches)
        return found

    def totals(self) -> dict[str, int]:
        """The sums over all processes so far."""
        return {name: sum(book.totals()[name] for book in self.books) for name in TOTALS}


class PromiseWatch:
    """Takes a sample of the messages whose PUBACK has just passed and looks whether they are in the database.

    A message that is not there *after* its PUBACK was seen was acknowledged before its COMMIT, unless an operator has
    removed it (`removed` knows). One that is there proves
    nothing: it may have come between. So this can accuse, and never acquits.

    Attributes:
        checked: How many were looked for.
        early: Those that were not there.
    """

    def __init__(
        self,
        database: Database,
        messages: Mapping[int, Sent],
        seed: int,
        removed: Callable[[Sent], bool] = lambda _sent: False,
    ) -> None:
        self._removed = removed
        self.checked = 0
        self.early = Remarks()
        self._database = database
        self._messages = messages
        self._random = Random(seed)  # noqa: S311  (a sample, not a secret)
        self._fresh: list[int] = []

    def acknowledged(self, number: int) -> None:
        """The PUBACK of this message passes."""
        self._fresh.append(number)

    async def run(self) -> None:
        """Look until cancelled; while the database does not answer, there is nothing to be seen."""
        while True:
            try:
                async with self._database.connected() as connection:
                    while True:
                        await trio.sleep(SAMPLE_SECONDS)
                        fresh, self._fresh = self._fresh, []
                        sample = self._random.sample(fresh, min(len(fresh), SAMPLE_MESSAGES))
                        wanted = [self._messages[number] for number in sample]
                        there = await stored(connection, wanted)
                        self.checked += len(wanted)
                        for sent in wanted:
                            if sent.number not in there and not self._removed(sent):
                                self.early.add(f"message {sent.number} was acknowledged before it was stored")
            except StoreError:
                await trio.sleep(SAMPLE_SECONDS)


def _total(samples: Samples, what: str) -> float:
    name, _, label = what.rstrip("}").partition("{")
    if not label:
        return samples.total(name)
    return samples.total(name, **dict([label.split("=", 1)]))
