"""One message that the real database refuses, among ten thousand."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import trio

from tests.acceptance.service_bench import query
from tests.contract.test_store import open_postgres_store
from tests.patience import HANG_SECONDS
from traksense.ingest.ack import Acknowledger
from traksense.ingest.batch import Batcher
from traksense.ingest.health import Health
from traksense.ingest.ledger import Ledger
from traksense.ingest.write import Writer
from traksense.model import CommandAck, Delivery, Kind, Message, Route

if TYPE_CHECKING:
    from collections.abc import Sequence

    from traksense.ingest.ports import WriteResult
    from traksense.store.postgres import PostgresStore

COUNT = 10_000
POISON = 6543
NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)


class CountingStore:
    """The real store, with its transactions counted."""

    def __init__(self, store: PostgresStore) -> None:
        self._store = store
        self.writes = 0

    async def write(self, batch: Sequence[Delivery]) -> WriteResult:
        """See ports.Store.write."""
        self.writes += 1
        return await self._store.write(batch)

    async def probe(self) -> None:
        """See ports.Store.probe."""
        await self._store.probe()


def delivery(number: int) -> Delivery:
    route = Route("tenant", "site", "device", Kind.ACK)
    topic = "traksense/tenant/site/device/ack"
    message = Message(topic, b"%d" % number, 1, 1 + number, 1, redelivered=False, received_at=NOW, route=route)
    return Delivery(message, [CommandAck(f"command-{number}", ok=True, payload=b"{}")], 0)


async def test_one_poison_message_in_ten_thousand(database: str) -> None:
    """Exactly one dead letter, 9,999 stored, all acknowledged in order, and a logarithmic number of transactions."""
    await query(database, f"ALTER TABLE public.cmd_ack ADD CHECK (cmd_id <> 'command-{POISON}')")
    ledger, acknowledger, acknowledged = Ledger(), Acknowledger(), list[int]()
    acknowledger.connected(1, acknowledged.extend)
    deliveries = [delivery(number) for number in range(COUNT)]
    for d in deliveries:
        ledger.receive([d.message])
        acknowledger.received([d.message])
    batches_send, batches_receive = trio.open_memory_channel[list[Delivery]](1)
    _, messages_receive = trio.open_memory_channel[Message](0)
    batcher = Batcher(messages_receive, batches_send, decode=lambda m: Delivery(m, [], 0), size_max=1, wait_max=0)
    await batches_send.send(deliveries)
    batches_send.close()
    async with open_postgres_store(database) as real:
        store = CountingStore(real)
        writer = Writer(
            batches_receive,
            store=store,
            batcher=batcher,
            ledger=ledger,
            acknowledger=acknowledger,
            health=Health(["database"]),
        )
        with trio.fail_after(HANG_SECONDS):
            await writer.run()

    assert [(COUNT - 1,)] == await query(database, "SELECT count(*) FROM cmd_ack")
    assert [(b"%d" % POISON, "database_refused")] == await query(database, "SELECT payload, reason FROM ingest_errors")
    assert (COUNT - 1, 1, 0) == (ledger.stored, ledger.dead, ledger.in_flight)
    assert list(range(1, COUNT + 1)) == acknowledged
    assert 2 * math.ceil(math.log2(COUNT)) + 2 >= store.writes
