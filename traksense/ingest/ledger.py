"""The ledger: every message that was received, and how it ended.

Invariant: received = stored + duplicate + dead + in flight, at every moment that another task can see. The methods do
not await, so a scrape cannot come between the two sides of an entry.
"""

from __future__ import annotations

from collections import Counter
from sys import getsizeof
from typing import TYPE_CHECKING, Final

import attrs
import trio

if TYPE_CHECKING:
    from collections.abc import Sequence

    from traksense.model import Message, Reason

MESSAGE_OVERHEAD_BYTES: Final = 640
"""What a queued message costs beside its bytes: the Message, its datetime, its place in deque, channel and window.

Measured with tracemalloc on CPython 3.11 over 100,000 queued messages and rounded up; see tests/unit/test_ledger.py.
"""


def cost_bytes(message: Message) -> int:
    """The memory that holding this message takes."""
    # A topic may take four bytes a character.
    return len(message.payload) + getsizeof(message.topic) + MESSAGE_OVERHEAD_BYTES


@attrs.define
class Ledger:
    """Plain counts; `metrics` exposes them.

    Attributes:
        received: Messages by kind, "other" where the topic is not one of ours.
        redelivered: Messages that came with the DUP flag.
        stored, duplicate, dead: How messages ended.
        dead_reasons: Dead letters by reason.
        points_stored, points_duplicate, points_conflicting: What the store made of the points.
        points_absent: Points that came without a reading: null, or not-a-number.
        empty: Messages with an empty payload; they are stored, there being nothing to store.
        in_flight: Messages received and not ended.
        in_flight_bytes: The memory they hold.
    """

    received: Counter[str] = attrs.field(factory=Counter)
    received_total: int = 0
    redelivered: int = 0
    stored: int = 0
    duplicate: int = 0
    dead: int = 0
    dead_reasons: Counter[Reason] = attrs.field(factory=Counter)
    points_stored: int = 0
    points_duplicate: int = 0
    points_conflicting: int = 0
    points_absent: int = 0
    empty: int = 0
    in_flight: int = 0
    in_flight_bytes: int = 0
    _room: trio.Event = attrs.field(factory=trio.Event, repr=False)

    def receive(self, messages: Sequence[Message]) -> None:
        """Enter messages that were just read, with their cost reckoned."""
        self.received.update([message.route.kind if message.route else "other" for message in messages])
        self.received_total += len(messages)
        self.redelivered += sum([message.redelivered for message in messages])
        self.in_flight += len(messages)
        self.in_flight_bytes += sum([message.cost_bytes for message in messages])

    def settle(self, messages: Sequence[Message]) -> None:
        """Take messages out of flight; their outcomes have just been counted."""
        self.in_flight -= len(messages)
        self.in_flight_bytes -= sum([message.cost_bytes for message in messages])
        self._room.set()
        self._room = trio.Event()

    async def wait_settled(self) -> None:
        """Wait until something leaves the ledger. A checkpoint, cancelled without effect."""
        await self._room.wait()

    @property
    def ended(self) -> int:
        """Messages that are stored, duplicate or dead."""
        return self.stored + self.duplicate + self.dead

    @property
    def balanced(self) -> bool:
        """Whether the identity holds."""
        return self.received_total == self.ended + self.in_flight
