"""What troubles some messages only: they wait, are tried again, and hold up nobody else."""

from __future__ import annotations

from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final

import asyncpg
import pytest
import trio
from trio_asyncio import aio_as_trio

from tests.acceptance.service_bench import envelope, query, running_service
from tests.acceptance.test_shutdown import migrated
from traksense.store.asyncio_loop import open_asyncio_loop

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from traksense.tools.stack import BrokerProcess

NOW: Final = datetime.now(UTC)
LONG_AGO: Final = NOW - timedelta(days=300)
OLD_PARTITION: Final = """
SELECT oid::regclass::text FROM pg_class WHERE oid = (
    SELECT tableoid FROM traksense.measure WHERE ts < now() - interval '200 days' LIMIT 1
)
"""


@asynccontextmanager
async def locked(dsn: str) -> AsyncIterator[None]:
    """As VACUUM FULL, CLUSTER or REINDEX of an old partition would have it."""
    connection = await aio_as_trio(asyncpg.connect)(dsn)
    name = await aio_as_trio(connection.fetchval)(OLD_PARTITION)
    await aio_as_trio(connection.execute)(f"BEGIN; LOCK TABLE {name} IN ACCESS EXCLUSIVE MODE")
    try:
        yield
    finally:
        await aio_as_trio(connection.close)()


@asynccontextmanager
async def being_detached(dsn: str) -> AsyncIterator[None]:
    """As DETACH PARTITION CONCURRENTLY leaves it when it is interrupted."""
    connection, reader = [await aio_as_trio(asyncpg.connect)(dsn) for _ in range(2)]
    name = await aio_as_trio(connection.fetchval)(OLD_PARTITION)
    await aio_as_trio(reader.execute)("BEGIN; LOCK TABLE traksense.measure IN ACCESS SHARE MODE")
    await aio_as_trio(connection.execute)("SET statement_timeout = '1s'")
    with pytest.raises(asyncpg.QueryCanceledError):
        await aio_as_trio(connection.execute)(f"ALTER TABLE traksense.measure DETACH PARTITION {name} CONCURRENTLY")
    await aio_as_trio(reader.close)()
    try:
        yield
    finally:
        await aio_as_trio(connection.execute)("RESET statement_timeout")
        detached = False
        while not detached:
            # An operator repeats it: those who try to write there may be in its way.
            with suppress(asyncpg.DeadlockDetectedError):
                await aio_as_trio(connection.execute)(f"ALTER TABLE traksense.measure DETACH PARTITION {name} FINALIZE")
                detached = True
        await aio_as_trio(connection.close)()


@pytest.mark.parametrize("trouble", [locked, being_detached])
async def test_trouble_with_one_partition_holds_up_only_what_belongs_there(
    broker: BrokerProcess, empty_database: str, tenant: str, tmp_path: Path, trouble: object
) -> None:
    """More late messages than there are writers wait, and /readyz says so; what others send is stored at once."""
    dsn = await migrated(empty_database)
    async with open_asyncio_loop(), running_service(broker, dsn, tenant, tmp_path) as bench:

        async def publish(ts: datetime, count: int) -> None:
            await bench.publish(
                *(
                    (bench.topic(), envelope([{"name": "a", "v": n}], ts=ts + timedelta(seconds=n)))
                    for n in range(count)
                )
            )

        async def wait_stored(count: int) -> None:
            # A constant, so that only the partitions of these days are looked at.
            recent = f"SELECT count(*) FROM traksense.measure WHERE ts > '{NOW - timedelta(days=2)}'"
            with trio.fail_after(60):
                while await query(dsn, recent) != [(count,)]:
                    await trio.sleep(0.1)

        await publish(LONG_AGO, 1)
        await bench.wait_ended(1)
        async with trouble(dsn):  # type: ignore[operator]
            await publish(LONG_AGO + timedelta(seconds=10), 20)
            await publish(NOW, 50)
            await wait_stored(50)
            with trio.fail_after(60):
                while (await bench.service.readiness())[0] == 200:
                    await trio.sleep(0.1)
            await publish(NOW + timedelta(minutes=5), 50)
            await wait_stored(100)
            _, body = await bench.service.readiness()
        assert "messages wait while others are stored" in body["conditions"]["database"]["reason"]
        with trio.fail_after(60):
            await bench.wait_ended(121)
            while (await bench.service.readiness())[0] != 200:
                await trio.sleep(0.1)
        stored = await query(dsn, "SELECT count(*) FROM ts_measure")

    assert [(121 if trouble is locked else 120,)] == stored
