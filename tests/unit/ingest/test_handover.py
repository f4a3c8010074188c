"""Handing topics over: nothing is given up that nobody else reads, and nothing is kept for longer than that."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock, wait_all_tasks_blocked

from traksense.errors import StoreUnavailableError
from traksense.ingest.handover import Handover
from traksense.shards import Entry, Layout

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

OPEN = ("traksense/+/+/+/telem",)
PATIENCE = 30.0


def of(*tenants: str) -> frozenset[str]:
    """Their filters."""
    return frozenset(f"traksense/{tenant}/+/+/telem" for tenant in tenants)


class FakeLog:
    """What all replicas remember, in memory.

    Attributes:
        held, claimed: By client id; a session that is not there was not recorded.
        away: Whether the database does not answer.
    """

    def __init__(self, **held: frozenset[str]) -> None:
        self.held = held
        self.claimed: dict[str, frozenset[str]] = {}
        self.away = False

    async def subscriptions(self, client_id: str) -> tuple[frozenset[str], frozenset[str]]:
        await self._answer()
        return self.held.get(client_id, frozenset()), self.claimed.get(client_id, frozenset())

    async def claims_of_others(self, client_id: str, broker: str) -> frozenset[str]:
        await self._answer()
        return frozenset().union(*(topics for name, topics in self.claimed.items() if name != client_id))

    async def remember(self, client_id: str, held: Collection[str], claimed: Collection[str]) -> None:
        await self._answer()
        if client_id in self.held:
            self.held[client_id], self.claimed[client_id] = frozenset(held), frozenset(claimed)

    async def _answer(self) -> None:
        await trio.lowlevel.checkpoint()
        if self.away:
            raise StoreUnavailableError("away")


class FakeSession:
    """A session whose broker does what it is asked, while it is there."""

    def __init__(self) -> None:
        self.subscribed = True
        self.refused = False
        self.kept: frozenset[str] = frozenset()
        self.released: list[str] = []
        self.confirms = True

    def keep(self, topics: Collection[str]) -> None:
        self.kept = frozenset(topics)

    async def unsubscribe(self, topics: Sequence[str]) -> frozenset[str]:
        await trio.lowlevel.checkpoint()
        if not self.confirms:
            return frozenset()
        self.released += topics
        return frozenset(topics)


def handover(log: FakeLog, session: FakeSession, wanted: frozenset[str], **more: Any) -> Handover:
    arguments: dict[str, Any] = {"layout": None, "unsubscribe": (), "patience": PATIENCE} | more
    return Handover(log, session, client_id="me", broker="here", topics=wanted, **arguments)


async def after(seconds: float, task: Handover, nursery: trio.Nursery, *, start: bool = True) -> None:
    """Let it run for so long."""
    if start:
        nursery.start_soon(task.run)
    await trio.sleep(seconds)
    await wait_all_tasks_blocked()


@pytest.fixture
def layout() -> Layout:
    """Tenant a is ours, b the other's."""
    return Layout(OPEN, (Entry("a", pinned=1), Entry("b", pinned=2)), 2)


async def test_handover_with_nothing_to_give_up_ends(autojump_clock: MockClock, nursery: trio.Nursery) -> None:
    """A first start writes down what it holds and claims, and is done."""
    log, session = FakeLog(me=frozenset()), FakeSession()

    await handover(log, session, of("a")).settle()

    assert (of("a"), of("a")) == (log.held["me"], log.claimed["me"])
    assert [] == session.released


async def test_handover_keeps_what_the_successor_does_not_read_yet(
    autojump_clock: MockClock, nursery: trio.Nursery, layout: Layout, caplog: pytest.LogCaptureFixture
) -> None:
    """However long that takes; it is said once."""
    log, session = FakeLog(me=of("a", "b"), other=frozenset()), FakeSession()
    task = handover(log, session, of("a"), layout=layout)

    await after(10 * PATIENCE, task, nursery)

    assert [] == session.released
    assert of("b") == task.kept
    assert of("a", "b") == log.held["me"]
    assert ["subscriptions_kept"] == [record.message for record in caplog.records if record.levelno >= logging.WARNING]


async def test_handover_gives_up_what_the_successor_has_read_for_a_while(
    autojump_clock: MockClock, nursery: trio.Nursery, layout: Layout
) -> None:
    """Not at once, and then for good: it is forgotten only after the broker has confirmed."""
    log, session = FakeLog(me=of("a", "b"), other=of("b")), FakeSession()
    log.claimed["other"] = of("b")
    task = handover(log, session, of("a"), layout=layout)

    await after(PATIENCE - 3, task, nursery)
    assert [] == session.released
    session.confirms = False
    await after(10, task, nursery, start=False)
    assert of("a", "b") == log.held["me"]
    session.confirms = True
    await after(5, task, nursery, start=False)

    assert sorted(of("b")) == session.released
    assert of("a") == log.held["me"]
    assert task.done.is_set()


async def test_handover_begins_anew_when_the_successor_vanishes(
    autojump_clock: MockClock, nursery: trio.Nursery, layout: Layout
) -> None:
    """A replica that lives only for moments takes nothing over."""
    log, session = FakeLog(me=of("a", "b"), other=of("b")), FakeSession()
    task = handover(log, session, of("a"), layout=layout)
    nursery.start_soon(task.run)
    for _ in range(5):
        log.claimed["other"] = of("b")
        await trio.sleep(PATIENCE - 5)
        log.claimed["other"] = frozenset()
        await trio.sleep(5)

    assert [] == session.released


async def test_handover_of_everything_waits_for_all_shards(
    autojump_clock: MockClock, nursery: trio.Nursery, layout: Layout
) -> None:
    """The one session that read everything is needed until each shard is read."""
    log, session = FakeLog(me=frozenset(OPEN), one=of("a"), two=of("b")), FakeSession()
    task = handover(log, session, frozenset(), layout=layout)
    log.claimed["one"] = of("a")
    await after(2 * PATIENCE, task, nursery)
    assert [] == session.released

    log.claimed["two"] = of("b")
    await after(2 * PATIENCE, task, nursery, start=False)

    assert list(OPEN) == session.released
    assert task.done.is_set()


@pytest.mark.parametrize(("claim", "expected"), [("traksense/b/#", True), ("traksense/b/+/+/ack", False)])
async def test_handover_without_shards_needs_one_who_reads_it_all(
    claim: str, expected: bool, autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    """Divided by hand, another replica's filter has to cover ours."""
    log, session = FakeLog(me=of("a", "b"), other=frozenset({claim})), FakeSession()
    log.claimed["other"] = frozenset({claim})

    await after(2 * PATIENCE, handover(log, session, of("a")), nursery)

    assert expected is bool(session.released)


async def test_handover_gives_up_what_it_is_told_to(autojump_clock: MockClock, nursery: trio.Nursery) -> None:
    """`MQTT_UNSUBSCRIBE` needs no successor, and not to be remembered."""
    log, session = FakeLog(me=of("a")), FakeSession()

    await handover(log, session, of("a"), unsubscribe=["traksense/+/+/+/event"]).settle()

    assert ["traksense/+/+/+/event"] == session.released
    assert of("a") == log.held["me"]


async def test_handover_waits_for_broker_and_database(
    autojump_clock: MockClock, nursery: trio.Nursery, layout: Layout
) -> None:
    """Without a subscription there is no claim; without the database nothing is given up."""
    log, session = FakeLog(me=of("a", "b"), other=of("b")), FakeSession()
    log.claimed["other"] = of("b")
    session.subscribed = False
    task = handover(log, session, of("a"), layout=layout)
    await after(2 * PATIENCE, task, nursery)
    assert "me" not in log.claimed

    session.subscribed, log.away = True, True
    await after(2 * PATIENCE, task, nursery, start=False)
    assert [] == session.released

    log.away = False
    await after(2 * PATIENCE, task, nursery, start=False)
    assert sorted(of("b")) == session.released


async def test_handover_without_a_recorded_session_gives_nothing_up(
    autojump_clock: MockClock, nursery: trio.Nursery, layout: Layout
) -> None:
    """What could not be written down is not done with."""
    log, session = FakeLog(), FakeSession()
    task = handover(log, session, of("a"), layout=layout)

    await after(5, task, nursery)
    assert not task.done.is_set()
    log.held["me"] = frozenset()
    await after(5, task, nursery, start=False)

    assert of("a") == log.claimed["me"]
    assert task.done.is_set()


async def test_handover_stands_in_again_for_what_the_broker_has_forgotten(
    autojump_clock: MockClock, nursery: trio.Nursery, layout: Layout
) -> None:
    """What the log says is held and nobody claims is asked for again; what is claimed or given up by order is not."""
    gone = frozenset({"traksense/+/+/+/event"})
    log, session = FakeLog(me=of("a", "b", "c") | gone, other=of("c")), FakeSession()
    log.claimed["other"] = of("c")
    session.confirms = False
    task = handover(log, session, of("a"), layout=layout, unsubscribe=gone)
    task.connected(False)

    await after(5, task, nursery)

    assert of("b") == session.kept


async def test_handover_claims_nothing_while_it_is_refused(autojump_clock: MockClock, nursery: trio.Nursery) -> None:
    """Whatever was granted once: others must not give up for us what we do not get. Then it claims again."""
    log, session = FakeLog(me=frozenset()), FakeSession()
    task = handover(log, session, of("a"))
    await after(5, task, nursery)
    assert of("a") == log.claimed["me"]

    session.subscribed, session.refused = False, True
    task.connected(True)
    await after(5, task, nursery, start=False)
    assert frozenset() == log.claimed["me"]
    assert of("a") == log.held["me"]
    session.subscribed, session.refused = True, False
    await after(5, task, nursery, start=False)

    assert of("a") == log.claimed["me"]


async def test_handover_claims_anew_after_the_session_was_lost(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    """Not before the broker has granted it again."""
    log, session = FakeLog(me=frozenset()), FakeSession()
    task = handover(log, session, of("a"))
    await after(5, task, nursery)

    session.subscribed = False
    task.connected(False)
    await after(5, task, nursery, start=False)
    assert frozenset() == log.claimed["me"]
    session.subscribed = True
    await after(5, task, nursery, start=False)

    assert of("a") == log.claimed["me"]


@pytest.mark.parametrize(("others", "expected"), [(("telem",), False), (("telem", "ack"), False), (("#",), True)])
@pytest.mark.parametrize("old", ["traksense/b/#", "traksense/#", "$share/group/traksense/b/#"])
async def test_handover_keeps_kinds_that_nobody_claims(
    old: str, others: tuple[str, ...], expected: bool, autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    """`#` brings more than the filters of a layout of single kinds."""
    topics = tuple("traksense/#" if kind == "#" else f"traksense/+/+/+/{kind}" for kind in others)
    divided = Layout(topics, (Entry("a", pinned=1), Entry("b", pinned=2)), 2)
    log, session = FakeLog(me=frozenset({old})), FakeSession()
    log.claimed["one"], log.claimed["two"] = frozenset(divided.filters(1)), frozenset(divided.filters(2))

    await after(2 * PATIENCE, handover(log, session, frozenset(), layout=divided), nursery)

    assert expected is bool(session.released)


@given(
    deals=st.lists(st.lists(st.integers(1, 3), min_size=4, max_size=4), min_size=1, max_size=4),
    restarts=st.lists(st.tuples(st.integers(0, 2), st.integers(0, 3)), max_size=12),
)
def test_no_topic_is_ever_without_a_reader(deals: list[list[int]], restarts: list[tuple[int, int]]) -> None:
    """Three replicas, restarted in any order with any of the layouts: what was read once is read by somebody always."""

    async def play() -> None:
        log = FakeLog(one=frozenset(), two=frozenset(), three=frozenset())
        brokers: dict[str, set[str]] = {name: set() for name in log.held}
        every = of(*"abcd")
        scopes: dict[str, trio.CancelScope] = {}

        class Subscribed(FakeSession):
            def __init__(self, name: str) -> None:
                super().__init__()
                self.mine = brokers[name]

            async def unsubscribe(self, topics: Sequence[str]) -> frozenset[str]:
                self.mine.difference_update(topics)
                assert every <= set().union(*brokers.values()), "nobody reads it"
                return await super().unsubscribe(topics)

        async def replica(number: int, name: str, deal: list[int]) -> None:
            divided = Layout(OPEN, tuple(Entry(t, pinned=p) for t, p in zip("abcd", deal, strict=True)), 3)
            wanted = divided.filters(number + 1)
            brokers[name].update(wanted)
            task = Handover(
                log,
                Subscribed(name),
                client_id=name,
                broker="here",
                topics=wanted,
                layout=divided,
                unsubscribe=(),
                patience=PATIENCE,
            )
            with scopes.setdefault(name, trio.CancelScope()):
                await task.run()

        async with trio.open_nursery() as nursery:

            async def restart(number: int, deal: list[int]) -> None:
                name = list(brokers)[number]
                if name in scopes:
                    scopes.pop(name).cancel()
                nursery.start_soon(replica, number, name, deal)
                await trio.sleep(PATIENCE / 2)

            for number in range(3):
                await restart(number, deals[0])
            for number, deal in restarts:
                await restart(number, deals[deal % len(deals)])
            for number in range(3):
                await restart(number, deals[0])
            await trio.sleep(3 * PATIENCE)
            # In the end all have the same layout: each holds its own, and nothing else.
            divided = Layout(OPEN, tuple(Entry(t, pinned=p) for t, p in zip("abcd", deals[0], strict=True)), 3)
            for number, name in enumerate(brokers):
                assert set(divided.filters(number + 1)) == brokers[name] == log.held[name]
            nursery.cancel_scope.cancel()

    trio.run(play, clock=MockClock(autojump_threshold=0))
