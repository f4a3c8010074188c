"""Writers: whose fault it is, who waits, who is stored, who becomes a dead letter."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from tests.memory_store import POISON, MemoryStore
from traksense.errors import (
    DataRefusedError,
    StoreError,
    StoreMisconfiguredError,
    StoreTooSlowError,
    StoreUnavailableError,
    UnclassifiedStoreError,
)
from traksense.ingest.ack import Acknowledger
from traksense.ingest.batch import Batcher
from traksense.ingest.health import Health
from traksense.ingest.ledger import Ledger
from traksense.ingest.write import Writer
from traksense.model import REST_IS_STORED, Delivery, Kind, Message, Point, Reason, Rejection, Route, Telemetry

if TYPE_CHECKING:
    from collections.abc import Sequence

    from traksense.ingest.ports import WriteResult

BEGIN = datetime(2026, 1, 1, tzinfo=UTC)
ROUTE = Route("tenant", "site", "device", Kind.TELEM)


class Bench:
    """A writer with everything that it shares, and a store in memory."""

    def __init__(self) -> None:
        self.store = MemoryStore()
        self.ledger = Ledger()
        self.acknowledger = Acknowledger()
        self.acknowledged: list[int] = []
        self.acknowledger.connected(1, self.acknowledged.extend)
        self.batches_send, batches_receive = trio.open_memory_channel[list[Delivery]](math.inf)
        messages_send, messages_receive = trio.open_memory_channel[Message](0)
        messages_send.close()
        self.health = Health(["database"])
        self.health.set("database")  # the store has connected
        batcher = Batcher(
            messages_receive, self.batches_send, decode=lambda m: Delivery(m, [], 0), size_max=1, wait_max=0
        )
        self.writer = Writer(
            batches_receive,
            store=self.store,
            batcher=batcher,
            ledger=self.ledger,
            acknowledger=self.acknowledger,
            health=self.health,
        )
        self._count = 0

    def delivery(self, value: float | str = 1.0, *, rejection: Rejection | None = None) -> Delivery:
        self._count += 1
        message = Message(
            "traksense/tenant/site/device/telem",
            b"%d" % self._count,
            1,
            self._count,
            1,
            redelivered=False,
            received_at=BEGIN,
            route=ROUTE,
        )
        self.ledger.receive([message])
        self.acknowledger.received([message])
        points = [Point("p", value)]
        return Delivery(
            message, [] if rejection else [Telemetry(BEGIN + timedelta(seconds=self._count), points)], 1, rejection
        )

    async def write(self, deliveries: Sequence[Delivery]) -> None:
        await self.batches_send.send(list(deliveries))
        self.batches_send.close()
        await self.writer.run()


async def test_write_stores_then_acknowledges(autojump_clock: MockClock) -> None:
    """What is committed is counted and acknowledged, in order."""
    bench = Bench()

    await bench.write([bench.delivery() for _ in range(3)])

    assert [1, 2, 3] == bench.acknowledged
    assert (3, 3, 0, True) == (
        bench.ledger.stored,
        bench.ledger.points_stored,
        bench.ledger.in_flight,
        bench.ledger.balanced,
    )


async def test_write_waits_while_the_database_is_away(autojump_clock: MockClock) -> None:
    """Trouble waits: the whole batch is tried again until it is stored, health says why, and nothing is acknowledged
    before.
    """
    bench = Bench()
    seen: list[tuple[bool, int]] = []

    def away(_batch: Sequence[Delivery]) -> None:
        seen.append((bench.health.holds("database"), len(bench.acknowledged)))
        if len(seen) < 20:
            raise StoreUnavailableError("the database is away", "57P03")

    bench.store.fault = away

    await bench.write([bench.delivery() for _ in range(3)])

    assert {(False, 0)} == set(seen[1:])
    assert 19 == bench.writer.retries
    assert [1, 2, 3] == bench.acknowledged
    assert bench.health.ready


async def test_write_what_takes_too_long_is_tried_in_halves(autojump_clock: MockClock) -> None:
    """The same batch would take as long again, for ever. What is alone is waited for: it may be the database."""
    bench = Bench()
    tried: list[int] = []
    store = bench.store.write

    async def write(part: Sequence[Delivery]) -> WriteResult:
        tried.append(len(part))
        if len(part) > 2 or len(tried) < 8:
            raise StoreTooSlowError("a statement takes the database too long", "57014")
        return await store(part)

    bench.store.write = write  # type: ignore[assignment,method-assign]
    await bench.write([bench.delivery() for _ in range(8)])

    assert [8, 4, 2, 1, 1, 1, 1, 1, 1, 2, 4, 2, 2] == tried
    assert list(range(1, 9)) == bench.acknowledged
    assert (8, 0, True) == (bench.ledger.stored, bench.ledger.dead, bench.ledger.balanced)


async def test_write_misconfigured_dead_letters_nothing(autojump_clock: MockClock) -> None:
    """A missing relation or right is an operator's to fix: the batch waits, and the reason is said."""
    bench = Bench()
    tries = 0

    def missing(_batch: Sequence[Delivery]) -> None:
        nonlocal tries
        tries += 1
        if tries < 5:
            raise StoreMisconfiguredError('relation "measure" does not exist', "42P01")
        assert 'relation "measure" does not exist' == bench.health.report()["database"]["reason"]

    bench.store.fault = missing

    await bench.write([bench.delivery()])

    assert (1, 0) == (bench.ledger.stored, bench.ledger.dead)


async def test_write_one_poison_in_ten_thousand(autojump_clock: MockClock) -> None:
    """One message that the database refuses: one dead letter, 9,999 stored, and a logarithmic number of
    transactions.
    """
    bench = Bench()
    deliveries = [bench.delivery(POISON if n == 6543 else 1.0) for n in range(10_000)]

    await bench.write(deliveries)

    assert (9_999, 1, 0) == (bench.ledger.stored, bench.ledger.dead, bench.ledger.in_flight)
    assert list(range(1, 10_001)) == bench.acknowledged
    assert Reason.DATABASE_REFUSED == bench.store.errors[("traksense/tenant/site/device/telem", b"6544")].reason
    assert 2 * math.ceil(math.log2(10_000)) + 2 >= bench.store.writes


async def test_write_poison_detail_has_the_sqlstate(autojump_clock: MockClock) -> None:
    """The dead letter says what the database said."""
    bench = Bench()

    await bench.write([bench.delivery(POISON)])

    assert [Rejection(Reason.DATABASE_REFUSED, "SQLSTATE 22021: refused")] == list(bench.store.errors.values())


async def test_write_unclassified_alone_is_poison_only_if_others_pass(autojump_clock: MockClock) -> None:
    """An unknown error of one message is its own fault only once the database has proved to take other writes."""
    bench = Bench()
    probes = 0

    def probe() -> None:
        nonlocal probes
        probes += 1
        if probes < 4:
            raise UnclassifiedStoreError("internal error", "XX000")

    def broken(batch: Sequence[Delivery]) -> None:
        if any(d.rejection is None for d in batch):
            raise UnclassifiedStoreError("internal error", "XX000")

    bench.store.fault = broken
    bench.store.probe_fault = probe

    await bench.write([bench.delivery()])

    assert (0, 1) == (bench.ledger.stored, bench.ledger.dead)
    assert 4 <= probes


@pytest.mark.parametrize("error", [UnclassifiedStoreError("internal error", "XX000"), DataRefusedError("no", "23514")])
async def test_write_what_a_probe_fails_with_condemns_nothing(autojump_clock: MockClock, error: StoreError) -> None:
    """While the database takes no write at all, whatever it says, a good message waits."""
    bench = Bench()
    probes = 0

    def probe() -> None:
        nonlocal probes
        probes += 1
        if probes < 10:
            raise error

    def broken(_batch: Sequence[Delivery]) -> None:
        if probes < 10:
            raise error

    bench.store.fault = broken
    bench.store.probe_fault = probe

    await bench.write([bench.delivery()])

    assert (1, 0) == (bench.ledger.stored, bench.ledger.dead)
    assert bench.health.holds("database")


async def test_write_unclassified_that_passes_is_stored(autojump_clock: MockClock) -> None:
    """An unknown error that goes away costs nothing but time."""
    bench = Bench()
    tries = 0

    def sometimes(_batch: Sequence[Delivery]) -> None:
        nonlocal tries
        tries += 1
        if tries < 3:
            raise UnclassifiedStoreError("internal error", "XX000")

    bench.store.fault = sometimes

    await bench.write([bench.delivery()])

    assert (1, 0) == (bench.ledger.stored, bench.ledger.dead)


async def test_write_refused_dead_letter_waits(autojump_clock: MockClock) -> None:
    """Even if the dead letter itself is refused, the message is not dropped: it waits, unacknowledged, until it is
    taken.
    """
    bench = Bench()
    tries = 0

    def refused(_batch: Sequence[Delivery]) -> None:
        nonlocal tries
        tries += 1
        if tries < 10:
            assert [] == bench.acknowledged
            raise DataRefusedError("refused", "22021")

    bench.store.fault = refused

    await bench.write([bench.delivery()])

    assert (0, 1, [1]) == (bench.ledger.stored, bench.ledger.dead, bench.acknowledged)


async def test_write_partial_message_is_dead_once_and_its_points_are_stored(autojump_clock: MockClock) -> None:
    """It has a dead letter, so it counts as dead, and only so; what is good in it is stored, and the ledger adds up."""
    bench = Bench()
    partial = bench.delivery()
    partial.rejection = Rejection(Reason.TYPE_MISMATCH, "$.points[1].v")

    await bench.write([bench.delivery(), partial, Delivery(bench.delivery().message, [], 0)])

    assert (2, 0, 1) == (bench.ledger.stored, bench.ledger.duplicate, bench.ledger.dead)
    assert (2, {Reason.TYPE_MISMATCH: 1}) == (bench.ledger.points_stored, bench.ledger.dead_reasons)
    assert (2, 1) == (len(bench.store.measures), len(bench.store.errors))
    assert ([1, 2, 3], True) == (bench.acknowledged, bench.ledger.balanced)


async def test_write_partial_message_that_the_database_refuses(autojump_clock: MockClock) -> None:
    """Its items are to blame, not its dead letter: it becomes one as a whole instead of waiting for ever."""
    bench = Bench()
    partial = bench.delivery(POISON)
    partial.rejection = Rejection(Reason.TYPE_MISMATCH, f"1 fault{REST_IS_STORED}: type_mismatch: $.points[1].v")

    await bench.write([bench.delivery(), partial])

    assert {Reason.DATABASE_REFUSED: 1} == bench.ledger.dead_reasons
    assert ([1, 2], 1, 1) == (bench.acknowledged, bench.ledger.stored, len(bench.store.measures))
    (said,) = bench.store.errors.values()
    assert said.detail.endswith("; type_mismatch: 1 fault: type_mismatch: $.points[1].v")


async def test_write_dead_letter_keeps_the_earlier_faults(autojump_clock: MockClock) -> None:
    """What the store refuses as a whole says also what was wrong with a part of it."""
    bench = Bench()
    bench.store.devices = set()
    partial = bench.delivery()
    partial.rejection = Rejection(Reason.TYPE_MISMATCH, "$.points[1].v")

    await bench.write([partial])

    said = Rejection(Reason.UNKNOWN_DEVICE, "not registered; type_mismatch: $.points[1].v")
    assert [said] == list(bench.store.errors.values())
    assert ([], said) == (partial.items, partial.rejection)


async def test_write_unknown_devices_become_dead_letters(autojump_clock: MockClock) -> None:
    """What the store names as unacceptable is dead-lettered in the same batch as its neighbours are stored."""
    bench = Bench()
    bench.store.devices = set()

    await bench.write([bench.delivery(), bench.delivery()])

    assert (0, 2) == (bench.ledger.stored, bench.ledger.dead)
    assert 2 == bench.ledger.dead_reasons[Reason.UNKNOWN_DEVICE]
    assert 2 == bench.store.writes


async def test_write_cancelled_acknowledges_nothing(autojump_clock: MockClock) -> None:
    """A batch that is given up is not acknowledged."""
    bench = Bench()

    def away(_batch: Sequence[Delivery]) -> None:
        raise StoreUnavailableError("away")

    bench.store.fault = away
    with trio.move_on_after(60) as scope:
        await bench.write([bench.delivery()])

    assert scope.cancelled_caught
    assert ([], 1, True) == (bench.acknowledged, bench.ledger.in_flight, bench.ledger.balanced)


FAULTS = {
    "away": (StoreUnavailableError, "08006"),
    "schema": (StoreMisconfiguredError, "42P01"),
    "unknown": (UnclassifiedStoreError, "XX000"),
}


def make_fault(name: str) -> Exception:
    error, sqlstate = FAULTS[name]
    return error(name, sqlstate)


@given(
    values=st.lists(st.sampled_from([1.0, 1.0, 1.0, POISON]), min_size=1, max_size=40),
    faults=st.lists(st.sampled_from([None, *FAULTS]), max_size=30),
)
def test_write_ends_every_message_exactly_once(values: list[float | str], faults: list[str | None]) -> None:
    """Poison among good messages, and a database that fails in every way for a while: the good ones are stored, the
    poison is dead-lettered, all are acknowledged in order, and the ledger balances.
    """

    async def main() -> None:
        bench = Bench()
        script = iter(faults)

        def fault(_batch: Sequence[Delivery]) -> None:
            name = next(script, None)
            if name is not None:
                raise make_fault(name)

        def probe_fault() -> None:
            # A database that fails in an unknown way fails the probe as well, as long as it lasts.
            name = next(script, None)
            if name is not None:
                raise make_fault(name)

        bench.store.fault, bench.store.probe_fault = fault, probe_fault
        await bench.write([bench.delivery(value) for value in values])
        if "unknown" not in faults:
            assert values.count(1.0) == bench.ledger.stored
        assert len(values) == bench.ledger.stored + bench.ledger.dead
        assert bench.ledger.stored == len(bench.store.measures)
        assert bench.ledger.dead == len(bench.store.errors)
        assert values.count(POISON) <= bench.ledger.dead
        assert list(range(1, len(values) + 1)) == bench.acknowledged
        assert (0, 0) == (bench.ledger.in_flight, bench.ledger.in_flight_bytes)

    trio.run(main, clock=MockClock(autojump_threshold=0))


@pytest.mark.parametrize("poison", [0, 1, 7, 31])
async def test_write_cost_grows_with_poison_times_log(autojump_clock: MockClock, poison: int) -> None:
    """K poison messages among n cost at most about 2·k·log2(n) transactions."""
    bench = Bench()
    n = 1024
    places = {(i * 997) % n for i in range(poison)}

    await bench.write([bench.delivery(POISON if place in places else 1.0) for place in range(n)])

    assert (n - poison, poison) == (bench.ledger.stored, bench.ledger.dead)
    assert 1 + 3 * poison * math.log2(n) >= bench.store.writes
