"""What cannot be stored now although the database takes other writes: a partition that somebody has locked, a device
whose registration takes too long, a right that is missing for one tenant.

It waits here, and one writer at a time tries it, so that the others go on. In a trouble that concerns everybody nothing
comes here: then the store's probe fails, too, and each writer keeps what it has.
"""

from __future__ import annotations

from collections import deque
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Final

from traksense.model import Telemetry

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from traksense.ingest.health import Health
    from traksense.model import Delivery

VOICE: Final = "retries"

RECENT: Final = timedelta(days=1)
"""What is further from now goes into partitions of its own, with their own troubles."""


class Retries:
    """The parts of batches that wait, shared by all writers.

    Attributes:
        late: Whether some wait that are not about now: then others like them need not be tried first.
    """

    def __init__(self, health: Health) -> None:
        self._health = health
        self._parts: deque[list[Delivery]] = deque()
        self._tended = False
        self.late = False

    def __bool__(self) -> bool:
        """Whether something waits that nobody tends."""
        return bool(self._parts) and not self._tended

    @property
    def waiting(self) -> int:
        """How many parts wait; what is being tried is not among them."""
        return len(self._parts)

    def add(self, part: list[Delivery], *, late: bool = False) -> None:
        """Let a part wait."""
        self._parts.append(part)
        self.late |= late

    @contextmanager
    def tending(self) -> Iterator[None]:
        """One writer at a time; the condition holds again when nothing waits behind it."""
        self._tended = True
        try:
            yield
        finally:
            self._tended = False
            if not self._parts:
                self.late = False
                self._health.set("database", voice=VOICE)

    def take(self) -> list[Delivery]:
        """The part that has waited longest since it was tried."""
        return self._parts.popleft()

    def put_back(self, part: list[Delivery], reason: str) -> None:
        """It has failed again: whatever can go without the rest is found by halves."""
        middle = len(part) // 2
        self._parts.extend(half for half in (part[:middle], part[middle:]) if half)
        messages = sum(map(len, self._parts))
        self._health.set("database", f"{messages} messages wait while others are stored: {reason}", voice=VOICE)


def divided(part: Sequence[Delivery]) -> tuple[list[Delivery], list[Delivery]]:
    """Those that are about now, and the others."""
    recent: list[Delivery] = []
    others: list[Delivery] = []
    for delivery in part:
        now = delivery.message.received_at
        instants = (item.ts for item in delivery.items if isinstance(item, Telemetry))
        (recent if all(abs(instant - now) <= RECENT for instant in instants) else others).append(delivery)
    return recent, others
