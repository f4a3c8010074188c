"""A clock that the store's contradicts: messages wait instead of being refused."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest
import trio

from traksense.adapters import load_registry
from traksense.config import load
from traksense.ingest.batch import Batcher
from traksense.ingest.clock import ClockWatch
from traksense.ingest.decode import Decoder, read_topic
from traksense.ingest.health import Health
from traksense.model import Delivery, Message, Reason

if TYPE_CHECKING:
    from trio.testing import MockClock

RIGHT = datetime(2026, 11, 20, 12, tzinfo=UTC)
THREE_DAYS = timedelta(days=3)
TOPIC = "traksense/acme/site/dev1/telem"


class Bench:
    """A decoder and a batcher whose clock is three days behind until `set_clock`."""

    def __init__(self) -> None:
        self.now = RIGHT - THREE_DAYS
        self.health = Health(["clock"])
        self.clock = ClockWatch(self.health, now=lambda: self.now)
        self.messages_send, receive = trio.open_memory_channel[Message](100)
        batches_send, self.batches = trio.open_memory_channel[list[Delivery]](10)
        decoder = Decoder(load({}), load_registry(), now=lambda: self.now, clock=self.clock)
        self.batcher = Batcher(
            receive, batches_send, decode=decoder.decode, size_max=100, wait_max=0.25, clock=self.clock
        )

    def hear_store(self) -> None:
        self.clock.note(RIGHT - self.now)

    def send(self, at: datetime) -> None:
        payload = b'{"schema":"v1","ts":"%s","points":[{"name":"p","t":"num","v":1}]}' % at.isoformat().encode()
        message = Message(TOPIC, payload, 1, 1, 1, False, self.now, read_topic(TOPIC))
        self.messages_send.send_nowait(message)

    async def ended(self) -> list[Reason | None]:
        with trio.move_on_after(5):
            return [d.rejection.reason if d.rejection else None for d in await self.batches.receive()]
        return []


@pytest.mark.parametrize("heard", [False, True])
async def test_message_waits_while_our_clock_is_in_doubt(
    autojump_clock: MockClock, nursery: trio.Nursery, heard: bool
) -> None:
    """A good message of a right device is stored once the clock is set; one before it does not wait for that."""
    bench = Bench()
    nursery.start_soon(bench.batcher.run)
    if heard:
        bench.hear_store()
        assert "3 days" in str(bench.health.report()["clock"]["reason"])
    bench.send(RIGHT - THREE_DAYS)
    bench.send(RIGHT)
    assert [None] == await bench.ended()
    assert [] == await bench.ended()

    bench.now = RIGHT
    bench.hear_store()

    assert [None] == await bench.ended()
    assert bench.health.ready


async def test_wrong_device_is_refused_by_a_right_clock(autojump_clock: MockClock, nursery: trio.Nursery) -> None:
    """Once the store agrees with our clock, a device that is days ahead is what is wrong."""
    bench = Bench()
    nursery.start_soon(bench.batcher.run)
    bench.now = RIGHT
    bench.send(RIGHT + THREE_DAYS)
    assert [] == await bench.ended()

    bench.hear_store()

    assert [Reason.TIMESTAMP_OUT_OF_WINDOW] == await bench.ended()


async def test_clock_that_is_set_between_two_looks_is_doubted(autojump_clock: MockClock, nursery: trio.Nursery) -> None:
    """It jumps after the store has agreed with it: the next refusal waits until the store was heard again."""
    bench = Bench()
    nursery.start_soon(bench.batcher.run)
    bench.now = RIGHT
    bench.hear_store()

    bench.now = RIGHT - THREE_DAYS
    bench.send(RIGHT)

    assert [] == await bench.ended()


async def test_device_without_a_clock_holds_up_nobody(autojump_clock: MockClock, nursery: trio.Nursery) -> None:
    """What is older than anything accepted is refused at once: no setting of our clock would make it good."""
    bench = Bench()
    nursery.start_soon(bench.batcher.run)
    bench.hear_store()

    bench.send(datetime(1970, 1, 1, tzinfo=UTC))
    bench.send(RIGHT - THREE_DAYS)

    assert [Reason.TIMESTAMP_OUT_OF_WINDOW, None] == await bench.ended()
