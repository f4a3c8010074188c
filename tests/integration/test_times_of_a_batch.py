"""How many chunks a transaction writes to is bounded: each takes locks, of which a server has only so many."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest
import trio

from tests.contract.test_store import open_postgres_store
from tests.patience import HANG_SECONDS
from traksense.errors import DataRefusedError, DeliveriesRefusedError
from traksense.model import Delivery, Kind, Message, Point, Reason, Route, Telemetry
from traksense.store.chunks import CHUNKS_MAX

if TYPE_CHECKING:
    from schema_servers import Database

pytest_plugins = ("schema_fixtures",)

START = datetime(2020, 1, 1, tzinfo=UTC)


def delivery(first: int, days: int) -> Delivery:
    """A message with a point on each of so many days."""
    route = Route("acme", "site", "dev", Kind.TELEM)
    message = Message(f"traksense/{route.path}/telem", b"[]", 1, 1, 1, False, START, route)
    items = [Telemetry(START + timedelta(days=first + n), [Point("p", float(n))], None) for n in range(days)]
    return Delivery(message, list(items), days)


async def test_message_of_more_days_than_a_transaction_can_write(migrated: Database) -> None:
    """On TimescaleDB it is refused, and a batch of it and others is divided; partitions, of years, take all of it."""
    half, whole = CHUNKS_MAX // 2 + 1, CHUNKS_MAX + 1
    with trio.fail_after(HANG_SECONDS):
        async with open_postgres_store(migrated.dsn) as store:
            if not migrated.server.timescaledb:
                assert whole == (await store.write([delivery(0, whole)])).points_stored
                return
            with pytest.raises(DataRefusedError):
                await store.write([delivery(0, half), delivery(half, half)])
            assert half == (await store.write([delivery(0, half)])).points_stored
            with pytest.raises(DeliveriesRefusedError) as caught:
                await store.write([delivery(0, whole)])
            (rejection,) = caught.value.rejections.values()
            assert Reason.TOO_MANY_POINTS == rejection.reason
            assert f"in {whole} chunks" in rejection.detail
