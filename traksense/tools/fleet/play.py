"""Sends the fleet's publications through a publisher, at the fleet's rate."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Final

import attrs
import trio

if TYPE_CHECKING:
    from traksense.tools.fleet.sequence import Fleet
    from traksense.tools.fleet.tally import Tally
    from traksense.tools.publisher import Publisher

TICK_SECONDS: Final = 0.002
"""What is due within this time goes out together; it bounds what pacing costs, and what it adds to latency."""

CLOCK_STEP_SECONDS: Final = 2.0
"""A wall clock that runs away from the monotonic one by so much was set, or the machine slept: the devices follow."""


@attrs.frozen(kw_only=True)
class Limits:
    """When to stop: after so many seconds, so many messages, or whichever comes first; None is never."""

    seconds: float | None = None
    messages: int | None = None


async def play(fleet: Fleet, publisher: Publisher, tally: Tally, *, limits: Limits, qos: int = 1) -> None:
    """Publish until a limit is reached.

    A device stamps its message when it is due, and sends it when it can: while the broker is away, the devices keep
    what they measured, and send it afterwards with its own times.

    Cancellation: at any point; `tally` knows what was published.

    Trio-flavored.
    """
    clock = await _start(wait=bool(fleet.options.rate))
    seconds = math.inf if limits.seconds is None else limits.seconds
    messages = math.inf if limits.messages is None else limits.messages
    # While the broker is away, the publisher waits for it without end.
    with trio.CancelScope(deadline=clock.begin + seconds):
        while tally.published < messages:
            due, elapsed = fleet.due, clock.elapsed()
            if elapsed >= seconds or due >= seconds:
                await clock.sleep_until(seconds)
                return
            if due > elapsed:
                await clock.sleep_until(max(due, elapsed + TICK_SECONDS))
                clock.follow()
                continue
            publication = fleet.next(clock.wall(due) if fleet.options.rate else time.time())
            if publication is None:
                continue
            await publisher.publish(publication.topic, publication.payload, qos=qos, tag=publication)
            tally.publish(publication)


@attrs.define
class _Clock:
    """Seconds since the start, by the monotonic clock, and what the wall clock says then."""

    begin: float
    epoch: float

    def elapsed(self) -> float:
        return trio.current_time() - self.begin

    def wall(self, elapsed: float) -> float:
        return self.epoch + elapsed

    def follow(self) -> None:
        ahead = time.time() - self.wall(self.elapsed())
        if abs(ahead) > CLOCK_STEP_SECONDS:
            # Whole seconds, since some devices know no others.
            self.epoch += round(ahead)

    async def sleep_until(self, elapsed: float) -> None:
        await trio.sleep_until(self.begin + elapsed)


async def _start(*, wait: bool) -> _Clock:
    """Start the clock, at a whole second if there is a rate: some devices know no others."""
    now = time.time()
    epoch = float(math.ceil(now)) if wait else now
    clock = _Clock(trio.current_time() + epoch - now, epoch)
    await clock.sleep_until(0.0)
    return clock
