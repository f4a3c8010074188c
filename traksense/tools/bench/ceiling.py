"""What the database alone can do: the rows of a load, by COPY, from as many connections as the service has writers."""

from __future__ import annotations

import asyncio
import struct
import time
from collections import deque
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

import asyncpg

from traksense.store.packing import COPY_HEADER, COPY_TRAILER, PACKED_COLUMNS

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable

COPY_SECONDS: Final = 600.0
WITH_META_BYTES: Final = 58
"""A row with the number of a meta; without it, four bytes less."""

EPOCH: Final = datetime(2000, 1, 1, tzinfo=UTC)


async def copy(
    _connection: object, dsn: str, batches: Iterable[tuple[bytes, int]], writers: int, *, encode: bool = False
) -> tuple[float, int]:
    """COPY batches, each in a transaction of its own; the seconds taken and the rows. asyncio-flavored.

    Args:
        dsn: Where to.
        batches: The bytes that binary COPY takes, and how many rows they are.
        writers: How many connections.
        encode: Give the driver rows of Python objects instead, as most programs do; it encodes them.
    """
    waiting: deque[Any] = deque(map(_records, batches) if encode else batches)
    rows = sum(count for _, count in waiting)
    connections = [await asyncpg.connect(dsn, server_settings={"synchronous_commit": "on"}) for _ in range(writers)]
    target: dict[str, Any] = {"schema_name": "traksense", "columns": PACKED_COLUMNS, "timeout": COPY_SECONDS}

    async def write(connection: asyncpg.Connection[asyncpg.Record]) -> None:
        while waiting:
            batch, _ = waiting.popleft()
            if encode:
                await connection.copy_records_to_table("measure", records=batch, **target)
            else:
                await connection.copy_to_table("measure", source=_whole(batch), format="binary", **target)

    try:
        begin = time.perf_counter()
        await asyncio.gather(*map(write, connections))
        return time.perf_counter() - begin, rows
    finally:
        for connection in connections:
            connection.terminate()


async def _whole(data: bytes) -> AsyncIterator[bytes]:
    # A file would be read in a thread.
    yield data


def _records(batch: tuple[bytes, int]) -> tuple[list[tuple[Any, ...]], int]:
    data, count = batch
    packed = data[len(COPY_HEADER) : -len(COPY_TRAILER)]
    size = len(packed) // count
    row = struct.Struct(">6xi4xq8x4xi12xd" if size == WITH_META_BYTES else ">6xi4xq24xd")
    return [
        (series, EPOCH + timedelta(microseconds=at), None, None, meta[0] if meta else None, None, None, value)
        for series, at, *meta, value in row.iter_unpack(packed)
    ], count
