"""What the database alone can do: the rows of a load, by COPY, from as many connections as the service has writers."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from typing import TYPE_CHECKING, Final

import asyncpg

from traksense.store.packing import PACKED_COLUMNS

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable

COPY_SECONDS: Final = 600.0


async def copy(_connection: object, dsn: str, batches: Iterable[tuple[bytes, int]], writers: int) -> tuple[float, int]:
    """COPY prepared batches, each in a transaction of its own; the seconds taken and the rows. asyncio-flavored."""
    waiting = deque(batches)
    rows = sum(count for _, count in waiting)
    connections = [await asyncpg.connect(dsn, server_settings={"synchronous_commit": "on"}) for _ in range(writers)]

    async def write(connection: asyncpg.Connection[asyncpg.Record]) -> None:
        while waiting:
            data, _ = waiting.popleft()
            await connection.copy_to_table(
                "measure",
                schema_name="traksense",
                columns=PACKED_COLUMNS,
                source=_whole(data),
                format="binary",
                timeout=COPY_SECONDS,
            )

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
