"""When to flush, and the task that does it.

The policy in one paragraph: a batch goes to a writer as soon as it is full (`INGEST_BATCH_SIZE` points), or when
nothing more waits in the queue and no other batch is being written, or after `INGEST_BATCH_MS` at the latest. So an
idle system stores a message at once, in a transaction of its own; a busy one collects while the database works and
stores all of that next (group commit), so transactions grow with the load instead of multiplying; and a second writer
is used when there is a full batch for it or when the first takes longer than `INGEST_BATCH_MS`.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

import attrs
import trio

from traksense.ingest.clock import ClockDoubtError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from traksense.ingest.clock import ClockWatch
    from traksense.model import Delivery, Message

BATCH_MAX_BYTES: Final = 1024 * 1024
"""A batch is also full when its payloads reach this: dead letters carry their bytes and no points, and a `meta` may be
large. Measured: a writer holds about five times the payloads while it writes them (payload, meta, text, the driver's
buffer), so this times the writers is what an outage with large messages costs beside the queue."""

MESSAGE_WEIGHT: Final = 1
"""What a message without points (an acknowledgement, an event, a dead letter) counts towards the batch size."""


@attrs.define
class Batch:
    """Deliveries of one transaction, in receive order."""

    size_max: int
    deliveries: list[Delivery] = attrs.field(factory=list)
    size: int = 0
    payload_bytes: int = 0

    def add(self, delivery: Delivery) -> bool:
        """Append a delivery; says whether the batch is full now, and must go. The last one may overshoot the size:
        messages are not split.
        """
        self.deliveries.append(delivery)
        self.size += delivery.points or MESSAGE_WEIGHT
        self.payload_bytes += len(delivery.message.payload)
        return self.size >= self.size_max or self.payload_bytes >= BATCH_MAX_BYTES


class Batcher:
    """Takes messages, decodes them, and hands batches to whichever writer is free."""

    def __init__(
        self,
        messages_receive: trio.MemoryReceiveChannel[Message],
        batches_send: trio.MemorySendChannel[list[Delivery]],
        *,
        decode: Callable[[Message], Delivery],
        size_max: int,
        wait_max: float,
        clock: ClockWatch | None = None,
        on_flush: Callable[[Batch], None] = lambda _: None,
    ) -> None:
        self._messages_receive = messages_receive
        self._batches_send = batches_send
        self._decode = decode
        self._size_max = size_max
        self._wait_max = wait_max
        self._clock = clock
        self._doubted: Message | None = None
        self._on_flush = on_flush
        self._writing = 0
        self._lingering: trio.CancelScope | None = None

    async def run(self) -> None:
        """Batch until the message channel is closed; then flush, and close the batch channel.

        Cancellation: what was taken from the channel and not yet handed to a writer is dropped from memory. It was not
        acknowledged, so the broker still has it.
        """
        async with self._batches_send:
            open_ = True
            while open_:
                batch, open_ = await self._collect()
                if batch.deliveries:
                    self._on_flush(batch)
                    await self._batches_send.send(batch.deliveries)

    @contextmanager
    def writing(self) -> Iterator[None]:
        """A writer is busy with a batch for the duration; when it is done, a batch that lingers may go."""
        self._writing += 1
        try:
            yield
        finally:
            self._writing -= 1
            if self._lingering is not None and not self._writing:
                self._lingering.cancel()

    async def _next(self) -> Message:
        """The next message: the one that the clock made us doubt, when that can be trusted, or one from the channel."""
        doubted, self._doubted = self._doubted, None
        if doubted is None:
            return await self._messages_receive.receive()
        assert self._clock is not None  # it is what doubts
        await self._clock.wait_trusted()
        return doubted

    async def _collect(self) -> tuple[Batch, bool]:
        """Collect one batch; the second value is False once the channel is closed."""
        batch = Batch(self._size_max)
        receive_nowait, decode = self._messages_receive.receive_nowait, self._decode
        try:
            full = batch.add(decode(await self._next()))
            with trio.move_on_after(self._wait_max) as lingering:
                while not full:
                    try:
                        message = receive_nowait()
                    except trio.WouldBlock:
                        if not self._writing:
                            break
                        # `receive` takes a message or is cancelled, never both.
                        self._lingering = lingering
                        message = await self._messages_receive.receive()
                    full = batch.add(decode(message))
        except ClockDoubtError as doubt:
            # What came before it goes; it is decoded again.
            self._doubted = doubt.message
        except trio.EndOfChannel:
            return batch, False
        finally:
            self._lingering = None
        return batch, True
