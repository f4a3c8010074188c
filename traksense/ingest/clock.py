"""Whether the clock of this machine can be trusted to say that a device's is wrong.

A machine without a battery for its clock may start days in the past and take messages before NTP has set it. Devices
that are right would then be refused for being ahead, for good. So the store says what time it is there; while the two
do not agree, no message is refused for its time: it waits, and what comes behind it, until the clock is set. The
broker keeps what waits.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Final

import trio

from traksense.errors import TraksenseError

if TYPE_CHECKING:
    from collections.abc import Callable

    from traksense.ingest.health import Health
    from traksense.model import Message

_now: Final = partial(datetime.now, UTC)

TOLERANCE: Final = timedelta(seconds=60)
"""How far two clocks may differ that are right. Chosen by guess: NTP keeps them within a second, and the window in
which a device's time is accepted is a day."""


class ClockDoubtError(TraksenseError):
    """The message's time looks wrong, but so does our clock."""

    def __init__(self, message: Message) -> None:
        self.message = message
        super().__init__("the clock of this machine is in doubt")


class ClockWatch:
    """Told what time it is at the store; says what to think of our own clock.

    Attributes:
        difference: How far the store's clock is ahead of ours, or None if that was not heard yet.
    """

    def __init__(self, health: Health, *, now: Callable[[], datetime] = _now) -> None:
        self._health = health
        self._now = now
        self._trusted = trio.Event()
        self._noted = (now(), 0.0)
        self.difference: timedelta | None = None

    @property
    def doubtful(self) -> bool:
        """Whether nothing may be refused for its time: the store's clock disagrees, or has not been heard since ours
        was set.
        """
        at, ticks = self._noted
        moved = self._now() - at - timedelta(seconds=trio.current_time() - ticks)
        if abs(moved) > TOLERANCE:
            self._distrust()
        return not self._trusted.is_set()

    def note(self, difference: timedelta) -> None:
        """How far the store's clock is ahead of ours, now."""
        self.difference = difference
        self._noted = (self._now(), trio.current_time())
        if abs(difference) <= TOLERANCE:
            self._trusted.set()
            self._health.set("clock")
            return
        self._distrust()
        # Not to the second: it would be news each time.
        off = timedelta(minutes=round(abs(difference) / timedelta(minutes=1)))
        self._health.set(
            "clock",
            f"the clock of this machine is {off} (h:mm:ss) {'behind' if difference > timedelta() else 'ahead of'} the "
            "database's; messages whose time looks wrong wait until the two agree (is NTP running?)",
        )

    def store_now(self) -> datetime:
        """What time it is at the store, as far as that was heard."""
        return self._now() + (self.difference or timedelta())

    def _distrust(self) -> None:
        if self._trusted.is_set():
            self._trusted = trio.Event()

    async def wait_trusted(self) -> None:
        """Wait until a message may be refused for its time. A checkpoint."""
        while not self._trusted.is_set():
            await self._trusted.wait()
