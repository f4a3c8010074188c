"""The batcher: when it flushes, and that it loses and reorders nothing."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from traksense.ingest.batch import BATCH_MAX_BYTES, Batch, Batcher
from traksense.model import Delivery, Message

if TYPE_CHECKING:
    from collections.abc import Callable

    from trio.testing import MockClock

WAIT = 0.25


def message(number: int, size: int = 0) -> Message:
    return Message(
        f"{number}",
        b"x" * size,
        1,
        1 + number % 65535,
        1,
        redelivered=False,
        received_at=datetime(2026, 1, 1, tzinfo=UTC),
    )


def one_point(m: Message) -> Delivery:
    return Delivery(m, [], 1)


class Stage:
    """A batcher with open ends."""

    def __init__(
        self, *, size_max: int = 10, queue_max: float = 1000, decode: Callable[[Message], Delivery] = one_point
    ) -> None:
        self.messages_send, messages_receive = trio.open_memory_channel[Message](queue_max)
        batches_send, self.batches_receive = trio.open_memory_channel[list[Delivery]](0)
        self.batcher = Batcher(messages_receive, batches_send, decode=decode, size_max=size_max, wait_max=WAIT)

    async def next(self) -> list[int]:
        return [int(d.message.topic) for d in await self.batches_receive.receive()]


async def test_batch_idle_flushes_at_once(autojump_clock: MockClock, nursery: trio.Nursery) -> None:
    """With no batch under way, a lone message goes to a writer without waiting."""
    stage = Stage()
    nursery.start_soon(stage.batcher.run)
    began = trio.current_time()

    await stage.messages_send.send(message(1))

    assert [1] == await stage.next()
    assert began == trio.current_time()


async def test_batch_busy_collects_until_the_writer_is_done(autojump_clock: MockClock, nursery: trio.Nursery) -> None:
    """While a batch is written, messages collect; they go as one batch when it is done."""
    stage = Stage()
    nursery.start_soon(stage.batcher.run)
    with stage.batcher.writing():
        for number in (1, 2, 3):
            await stage.messages_send.send(message(number))
            await trio.testing.wait_all_tasks_blocked()
        began = trio.current_time()

    assert [1, 2, 3] == await stage.next()
    assert began == trio.current_time()


async def test_batch_busy_flushes_after_the_longest_wait(autojump_clock: MockClock, nursery: trio.Nursery) -> None:
    """A writer that takes long holds back a batch for INGEST_BATCH_MS at most."""
    stage = Stage()
    nursery.start_soon(stage.batcher.run)
    began = trio.current_time()
    with stage.batcher.writing():
        await stage.messages_send.send(message(1))

        assert [1] == await stage.next()
        assert WAIT == pytest.approx(trio.current_time() - began)


async def test_batch_full_goes_at_once_although_busy(autojump_clock: MockClock, nursery: trio.Nursery) -> None:
    """A full batch goes to the next writer without waiting for the one that is under way."""
    stage = Stage(size_max=3)
    nursery.start_soon(stage.batcher.run)
    began = trio.current_time()
    with stage.batcher.writing():
        for number in range(5):
            await stage.messages_send.send(message(number))

        assert [0, 1, 2] == await stage.next()
        assert began == trio.current_time()


async def test_batch_close_flushes_the_rest(autojump_clock: MockClock, nursery: trio.Nursery) -> None:
    """When nothing more will come, what is left is flushed and the batch channel is closed."""
    stage = Stage()
    nursery.start_soon(stage.batcher.run)
    with stage.batcher.writing():
        await stage.messages_send.send(message(1))
        await trio.testing.wait_all_tasks_blocked()
        stage.messages_send.close()

        assert [1] == await stage.next()
    with pytest.raises(trio.EndOfChannel):
        await stage.next()


async def test_batch_blocked_writers_stop_the_intake(nursery: trio.Nursery) -> None:
    """Backpressure, counted exactly: a batcher without a writer holds one batch, the queue fills, the next send
    blocks.
    """
    stage = Stage(size_max=3, queue_max=4)
    nursery.start_soon(stage.batcher.run)
    await stage.messages_send.send(message(0))
    await trio.testing.wait_all_tasks_blocked()

    for number in range(1, 5):
        stage.messages_send.send_nowait(message(number))

    with pytest.raises(trio.WouldBlock):
        stage.messages_send.send_nowait(message(5))


def test_batch_large_payloads_fill_it() -> None:
    """Dead letters carry bytes and no points: a batch is full by bytes too."""
    batch = Batch(size_max=1000)
    while not batch.add(Delivery(message(0, size=1024 * 1024), [], 0)):
        pass

    assert BATCH_MAX_BYTES // (1024 * 1024) == len(batch.deliveries)


@given(
    sizes=st.lists(st.integers(0, 12), max_size=60),
    size_max=st.integers(1, 20),
    busy=st.lists(st.booleans(), max_size=60),
)
def test_batch_loses_and_reorders_nothing(sizes: list[int], size_max: int, busy: list[bool]) -> None:
    """Whatever the load and the writers do: every message in exactly one batch, in order, and no batch beyond its
    size.
    """

    async def main() -> list[list[Delivery]]:
        stage = Stage(size_max=size_max, decode=lambda m: Delivery(m, [], sizes[int(m.topic)]))
        batches: list[list[Delivery]] = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stage.batcher.run)
            nursery.start_soon(partial(_consume, stage, batches))
            for number in range(len(sizes)):
                if number < len(busy) and busy[number]:
                    with stage.batcher.writing():
                        await trio.sleep(WAIT / 3)
                await stage.messages_send.send(message(number))
            stage.messages_send.close()
        return batches

    batches = trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))

    assert [str(n) for n in range(len(sizes))] == [d.message.topic for batch in batches for d in batch]
    for batch in batches:
        assert sum(d.points or 1 for d in batch[:-1]) < size_max


async def _consume(stage: Stage, batches: list[list[Delivery]]) -> None:
    batches.extend([batch async for batch in stage.batches_receive])
