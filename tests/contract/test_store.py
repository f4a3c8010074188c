"""What a store promises, held against the store in memory and against PostgreSQL."""

from __future__ import annotations

import itertools
from collections import Counter
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Protocol, TypeAlias

import asyncpg
import attrs
import hypothesis
import pytest
import trio
import trio_asyncio
from hypothesis import HealthCheck, given
from hypothesis import strategies as st
from trio_asyncio import aio_as_trio

from tests.memory_store import MemoryStore
from traksense.config import load
from traksense.errors import DataRefusedError, DeliveriesRefusedError
from traksense.ingest.health import Health
from traksense.ingest.ports import WriteResult
from traksense.model import CommandAck, Delivery, Event, Item, Kind, Message, Point, Reason, Rejection, Route, Telemetry
from traksense.store import dictionary
from traksense.store.asyncio_loop import open_asyncio_loop
from traksense.store.packing import HEAD_BYTES
from traksense.store.postgres import PostgresStore, open_store

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from contextlib import AbstractAsyncContextManager

    from traksense.ingest.ports import Store

Devices: TypeAlias = list[tuple[str, str, str]]

NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)


class OpenStore(Protocol):
    """Opens a store; with strict provisioning if asked, where only the named devices are registered."""

    def __call__(self, *, registered: Devices | None = None) -> AbstractAsyncContextManager[Store]:
        """A context manager."""


@asynccontextmanager
async def open_postgres_store(dsn: str, *, registered: Devices | None = None) -> AsyncIterator[PostgresStore]:
    """A store on a migrated database, prepared."""
    environ = {"DATABASE_URL": dsn, "INGEST_PROVISIONING": "strict" if registered is not None else "auto"}
    async with open_asyncio_loop():
        if registered:
            await aio_as_trio(register)(dsn, registered)
        async with open_store(load(environ), Health(["database"])) as store, trio.open_nursery() as nursery:
            nursery.start_soon(store.run)
            with trio.fail_after(10):
                await store.probe()
            yield store
            nursery.cancel_scope.cancel()


async def register(dsn: str, devices: Devices) -> None:
    """asyncio-flavored."""
    connection = await asyncpg.connect(dsn)
    for tenant, site, device in devices:
        await connection.execute("INSERT INTO traksense.tenant (tenant_id) VALUES ($1) ON CONFLICT DO NOTHING", tenant)
        await connection.execute(
            "INSERT INTO traksense.device (tenant_id, site_id, device_id) VALUES ($1, $2, $3)", tenant, site, device
        )
    await connection.close()


@pytest.fixture(params=["memory", "postgres"])
def open_any_store(request: pytest.FixtureRequest) -> OpenStore:
    """Each implementation in turn."""
    if request.param == "postgres":
        dsn: str = request.getfixturevalue("database")
        return lambda *, registered=None: open_postgres_store(dsn, registered=registered)

    @asynccontextmanager
    async def open_memory(*, registered: Devices | None = None) -> AsyncIterator[MemoryStore]:
        store = MemoryStore()
        if registered is not None:
            store.devices = {"/".join(names) for names in registered}
        yield store

    return open_memory


def delivery(
    *items: Item, device: str = "device", payload: bytes = b"{}", rejection: Rejection | None = None
) -> Delivery:
    """A delivery of one message with these items."""
    route = Route("tenant", "site", device, Kind.TELEM)
    message = Message(
        f"traksense/{route.path}/telem", payload, 1, 1, 1, redelivered=False, received_at=NOW, route=route
    )
    points = sum(len(item.points) for item in items if isinstance(item, Telemetry))
    return Delivery(message, list(items), points, rejection)


def telemetry(*points: Point, second: int = 0, meta: bytes | None = None) -> Telemetry:
    """Points at so many seconds after noon."""
    return Telemetry(NOW + timedelta(seconds=second), list(points), meta)


async def test_store_writes_every_type_of_value(open_any_store: OpenStore) -> None:
    """Numbers, booleans and texts of one message are stored and counted."""
    async with open_any_store() as store:
        result = await store.write(
            [delivery(telemetry(Point("a", 7.3, u="°C"), Point("b", True, "bool"), Point("c", "RUN", "enum")))]
        )

    assert WriteResult(points_stored=3) == result


async def test_store_same_batch_again_is_all_duplicates(open_any_store: OpenStore) -> None:
    """Writing a batch twice stores it once: redelivery, and a commit of unknown outcome, are harmless."""
    batch = [delivery(telemetry(Point("a", 1.0), Point("b", 2.0), second=n)) for n in range(5)]
    async with open_any_store() as store:
        first = await store.write(batch)
        again = await store.write(batch)

    assert WriteResult(points_stored=10) == first
    assert WriteResult(points_duplicate=10, duplicates=frozenset(range(5))) == again


async def test_store_duplicates_and_news_are_told_apart(open_any_store: OpenStore) -> None:
    """A message of which something is new is not a duplicate; its old points are counted as such."""
    async with open_any_store() as store:
        await store.write([delivery(telemetry(Point("a", 1.0)))])
        result = await store.write(
            [
                delivery(telemetry(Point("a", 1.0))),
                delivery(telemetry(Point("a", 1.0), Point("b", 2.0))),
                delivery(telemetry(Point("a", 1.0), second=1)),
            ]
        )

    assert WriteResult(points_stored=2, points_duplicate=2, duplicates=frozenset([0])) == result


async def test_store_other_value_under_the_same_key_is_a_conflict(open_any_store: OpenStore) -> None:
    """The first value is kept; that the other differed is counted apart."""
    async with open_any_store() as store:
        await store.write([delivery(telemetry(Point("a", 1.0)))])
        result = await store.write([delivery(telemetry(Point("a", 2.0)))])

    assert WriteResult(points_conflicting=1, duplicates=frozenset([0])) == result


async def test_store_repeats_within_a_message_and_a_batch(open_any_store: OpenStore) -> None:
    """The same point twice in one message: the first is stored, the rest are duplicates; likewise within a batch."""
    async with open_any_store() as store:
        result = await store.write(
            [
                delivery(telemetry(Point("a", 1.0), Point("a", 1.0), Point("a", 9.0))),
                delivery(telemetry(Point("a", 1.0))),
            ]
        )

    assert WriteResult(points_stored=1, points_duplicate=2, points_conflicting=1, duplicates=frozenset([1])) == result


# Messages of few points at few times, so that they share all, some or none of their keys; what a key says follows from
# it.
_messages = st.builds(
    lambda device, second, names: (device, second, names),
    st.sampled_from(["one", "two"]),
    st.integers(0, 3),
    st.lists(st.sampled_from("abcd"), min_size=1, max_size=4),
)
_examples = itertools.count()


def _value_of(name: str, second: int) -> Point:
    return {
        "a": Point("a", float(second)),
        "b": Point("b", 7.5, u="bar"),
        "c": Point("c", second % 2 == 0, "bool"),
        "d": Point("d", f"state {second}", "enum", q=1),
    }[name]


@hypothesis.settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.lists(_messages, min_size=1, max_size=8), min_size=1, max_size=5))
def test_stores_agree_whatever_repeats(database: str, batches: list[list[tuple[str, int, list[str]]]]) -> None:
    """However messages overlap, within a batch and with earlier ones, each key is stored once and every point counted.

    The store in memory says what is right, but for one thing: if messages of one batch share a new key, any of them may
    be the one that brought it.
    """
    prefix = f"example-{next(_examples)}"

    async def write_all() -> None:
        memory = MemoryStore()
        stored: set[tuple[str, int, str]] = set()
        async with open_postgres_store(database) as store:
            for batch in batches:
                deliveries = [
                    delivery(telemetry(*(_value_of(n, second) for n in names), second=second), device=prefix + device)
                    for device, second, names in batch
                ]
                expected, result = await memory.write(deliveries), await store.write(deliveries)

                assert attrs.evolve(expected, duplicates=result.duplicates) == result
                keys = [{(device, second, name) for name in names} for device, second, names in batch]
                occurs = Counter(key for some in keys for key in some)
                nothing_new = {n for n, some in enumerate(keys) if some <= stored}
                something_new = {n for n, some in enumerate(keys) if any(occurs[key] == 1 for key in some - stored)}
                assert nothing_new <= result.duplicates
                assert something_new.isdisjoint(result.duplicates)
                brought = set[object]().union(*(some for n, some in enumerate(keys) if n not in result.duplicates))
                assert brought >= occurs.keys() - stored
                stored |= occurs.keys()

    trio.run(write_all)


async def test_store_large_meta_is_stored_with_each_point(database: str) -> None:
    """A meta that is too long for the dictionary comes back whole, at each point of its message, staged or not."""
    meta = b'{"log": "' + b"x" * 100_000 + b'"}'
    batch = [delivery(telemetry(Point("a", 1.0), Point("b", "RUN", "enum"), second=n, meta=meta)) for n in range(2)]
    async with open_postgres_store(database) as store:
        await store.write(batch[:1])
        result = await store.write(batch)

    assert WriteResult(points_stored=2, points_duplicate=2, duplicates=frozenset([0])) == result
    async with trio_asyncio.open_loop():
        sizes = await aio_as_trio(fetch)(database, "SELECT length(meta ->> 'log') FROM traksense.measure")
    assert [100_000] * 4 == [size for (size,) in sizes]


@pytest.mark.parametrize("registered", [None, [("tenant", "site", f"device-{n}") for n in range(40)]])
async def test_store_fleet_larger_than_its_memory(
    monkeypatch: pytest.MonkeyPatch, database: str, registered: Devices | None
) -> None:
    """Devices that were forgotten to make room are looked up again, also those of the batch that needs the room: the
    first one is in every batch, and the oldest.
    """
    monkeypatch.setattr(dictionary, "DEVICES_MAX", 16)
    async with open_postgres_store(database, registered=registered) as store, trio.open_nursery() as nursery:

        async def write(begin: int) -> None:
            for second in range(begin, begin + 10):
                batch = [
                    delivery(telemetry(Point("a", 1.0, u="bar"), second=second), device=f"device-{n}")
                    for n in (0, *(1 + k % 39 for k in range(5 * second, 5 * second + 7)))
                ]
                assert WriteResult(points_stored=8) == await store.write(batch)

        nursery.start_soon(write, 0)
        nursery.start_soon(write, 1000)


async def test_store_device_that_invents_points_starts_over(monkeypatch: pytest.MonkeyPatch, database: str) -> None:
    """A device with more points than are remembered is stored all the same, and not remembered without bound."""
    monkeypatch.setattr(dictionary, "DEVICE_POINTS_MAX", 5)
    async with open_postgres_store(database) as store:
        for second in range(4):
            points = [Point(f"p-{n}", float(n)) for n in range(3 * second, 3 * second + 4)]
            assert WriteResult(points_stored=4) == await store.write([delivery(telemetry(*points, second=second))])

            # One batch may need more of them than are remembered from one to the next.
            repeated = [delivery(telemetry(Point(f"p-{n}", float(n)), second=9)) for n in range(12)]
            await store.write(repeated)

        store._dictionary.make_room()
        (device,) = store._dictionary._devices.values()
        assert len(device.layout.places) <= 5
        assert len(device.heads) == HEAD_BYTES * len(device.layout.places)


async def fetch(dsn: str, sql: str) -> list[asyncpg.Record]:
    """asyncio-flavored."""
    connection = await asyncpg.connect(dsn)
    try:
        return await connection.fetch(sql)
    finally:
        await connection.close()


async def test_store_unit_is_part_of_the_series(open_any_store: OpenStore) -> None:
    """One name in two units is two series; no unit and an empty one too."""
    async with open_any_store() as store:
        result = await store.write(
            [
                delivery(
                    telemetry(
                        Point("A", 23.35, u="Cel"), Point("A", 64.0, u="%RH"), Point("A", 1.0), Point("A", 2.0, u="")
                    )
                )
            ]
        )

    assert WriteResult(points_stored=4) == result


async def test_store_dead_letters_beside_good_messages(open_any_store: OpenStore) -> None:
    """A batch may have both; a dead letter that comes again is no error."""
    bad = delivery(payload=b"\x00\xff", rejection=Rejection(Reason.PARSE_ERROR, "not JSON"))
    async with open_any_store() as store:
        first = await store.write([bad, delivery(telemetry(Point("a", 1.0)))])
        again = await store.write([bad, bad])

    assert WriteResult(points_stored=1) == first
    assert WriteResult() == again


async def test_store_ack_repeat_is_a_duplicate(open_any_store: OpenStore) -> None:
    """One row for a command: the first acknowledgement is new, every later one a duplicate."""
    async with open_any_store() as store:
        first = await store.write([delivery(CommandAck("c1", True, b"{}", NOW))])
        again = await store.write(
            [
                delivery(CommandAck("c1", False, b"{}", NOW + timedelta(seconds=1))),
                delivery(CommandAck("c2", True, b"{}")),
            ]
        )

    assert WriteResult() == first
    assert WriteResult(duplicates=frozenset([0])) == again


async def test_store_event_identity(open_any_store: OpenStore) -> None:
    """An event is known again by its id or, without one, by device, type and ts."""
    async with open_any_store() as store:
        first = await store.write(
            [delivery(Event("boot", NOW, "e1")), delivery(Event("boot", NOW)), delivery(Event("alarm", NOW))]
        )
        again = await store.write(
            [
                delivery(Event("other", NOW, "e1")),
                delivery(Event("boot", NOW)),
                delivery(Event("boot", NOW + timedelta(seconds=1))),
            ]
        )

    assert WriteResult() == first
    assert WriteResult(duplicates=frozenset([0, 1])) == again


async def test_store_event_beside_points_counts_as_new(open_any_store: OpenStore) -> None:
    """A message whose points are old but whose event is new is not a duplicate."""
    async with open_any_store() as store:
        await store.write([delivery(telemetry(Point("a", 1.0)))])
        result = await store.write([delivery(telemetry(Point("a", 1.0)), Event("info", NOW, "e1"))])

    assert WriteResult(points_duplicate=1) == result


async def test_store_strict_names_unknown_devices(open_any_store: OpenStore) -> None:
    """With strict provisioning nothing of the batch is stored, and each delivery of an unknown device is named."""
    batch = [delivery(telemetry(Point("a", 1.0)), device=name) for name in ("known", "unknown", "known")]
    batch.append(delivery(CommandAck("c", True, b"{}"), device="unknown"))
    async with open_any_store(registered=[("tenant", "site", "known")]) as store:
        with pytest.raises(DeliveriesRefusedError) as caught:
            await store.write(batch)
        assert {1, 3} == set(caught.value.rejections)
        assert {Reason.UNKNOWN_DEVICE} == {r.reason for r in caught.value.rejections.values()}
        for index, rejection in caught.value.rejections.items():
            batch[index].reject(rejection)
        result = await store.write(batch)

    assert WriteResult(points_stored=1, points_duplicate=1, duplicates=frozenset([2])) == result


async def test_store_refuses_what_it_cannot_store(open_any_store: OpenStore) -> None:
    """Data that the database refuses raises DataRefusedError and leaves nothing behind."""
    poison = "poison" if "memory" in str(open_any_store) else "nul \x00 in a text"
    good, bad = delivery(telemetry(Point("a", 1.0))), delivery(telemetry(Point("b", poison, "text")))
    async with open_any_store() as store:
        with pytest.raises(DataRefusedError):
            await store.write([good, bad])
        result = await store.write([good])

    assert WriteResult(points_stored=1) == result
