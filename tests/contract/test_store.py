"""What a store promises, held against the store in memory and against PostgreSQL."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import asyncpg
import attrs
import hypothesis
import pytest
import trio
from hypothesis import HealthCheck, given
from hypothesis import strategies as st
from trio_asyncio import aio_as_trio

from tests.manuals import block_of
from tests.memory_store import CONFLICT, MemoryStore
from tests.patience import HANG_SECONDS
from traksense.adapters import Context, Registry, number
from traksense.config import load
from traksense.errors import DataRefusedError, DeliveriesRefusedError, StoreUnavailableError
from traksense.ingest.ack import Acknowledger
from traksense.ingest.decode import Decoder, Router
from traksense.ingest.health import Health
from traksense.ingest.intake import Intake
from traksense.ingest.ledger import Ledger
from traksense.ingest.ports import WriteResult
from traksense.model import (
    CommandAck,
    Delivery,
    Event,
    Exact,
    Item,
    Kind,
    Message,
    Point,
    Reason,
    Rejection,
    Route,
    Telemetry,
)
from traksense.store import dictionary, meta_numbers, rows
from traksense.store.asyncio_loop import open_asyncio_loop
from traksense.store.packing import HEAD_BYTES
from traksense.store.postgres import PostgresStore, open_store
from traksense.store.registration import SELECT_SERIES, columns_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from contextlib import AbstractAsyncContextManager

    from traksense.adapters import Adapter
    from traksense.ingest.ports import Store

Devices: TypeAlias = list[tuple[str, str, str]]

NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)


class OpenStore(Protocol):
    """Opens a store; with strict provisioning if asked, where only the named devices are registered."""

    def __call__(self, *, registered: Devices | None = None) -> AbstractAsyncContextManager[Store]:
        """A context manager."""


@asynccontextmanager
async def open_postgres_store(
    dsn: str, *, registered: Devices | None = None, **environ: str
) -> AsyncIterator[PostgresStore]:
    """A store on a migrated database, prepared."""
    environ |= {"DATABASE_URL": dsn, "INGEST_PROVISIONING": "strict" if registered is not None else "auto"}
    async with open_asyncio_loop():
        if registered:
            await aio_as_trio(register)(dsn, registered)
        async with (
            open_store(load(environ), Health(["database", "maintenance"])) as store,
            trio.open_nursery() as nursery,
        ):
            nursery.start_soon(store.run)
            with trio.fail_after(HANG_SECONDS):
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
    *items: Item,
    site: str = "site",
    device: str = "device",
    payload: bytes = b"{}",
    rejection: Rejection | None = None,
) -> Delivery:
    """A delivery of one message with these items."""
    route = Route("tenant", site, device, Kind.TELEM)
    message = Message(
        f"traksense/{route.path}/telem", payload, 1, 1, 1, redelivered=False, received_at=NOW, route=route
    )
    points = sum(len(item.points) for item in items if isinstance(item, Telemetry))
    return Delivery(message, list(items), points, rejection)


def telemetry(*points: Point, second: int = 0, meta: bytes | None = None) -> Telemetry:
    """Points at so many seconds after noon."""
    return Telemetry(NOW + timedelta(seconds=second), list(points), meta)


def wordless(result: WriteResult) -> WriteResult:
    """What a store says, without the details of its rejections."""
    return attrs.evolve(result, rejected={n: Rejection(r.reason, "") for n, r in result.rejected.items()})


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

    assert WriteResult(points_conflicting=1, duplicates=frozenset([0]), rejected={0: CONFLICT}) == wordless(result)


async def test_store_keeps_what_conflicts_as_a_dead_letter(database: str) -> None:
    """The message is there with its bytes and with both values in words, once; its good points are stored. The next one
    with the same value is no conflict.
    """
    other = delivery(telemetry(Point("a", 2.0, u="°C"), Point("b", 1.0)), payload=b"two")
    async with open_postgres_store(database) as store:
        await store.write([delivery(telemetry(Point("a", 1.0, u="°C")))])
        await store.write([other])
        result = await store.write([other, delivery(telemetry(Point("a", 1.0, u="°C")))])

    assert [0] == list(result.rejected)
    async with open_asyncio_loop():
        letters = await aio_as_trio(fetch)(database, "SELECT payload, reason, detail, repeats FROM ingest_errors")
        numbers = await aio_as_trio(fetch)(database, "SELECT point_id, v_num FROM ts_measure ORDER BY 1")
    detail = "a (°C) at 2026-11-20T12:00:00+00:00: 1.0 is stored, 2.0 came"
    assert [(b"two", "conflicting_value", detail, 1)] == [tuple(row) for row in letters]
    assert [("a", 1.0), ("b", 1.0)] == [tuple(row) for row in numbers]


async def test_store_counts_repeats_of_a_dead_letter_to_the_end(database: str) -> None:
    """A device that never stops sending the same nonsense: what cannot be counted stops no writer."""
    nonsense = delivery(telemetry(Point("a", 1.0)), payload=b"nonsense")
    nonsense.reject(Rejection(Reason.PARSE_ERROR, "no"))
    async with open_postgres_store(database) as store:
        await store.write([nonsense])
        async with open_asyncio_loop():
            await aio_as_trio(fetch)(database, "UPDATE ingest_errors SET repeats = 2147483646 RETURNING 1")
        for _ in range(2):
            await store.write([nonsense, nonsense])

    async with open_asyncio_loop():
        letters = await aio_as_trio(fetch)(database, "SELECT repeats FROM ingest_errors")
    assert [(2147483647,)] == [tuple(letter) for letter in letters]


async def test_store_conflict_keeps_the_earlier_faults(database: str) -> None:
    """A message with bad points and a conflicting one: one dead letter says both, however long the first is."""
    fault = Rejection(Reason.TYPE_MISMATCH, "$.points[1].v " * 1000)
    async with open_postgres_store(database) as store:
        await store.write([delivery(telemetry(Point("a", 1.0)))])
        result = await store.write([delivery(telemetry(Point("a", 2.0)), payload=b"partial", rejection=fault)])

    async with open_asyncio_loop():
        letters = await aio_as_trio(fetch)(database, "SELECT reason, detail FROM ingest_errors")
    ((reason, detail),) = [tuple(letter) for letter in letters]
    assert {0: Rejection(Reason.TYPE_MISMATCH, detail)} == result.rejected
    assert ("type_mismatch", 2000) == (reason, len(detail))
    assert detail.startswith("$.points[1].v $")
    assert detail.endswith("; conflicting_value: a at 2026-11-20T12:00:00+00:00: 1.0 is stored, 2.0 came")


async def test_store_replaces_where_the_newest_shall_win(database: str) -> None:
    """With INGEST_CONFLICTS=replace: what is stored is what came last, within a batch too; nothing is a dead letter."""
    async with open_postgres_store(database, INGEST_CONFLICTS="replace") as store:
        await store.write([delivery(telemetry(Point("a", 1.0), Point("b", True, "bool")))])
        result = await store.write(
            [delivery(telemetry(Point("a", 2.0))), delivery(telemetry(Point("a", 3.0, q=1), Point("b", True, "bool")))]
        )

    assert {} == result.rejected
    assert (0, 1, 2) == (result.points_stored, result.points_duplicate, result.points_conflicting)
    async with open_asyncio_loop():
        rows = await aio_as_trio(fetch)(database, "SELECT point_id, v_num, v_bool, qual FROM ts_measure ORDER BY 1")
    assert [("a", 3.0, None, 1), ("b", None, True, 0)] == [tuple(row) for row in rows]


async def test_store_other_event_under_the_same_id_is_a_conflict(open_any_store: OpenStore) -> None:
    """It is kept, as a dead letter; the same one again is a repeat."""
    async with open_any_store() as store:
        await store.write([delivery(Event("door", NOW, "1", b'{"open": true}'))])
        again = await store.write([delivery(Event("door", NOW, "1", b'{"open": true}'))])
        other = await store.write([delivery(Event("door", NOW, "1", b'{"open": false}'))])

    assert frozenset([0]) == again.duplicates
    assert {0: CONFLICT} == wordless(other).rejected


async def test_store_events_that_differ_within_a_batch_are_all_kept(database: str) -> None:
    """Of two events under one id the first is stored and the other one is a dead letter, in a batch in any order."""
    said = [(str(number), data) for data in (b"1", b"2") for number in range(40)]
    random.Random(1).shuffle(said)
    async with open_postgres_store(database) as store:
        await store.write(
            [delivery(Event("door", NOW, name, data), payload=data + name.encode()) for name, data in said]
        )

    async with open_asyncio_loop():
        letters = await aio_as_trio(fetch)(database, "SELECT payload FROM ingest_errors")
        events = await aio_as_trio(fetch)(database, "SELECT event_id, data::text FROM device_event")
    first = dict(reversed(said))
    assert {(name, data.decode()) for name, data in first.items()} == {tuple(row) for row in events}
    assert {data + name.encode() for name, data in said if data != first[name]} == {row[0] for row in letters}


async def test_store_repeats_within_a_message_and_a_batch(open_any_store: OpenStore) -> None:
    """The same point twice in one message: the first is stored, the rest are duplicates; likewise within a batch."""
    async with open_any_store() as store:
        result = await store.write(
            [
                delivery(telemetry(Point("a", 1.0), Point("a", 1.0), Point("a", 9.0))),
                delivery(telemetry(Point("a", 1.0))),
            ]
        )

    assert WriteResult(
        points_stored=1,
        points_duplicate=2,
        points_conflicting=1,
        duplicates=frozenset([1]),
        rejected={0: CONFLICT},
    ) == wordless(result)


# Messages of few points at few times, so that they share all, some or none of their keys; what a key says follows from
# it.
_messages = st.builds(
    lambda device, second, names: (device, second, names),
    st.sampled_from(["one", "two"]),
    st.integers(0, 3),
    st.lists(st.sampled_from("abcde"), min_size=1, max_size=4),
)
_examples = itertools.count()


def _value_of(name: str, second: int, reading: int) -> Point:
    """What a message says of a point: of all but e, the same at each time, whichever message says it."""
    return {
        "a": Point("a", float(second)),
        "b": Point("b", 7.5, u="bar"),
        "c": Point("c", second % 2 == 0, "bool"),
        "d": Point("d", f"state {second}", "enum", q=1),
        "e": Point("e", float(reading % 3)),
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
                    delivery(
                        telemetry(*(_value_of(n, second, reading) for n in names), second=second),
                        device=prefix + device,
                    )
                    for reading, (device, second, names) in enumerate(batch)
                ]
                expected, result = await memory.write(deliveries), await store.write(deliveries)

                assert attrs.evolve(expected, duplicates=result.duplicates) == wordless(result)
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
    async with open_asyncio_loop():
        sizes = await aio_as_trio(fetch)(database, "SELECT length(meta ->> 'log') FROM traksense.measure")
    assert [100_000] * 4 == [size for (size,) in sizes]


@pytest.mark.parametrize("kept", [0, 64], ids=["a device with few", "a device whose meta is always new"])
async def test_store_large_meta_of_many_points_is_stored_once(
    monkeypatch: pytest.MonkeyPatch, database: str, kept: int
) -> None:
    """A message takes no more room than it had: what each of its points would repeat is in the dictionary, however its
    points are divided, and comes back with each of them.
    """
    monkeypatch.setattr(rows, "NOVEL_META_MAX", 64 - kept)
    meta = b'{"log": "' + b"x" * (900_000 if not kept else 4_000) + b'"}'
    points = [Point(f"p{number}", 1.0) for number in range(2_000)]
    together = delivery(telemetry(*points, meta=meta))
    apart = delivery(*(telemetry(Point("a", 1.0), second=second, meta=meta) for second in range(2_000)), device="other")
    async with open_postgres_store(database) as store:
        result = await store.write([together, apart])
        again = await store.write([together, apart])

    assert (4_000, 4_000) == (result.points_stored, again.points_duplicate)
    async with open_asyncio_loop():
        size = "SELECT sum(pg_total_relation_size(oid)) FROM pg_class WHERE relnamespace = 'traksense'::regnamespace"
        [(inline, documents, taken)] = await aio_as_trio(fetch)(
            database,
            "SELECT (SELECT count(*) FROM traksense.measure WHERE meta IS NOT NULL),"
            f" (SELECT count(*) FROM traksense.meta), ({size})",
        )
        [(count, length)] = await aio_as_trio(fetch)(
            database,
            # Read from one of them: to take a megabyte out of its compressed place 4,000 times is slow.
            "SELECT (SELECT count(*) FROM ts_measure WHERE meta IS NOT NULL),"
            " (SELECT length(meta ->> 'log') FROM ts_measure LIMIT 1)",
        )
    assert (0, 1, 4_000, len(meta) - 11) == (inline, documents, count, length)
    assert taken < 20e6


@pytest.mark.parametrize("room", [320_000, 170_000], ids=["for all", "for most"])
async def test_store_large_meta_does_not_displace_another(
    monkeypatch: pytest.MonkeyPatch, database: str, room: int
) -> None:
    """Devices that each send their own large meta with many points, in batches that overlap, by several writers: no
    batch takes from another what it has just looked up.
    """
    monkeypatch.setattr(meta_numbers, "PASSING_BYTES_MAX", room)
    metas = [b'{"log%d": "' % number + b"x" * 9_000 + b'"}' for number in range(24)]
    points = [Point(f"p{number}", 1.0) for number in range(10)]
    registered: list[int] = []
    register = dictionary.Dictionary.register

    async def registering(self: dictionary.Dictionary, connection: Any, missing: dictionary.Missing) -> set[str]:
        registered.append(len(missing.meta))
        return await register(self, connection, missing)

    monkeypatch.setattr(dictionary.Dictionary, "register", registering)
    async with open_postgres_store(database) as store, trio.open_nursery() as nursery:

        async def write(begin: int) -> None:
            for second in range(begin, begin + 24):
                batch = [
                    delivery(telemetry(*points, second=second, meta=metas[n % 24]), device=f"device-{n % 24}")
                    for n in range(second, second + 3)
                ]
                assert WriteResult(points_stored=30) == await store.write(batch)

        for writer in range(3):
            nursery.start_soon(write, 32 * writer)

    assert sum(registered) <= 3 * len(metas) or room < 320_000


async def test_store_finds_a_device_with_many_points_again(database: str) -> None:
    """After a restart, too, and when it has as many again: a message costs by its size, not by its square."""
    points = [Point(f"p{number}", float(number), u="bar" if number % 2 else None) for number in range(10_000)]
    renamed = [Point(f"q{number}", 1.0) for number in range(10_000)]
    async with open_postgres_store(database) as store:
        await store.write([delivery(telemetry(*points))])

    async def analyze() -> None:
        connection = await asyncpg.connect(database)
        await connection.execute("VACUUM ANALYZE traksense.series")
        await connection.close()

    async with open_asyncio_loop():
        await aio_as_trio(analyze)()
    async with open_postgres_store(database, DB_STATEMENT_TIMEOUT="5") as store:
        again = await store.write([delivery(telemetry(*points))])
        more = await store.write([delivery(telemetry(*renamed, *points[:1], second=1))])

    assert (10_000, 10_001) == (again.points_duplicate, more.points_stored)


@pytest.mark.parametrize("many", ["names", "units", "units and none"])
async def test_store_looks_points_up_by_their_names(database: str, many: str) -> None:
    """What few new names cost does not depend on how many points their device has, nor on how many units a point."""

    def named(number: int) -> tuple[str, str | None]:
        if many == "names":
            return f"p{number}", None
        return "p", f"u{number}" if many == "units" or number else None

    points = [Point(name, 1.0, u=unit) for name, unit in map(named, range(10_000))]
    known = [("tenant", "site", "device", *named(number)) for number in range(100)]
    wanted = [*known, *(("tenant", "site", "device", *named(20_000 + number)) for number in range(100))]
    async with open_postgres_store(database) as store:
        await store.write([delivery(telemetry(*points))])

    async def look() -> tuple[int, int]:
        connection = await asyncpg.connect(database)
        try:
            await connection.execute("SET app.tenant_ids = 'tenant'")
            await connection.execute("SET ROLE traksense_ingest")
            async with connection.transaction():
                found = len(await connection.fetch(SELECT_SERIES, *columns_of(wanted, 5)))
                await connection.execute("RESET ROLE")
                read: int = await connection.fetchval(
                    "SELECT seq_tup_read + idx_tup_fetch FROM pg_stat_xact_user_tables WHERE relname = 'series'"
                )
        finally:
            await connection.close()
        return found, read

    async with open_asyncio_loop():
        found, read = await aio_as_trio(look)()

    assert len(known) == found
    assert read <= 2 * len(wanted)


async def test_store_repeated_events_are_looked_for_by_their_keys(database: str) -> None:
    """What they cost does not depend on how many events their tenant has, also before anybody has counted them."""
    ts = "timestamptz '2026-11-20 12:00Z' + n * interval '1 s'"
    repeats = (
        "SELECT traksense.differing_events(array_agg('tenant'::text), array_agg('site'::text),"
        f" array_agg('device'::text), array_agg(id), array_agg('boot'::text), array_agg({ts}), array_agg('1'::text))"
        " FROM generate_series(1, 10) n, LATERAL (VALUES ('e' || n), (NULL)) i (id)"
    )

    async def look() -> tuple[int, int]:
        connection = await asyncpg.connect(database)
        try:
            for event_id in ("'e' || n", "NULL"):
                await connection.execute(
                    "INSERT INTO public.device_event (tenant_id, site_id, device_id, event_id, event_type, ts)"
                    f" SELECT 'tenant', 'site', 'device', {event_id}, 'boot', {ts} FROM generate_series(1, 20000) n"
                )
            await connection.execute("SELECT set_config('app.tenant_ids', 'tenant', false)")
            async with connection.transaction():
                differing = len(await connection.fetch(repeats))
                read: int = await connection.fetchval(
                    "SELECT seq_tup_read + idx_tup_fetch FROM pg_stat_xact_user_tables WHERE relname = 'device_event'"
                )
        finally:
            await connection.close()
        return differing, read

    async with open_asyncio_loop():
        differing, read = await aio_as_trio(look)()

    assert 20 == differing
    assert read <= 2 * differing


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
        assert len(device.layout.keys) <= 5
        assert len(device.heads) == HEAD_BYTES * len(device.layout.keys)


async def test_store_devices_that_invent_points_are_forgotten(monkeypatch: pytest.MonkeyPatch, database: str) -> None:
    """Names that nobody repeats: stored all the same, and not remembered without bound. What devices share counts once:
    it stays.
    """
    monkeypatch.setattr(dictionary, "POINTS_MAX", 100)
    async with open_postgres_store(database) as store:
        shared = [
            delivery(telemetry(*(Point(f"p-{k}", 1.0) for k in range(40))), device=f"same-{n}") for n in range(100)
        ]
        assert WriteResult(points_stored=4000) == await store.write(shared)
        store._dictionary.make_room()
        assert 100 == len(store._dictionary._devices)
        same = set(store._dictionary._devices)

        for second in range(30):
            batch = [
                delivery(telemetry(*(Point(f"p-{second}-{k}", 1.0) for k in range(10)), second=second), device=f"d-{n}")
                for n in range(3)
            ]
            assert WriteResult(points_stored=30) == await store.write(batch)
            store._dictionary.make_room()
            layouts = {device.layout for device in store._dictionary._devices.values()}
            assert sum(len(layout.keys) for layout in layouts) <= 100
            assert same <= set(store._dictionary._devices)


async def fetch(dsn: str, sql: str) -> list[asyncpg.Record]:
    """asyncio-flavored."""
    connection = await asyncpg.connect(dsn)
    try:
        return await connection.fetch(sql)
    finally:
        await connection.close()


async def test_store_partition_that_is_dropped_is_made_again(database: str) -> None:
    """An idle service finds it and is ready again; so is a batch stored that finds it."""
    drop = """
    DO $$ BEGIN EXECUTE (
        SELECT string_agg(format('DROP TABLE %s', inhrelid::regclass), '; ') FROM pg_inherits
        WHERE inhparent = 'traksense.measure'::regclass
    ); END $$
    """
    async with open_postgres_store(database) as store:
        await aio_as_trio(fetch)(database, drop)
        with suppress(StoreUnavailableError):  # unless the service's own probe has just found it
            await store.probe()
        await store.probe()

        await store.write([delivery(telemetry(Point("a", 1.0)))])
        await aio_as_trio(fetch)(database, drop)
        with suppress(StoreUnavailableError):
            await store.write([delivery(telemetry(Point("b", 2.0)))])
        assert 1 == (await store.write([delivery(telemetry(Point("c", 2.0)))])).points_stored


async def test_store_unit_is_part_of_the_series(open_any_store: OpenStore) -> None:
    """One name in two units is two series, and without a unit a third."""
    points = (Point("A", 23.35, u="Cel"), Point("A", 64.0, u="%RH"), Point("A", 1.0))
    async with open_any_store() as store:
        result = await store.write([delivery(telemetry(*points))])

    assert WriteResult(points_stored=3) == result


async def test_store_spellings_of_a_point_are_one_series(open_any_store: OpenStore) -> None:
    """Composed or not, micro or mu, a blank unit or none: the same point, beside each other and one after another."""
    spellings = [
        ("caf\u00e9", "\u00b5g"),
        ("cafe\u0301", "\u03bcg"),
        (" caf\u00e9", "\u00b5g "),
        ("n", None),
        ("n", ""),
    ]
    async with open_any_store() as store:
        together = await store.write([delivery(telemetry(*(Point(name, 1.0, u=unit) for name, unit in spellings)))])
        apart = [
            await store.write([delivery(telemetry(Point(name, 1.0, u=unit), second=1 + n))])
            for n, (name, unit) in enumerate(spellings)
        ]
        again = await store.write(
            [delivery(telemetry(Point(name, 1.0, u=unit), second=1)) for name, unit in spellings[:3]]
        )

    assert WriteResult(points_stored=2, points_duplicate=3) == together
    assert [WriteResult(points_stored=1)] * 5 == apart
    assert WriteResult(points_duplicate=3, duplicates=frozenset(range(3))) == again


async def test_store_has_a_series_for_each_point(database: str) -> None:
    """The spelling that is stored is the canonical one."""
    spellings = [
        ("caf\u00e9", "\u00b5g"),
        ("cafe\u0301", "\u03bcg"),
        (" caf\u00e9", "\u00b5g "),
        ("n", None),
        ("n", ""),
    ]
    async with open_postgres_store(database) as store:
        await store.write(
            [delivery(telemetry(*(Point(name, 1.0, u=unit) for name, unit in spellings)), device="names")]
        )
        rows = await aio_as_trio(fetch)(
            database, "SELECT point_id, unit FROM traksense.series WHERE device_id = 'names' ORDER BY point_id"
        )

    assert [("caf\u00e9", "\u00b5g"), ("n", None)] == [tuple(row) for row in rows]


async def test_store_dead_letters_beside_good_messages(open_any_store: OpenStore) -> None:
    """A batch may have both; a dead letter that comes again is no error."""
    bad = delivery(payload=b"\x00\xff", rejection=Rejection(Reason.PARSE_ERROR, "not JSON"))
    async with open_any_store() as store:
        first = await store.write([bad, delivery(telemetry(Point("a", 1.0)))])
        again = await store.write([bad, bad])

    assert WriteResult(points_stored=1) == first
    assert WriteResult() == again


async def test_store_message_of_which_a_part_is_bad(open_any_store: OpenStore) -> None:
    """Its good points are stored with its dead letter, and a repeat of it finds both."""
    partial = delivery(
        telemetry(Point("a", 1.0)), payload=b"partial", rejection=Rejection(Reason.TYPE_MISMATCH, "$.points[1].v")
    )
    async with open_any_store() as store:
        first = await store.write([partial, delivery(telemetry(Point("b", 1.0))), delivery(payload=b"")])
        again = await store.write([partial])

    assert WriteResult(points_stored=2) == first
    assert WriteResult(points_duplicate=1, duplicates=frozenset([0])) == again


async def test_store_part_of_an_unknown_device(open_any_store: OpenStore) -> None:
    """With strict provisioning, a message is refused as a whole, whatever is wrong with a part of it; one without
    items is not looked at.
    """
    fault = Rejection(Reason.TYPE_MISMATCH, "$.points[1].v")
    batch = [
        delivery(telemetry(Point("a", 1.0)), device="stranger", rejection=fault),
        delivery(device="stranger", rejection=fault),
        delivery(device="stranger", payload=b""),
    ]
    async with open_any_store(registered=[("tenant", "site", "device")]) as store:
        with pytest.raises(DeliveriesRefusedError) as caught:
            await store.write(batch)

    assert {0: Reason.UNKNOWN_DEVICE} == {n: r.reason for n, r in caught.value.rejections.items()}


async def test_store_exact_numbers_are_compared_to_the_last_digit(open_any_store: OpenStore) -> None:
    """Two numbers with the same double are two values."""
    async with open_any_store() as store:
        await store.write([delivery(telemetry(Point("a", Exact("9007199254740993"))))])
        same = await store.write([delivery(telemetry(Point("a", Exact("9007199254740993"))))])
        other = await store.write([delivery(telemetry(Point("a", 9007199254740992.0)))])

    assert WriteResult(points_duplicate=1, duplicates=frozenset([0])) == same
    assert WriteResult(points_conflicting=1, duplicates=frozenset([0]), rejected={0: CONFLICT}) == wordless(other)


class PlainNumber:
    """An adapter of devices that send a number and nothing else."""

    name = "plain_number"
    kind = Kind.TELEM

    def claims(self, payload: bytes, members: frozenset[str] | None) -> bool:
        return members is None

    def decode(self, payload: bytes, context: Context) -> list[Item]:
        return [Telemetry(context.received_at, [Point("value", number(payload.decode()))])]


def taken_in(*messages: tuple[Kind, bytes], adapters: Sequence[Adapter] = ()) -> list[Delivery]:
    """What intake and decoder make of messages that one read brought."""
    send, receive = trio.open_memory_channel[Message](len(messages))
    intake = Intake(send, router=Router(), ledger=Ledger(), acknowledger=Acknowledger(), max_bytes=2**30)
    intake.accept(
        [
            Message(f"traksense/tenant/site/device/{kind}", payload, 1, n, 1, redelivered=False, received_at=NOW)
            for n, (kind, payload) in enumerate(messages)
        ]
    )
    assert intake.flush_nowait()
    decoder = Decoder(load({}), Registry(adapters), now=lambda: NOW)
    return [decoder.decode(receive.receive_nowait()) for _ in messages]


async def test_store_numbers_without_a_time_of_their_own(database: str) -> None:
    """120 plain numbers of one read and one topic are 120 rows, the same ones twice too."""
    numbers = [(Kind.TELEM, b"%d" % (n // 2)) for n in range(120)]
    async with open_postgres_store(database) as store:
        result = await store.write(taken_in(*numbers, adapters=[PlainNumber()]))
        rows = await aio_as_trio(fetch)(database, "SELECT v_num FROM ts_measure ORDER BY ts")

    assert WriteResult(points_stored=120) == result
    assert [n // 2 for n in range(120)] == [row["v_num"] for row in rows]


async def test_store_every_digit(database: str) -> None:
    """Numbers that no double holds come back as they were sent, by what ops/reading.md says; in points, in
    acknowledgements and in events.
    """
    sent = ["9007199254740993", "9223372036854775807", "18446744073709551615", "1e-400", "0.10000000000000000001"]
    sent += [
        "9007199254740992",
        "1152921504606846976",
        "1.152921504606847e18",
        "-9223372036854775808",
        "1e22",
        "0.1",
        "7",
    ]
    points = ",".join(f'{{"name":"p{n:02}","v":{text}}}' for n, text in enumerate(sent))
    exact = block_of("reading.md coalesce").text
    batch = taken_in(
        (Kind.TELEM, f'{{"schema":"v1","ts":"2026-11-20T10:00:00Z","points":[{points}]}}'.encode()),
        (Kind.ACK, b'{"schema":"v1","cmd_id":"c","ok":true,"n":18446744073709551615}'),
        (Kind.EVENT, b'{"schema":"v1","event_type":"e","ts":"2026-11-20T10:00:00Z","data":9007199254740993}'),
    )
    async with open_postgres_store(database) as store:
        await store.write(batch)
        stored = await aio_as_trio(fetch)(database, f"SELECT {exact} AS exact, v_num FROM ts_measure ORDER BY point_id")
        acks = await aio_as_trio(fetch)(database, "SELECT payload ->> 'n' AS n FROM cmd_ack")
        events = await aio_as_trio(fetch)(database, "SELECT data #>> '{}' AS n FROM device_event")

    assert [Decimal(text) for text in sent] == [row["exact"] for row in stored]
    assert [float(text) for text in sent] == [row["v_num"] for row in stored]
    assert ["18446744073709551615"] == [row["n"] for row in acks]
    assert ["9007199254740993"] == [row["n"] for row in events]


async def test_store_points_beyond_retention_beside_others(database: str) -> None:
    """Of a pack with several times, what is too old is named in a dead letter, and the rest is stored."""
    async with open_postgres_store(database) as store:
        with trio.fail_after(HANG_SECONDS):
            while not store.upkeep.states:  # its first round reads the retention
                await trio.sleep(0.01)
        store.upkeep.retention = timedelta(days=30)
        pack = delivery(
            Telemetry(datetime.now(UTC), [Point("new", 1.0)]),
            Telemetry(NOW - timedelta(days=3650), [Point("old", 1.0)]),
        )
        result = await store.write([pack])
        again = await store.write([pack])
        rows = await aio_as_trio(fetch)(database, "SELECT point_id FROM ts_measure")
        errors = await aio_as_trio(fetch)(database, "SELECT reason, detail FROM ingest_errors")

    assert (1, 1) == (result.points_stored, again.points_duplicate)
    assert ["new"] == [row["point_id"] for row in rows]
    assert [("timestamp_out_of_window", True)] == [(r["reason"], "kept for 30 days" in r["detail"]) for r in errors]


async def test_session_of_a_former_server_is_not_used(database: str) -> None:
    """A connection from before the newest one led elsewhere is closed: the batch goes over another one, once."""
    async with open_postgres_store(database) as store:
        await store.write([delivery(telemetry(Point("a", 1.0)))])
        before = await store.call(backend)
        store._incarnation = "another server, met by a connection since"
        with trio.fail_after(HANG_SECONDS):
            await store.write([delivery(telemetry(Point("a", 2.0), second=1))])
        after = await store.call(backend)
        rows = await aio_as_trio(fetch)(database, "SELECT v_num FROM ts_measure ORDER BY ts")

    assert before != after
    assert [1.0, 2.0] == [row["v_num"] for row in rows]


async def backend(connection: Any) -> int:
    """The server process of a connection. asyncio-flavored."""
    number: int = await connection.fetchval("SELECT pg_backend_pid()")
    return number


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
    assert WriteResult(duplicates=frozenset([0, 1]), rejected={0: CONFLICT}) == wordless(again)


async def test_store_events_of_one_name_on_two_sites(open_any_store: OpenStore) -> None:
    """A device is known by its site, too: what both report is two events, with an id and without."""
    events = [Event("boot", NOW, "e1"), Event("boot", NOW)]
    async with open_any_store() as store:
        first = await store.write([delivery(*events, site=site) for site in ("one", "two")])
        again = await store.write([delivery(*events, site=site) for site in ("one", "two")])
        other = await store.write([delivery(Event("boot", NOW, "e1", b"1"), site="two")])
        unlike = [(Event("boot", NOW, "e2", b"%d" % number), f"site {number}") for number in range(2)]
        await store.write([delivery(event, site=site) for event, site in unlike])
        unlike_again = await store.write([delivery(event, site=site) for event, site in unlike])

    assert WriteResult() == first
    assert WriteResult(duplicates=frozenset([0, 1])) == again == unlike_again
    assert {0: CONFLICT} == wordless(other).rejected


async def test_store_event_whose_id_is_its_content_is_the_same_at_any_time(open_any_store: OpenStore) -> None:
    """A device that describes itself again and again, with and without a clock, says one thing: the first is kept."""
    async with open_any_store() as store:
        results = [
            await store.write(
                [delivery(Event("info", NOW + timedelta(seconds=second), "i", b"{}", id_of_content=True))]
            )
            for second in range(2)
        ]

    assert [WriteResult(), WriteResult(duplicates=frozenset([0]))] == results


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
