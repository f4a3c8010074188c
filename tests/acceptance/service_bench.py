"""A whole service on the shared broker and a database of its own: what acceptance tests start from."""

from __future__ import annotations

import json
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import asyncpg
import attrs
import trio
from trio_asyncio import aio_as_trio

from tests.patience import HANG_SECONDS
from traksense.config import load
from traksense.store.asyncio_loop import open_asyncio_loop
from traksense.tools.publisher import open_publisher
from traksense.tools.stack import open_service

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from pathlib import Path

    from traksense.tools.stack import BrokerProcess, ServiceProcess


@attrs.define
class ServiceBench:
    """What a test needs of a running service."""

    service: ServiceProcess
    broker: BrokerProcess
    dsn: str
    tenant: str
    environ: dict[str, str]

    def topic(self, kind: str = "telem", device: str = "device123") -> str:
        """A topic of this test's own tenant."""
        return f"traksense/{self.tenant}/factory/{device}/{kind}"

    async def publish(self, *messages: tuple[str, bytes]) -> None:
        """Publish (topic, payload) pairs at QoS 1; returns when the broker has confirmed all of them."""
        where = load({"MQTT_URL": self.broker.url}).broker
        async with open_publisher(where, client_id=f"publisher-{self.tenant}") as publisher:
            for topic, payload in messages:
                await publisher.publish(topic, payload)
            await publisher.drain()

    async def query(self, sql: str, *args: object) -> list[tuple[Any, ...]]:
        """Rows of a query by the superuser."""
        return await query(self.dsn, sql, *args)

    async def wait_ended(self, count: int) -> None:
        """Wait until so many messages are stored, duplicate or dead, and none is in flight."""
        with trio.fail_after(HANG_SECONDS):
            while True:
                metrics = await self.service.metrics()
                if metrics.total("ingest_messages_ended_total") >= count and not metrics.value(
                    "ingest_in_flight_messages"
                ):
                    return
                await trio.sleep(0.02)


async def query(dsn: str, sql: str, *args: object) -> list[tuple[Any, ...]]:
    """Rows of a query. Trio-flavored, with an asyncio loop of its own."""

    async def fetch() -> list[tuple[Any, ...]]:
        connection = await asyncpg.connect(dsn)
        try:
            return [tuple(row) for row in await connection.fetch(sql, *args)]
        finally:
            await connection.close()

    async with open_asyncio_loop():
        rows: list[tuple[Any, ...]] = await aio_as_trio(fetch)()
    return rows


@asynccontextmanager
async def running_service(
    broker: BrokerProcess, dsn: str, tenant: str, directory: Path, **more: str
) -> AsyncIterator[ServiceBench]:
    """A ready service that reads this tenant's topics; stopped at the end, if the test has not done so."""
    environ = {
        "MQTT_URL": broker.url,
        "MQTT_TOPICS": f"traksense/{tenant}/+/+/+",
        "MQTT_CLIENT_ID": f"ingest-{tenant}",
        "DATABASE_URL": dsn,
        **more,
    }
    async with open_service(environ, directory) as service:
        await service.wait_ready()
        yield ServiceBench(service, broker, dsn, tenant, environ)


def envelope(points: Sequence[dict[str, Any]], *, ts: datetime | str | None = None, **more: Any) -> bytes:
    """An envelope v1; without a time, that of now."""
    when = ts if isinstance(ts, str) else (ts or datetime.now(UTC)).isoformat()
    return json.dumps({"schema": "v1", "ts": when, "points": list(points), **more}, ensure_ascii=False).encode()
