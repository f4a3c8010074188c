"""Nothing stops for longer than a fault lasts: how long it takes, after each, until something new is stored."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import attrs
import trio

from traksense.tools.prove.witness import Remarks

if TYPE_CHECKING:
    from collections.abc import Callable

PATIENCE_SECONDS: Final = 30.0
"""How long it may take, on a busy machine. The longest waits are the service's: 15 s between connections to the broker,
10 s for a pooled connection; and pgbouncer's 15 s between logins to a server that was away."""

LOOK_SECONDS: Final = 0.1


@attrs.define
class _Wait:
    """A fault that is over, and nothing has been stored since."""

    fault: str
    ended_at: float
    told: bool = False


class ResumeWatch:
    """Measures, fault by fault. What is acknowledged for the first time is taken for stored: the other watches look
    whether it is.

    The time in which another fault lasts does not count. A fault that may stop nothing at all, not even while it lasts,
    is over as soon as it has begun.

    Attributes:
        patience: The bound, in seconds.
        longest: By kind of fault, the longest time from its end, or from that of the last fault beside it, to the
            next message that was stored, in seconds.
        late: The times beyond the bound.
    """

    def __init__(self, patience: float = PATIENCE_SECONDS, *, clock: Callable[[], float] = trio.current_time) -> None:
        self.longest: dict[str, float] = {}
        self.late = Remarks()
        self.patience = patience
        self._clock = clock
        self._lasting = 0
        self._calm_since = clock()
        self._waits: list[_Wait] = []

    def begins(self) -> None:
        """A fault begins that may stop things."""
        self._lasting += 1

    def ends(self, fault: str) -> None:
        """It is undone."""
        self._lasting -= 1
        if not self._lasting:
            self._calm_since = self._clock()
        self.expects(fault)

    def expects(self, fault: str) -> None:
        """From now on, this fault is no excuse."""
        self._waits.append(_Wait(fault, self._clock()))

    def stored(self) -> None:
        """Something new was stored."""
        for wait in self._waits:
            self.longest[wait.fault] = max(self.longest.get(wait.fault, 0.0), self._waited(wait))
        self._waits.clear()

    def look(self) -> None:
        """Whether it takes too long by now."""
        if self._lasting:
            return
        for wait in self._waits:
            if not wait.told and self._waited(wait) > self.patience:
                wait.told = True
                self.late.add(f"{wait.fault}: nothing new was stored in the {self.patience:g} s after it")

    async def run(self) -> None:
        """Look until cancelled."""
        while True:
            self.look()
            await trio.sleep(LOOK_SECONDS)

    def _waited(self, wait: _Wait) -> float:
        if self._lasting:
            return 0.0
        return max(0.0, self._clock() - max(wait.ended_at, self._calm_since))
