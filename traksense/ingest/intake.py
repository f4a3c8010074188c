"""The upstream end: what the reader has read enters the ledger, the acknowledger's window and the channel."""

from __future__ import annotations

from collections import deque
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final

import trio

from traksense.ingest.ledger import cost_bytes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from traksense.ingest.ack import Acknowledger
    from traksense.ingest.decode import Router
    from traksense.ingest.ledger import Ledger
    from traksense.model import Message

_TICK: Final = timedelta(microseconds=1)
"""What a database's clock can tell apart."""


class Intake:
    """Takes messages from a reader, however many one read brought, and passes them on at the pipeline's pace."""

    def __init__(
        self,
        messages_send: trio.MemorySendChannel[Message],
        *,
        router: Router,
        ledger: Ledger,
        acknowledger: Acknowledger,
        max_bytes: int,
    ) -> None:
        self._messages_send = messages_send
        self._router = router
        self._ledger = ledger
        self._acknowledger = acknowledger
        self._max_bytes = max_bytes
        self._pending: deque[Message] = deque()
        self._pending_bytes = 0
        self._instant = datetime.min.replace(tzinfo=UTC)

    def accept(self, messages: Sequence[Message]) -> None:
        """Enter messages, in the order in which they were received. Never blocks; `flush` does.

        `received_at` becomes later than that of any message before.
        """
        route = self._router.route
        instant = self._instant
        for message in messages:
            # One read may bring hundreds, at one time by the clock, which may also go back. What a device sent without
            # a time of its own is known by this instant, so each has one to itself.
            if message.received_at > instant:
                instant = message.received_at
            else:
                instant = message.received_at = instant + _TICK
            message.route = route(message.topic)
            cost = message.cost_bytes = cost_bytes(message)
            self._pending_bytes += cost
        self._instant = instant
        self._ledger.receive(messages)
        self._acknowledger.received(messages)
        self._pending.extend(messages)

    def flush_nowait(self) -> bool:
        """Pass on what the pipeline takes without waiting; says whether that was all. The fast path of `flush`."""
        pending = self._pending
        send_nowait = self._messages_send.send_nowait
        try:
            passed_on = self._passed_on
            while pending:
                head = pending[0]
                cost = head.cost_bytes
                # As `_over_budget`, which would be called for each message.
                if passed_on and passed_on + cost > self._max_bytes:
                    break
                send_nowait(head)
                pending.popleft()
                passed_on += cost
                self._pending_bytes -= cost
        except trio.WouldBlock:
            pass
        return not pending

    async def flush(self) -> None:
        """Pass on all that was accepted; waits while the channel is full or the pipeline holds too many bytes.

        The reader does not read while this waits, so TCP holds the rest: that bounds memory even if the broker overruns
        Receive Maximum (Mosquitto before 2.0.13 does when it has a backlog).

        Cancellation: what was not passed on is kept, and the next call goes on with it. That is needed, since after a
        lost session these may be the only copies.
        """
        while not self.flush_nowait():
            head = self._pending[0]
            if self._over_budget(head):
                await self._ledger.wait_settled()
            else:
                await self._messages_send.send(head)
                self._pending_bytes -= self._pending.popleft().cost_bytes

    def close(self) -> None:
        """Tell the pipeline that nothing more will come."""
        self._messages_send.close()

    @property
    def _passed_on(self) -> int:
        """The memory that the messages in the pipeline hold."""
        return self._ledger.in_flight_bytes - self._pending_bytes

    def _over_budget(self, message: Message) -> bool:
        # A message that is larger than the whole budget may go when it is alone; otherwise it would wait for ever.
        return self._passed_on > 0 and self._passed_on + message.cost_bytes > self._max_bytes
