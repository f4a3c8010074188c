"""Whether the service can do its job now, and if not, why: what `/readyz` says, and one log line for each change."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

import attrs
import trio

if TYPE_CHECKING:
    from collections.abc import Iterable

    from traksense.ingest.ack import Acknowledger
    from traksense.ingest.ledger import Ledger

logger = logging.getLogger(__name__)

PROGRESS_CHECK_SECONDS: Final = 1.0
STALLED_AFTER_SECONDS: Final = 60.0
"""Messages wait and nothing is committed for this long: longer than a statement time-out with its retry, shorter than
anyone's patience. Chosen by guess."""


TOLD_MAX: Final = 10
"""How many reasons are logged of a condition until it holds again. Chosen by guess; `/readyz` has the present one."""

NOT_STARTED: Final = "not started yet"


@attrs.define
class Condition:
    """One thing that must hold for the service to be ready.

    Attributes:
        name: What is called in `/readyz`.
        faults: What each voice complains of, the last one last. It holds when none does.
        since: Since when it holds or does not, on Trio's clock.
        told: The reasons that were logged since then.
    """

    name: str
    faults: dict[str, str] = attrs.field(factory=lambda: {"": NOT_STARTED})
    since: float = attrs.field(factory=trio.current_time)
    told: set[str] = attrs.field(factory=set)

    @property
    def ok(self) -> bool:
        """Whether it holds."""
        return not self.faults

    @property
    def reason(self) -> str:
        """Why it does not: the newest complaint; empty if it holds."""
        return next(reversed(self.faults.values()), "")


class Health:
    """Named conditions; ready when all of them hold that decide it. The others only inform."""

    def __init__(self, names: Iterable[str], informing: Iterable[str] = ()) -> None:
        self._informing = frozenset(informing)
        self._conditions = {name: Condition(name) for name in (*names, *self._informing)}

    def set(self, name: str, reason: str | None = None, *, voice: str = "") -> None:
        """Say that a condition holds (no reason) or does not. Only changes are logged.

        Args:
            name: The condition.
            reason: Why it does not hold, as far as this voice knows.
            voice: Who says so. What one voice complains of, only the same voice takes back: that one writer can write
                says nothing about what another one is waiting for.
        """
        condition = self._conditions[name]
        ok = condition.ok
        if reason is None:
            condition.faults.pop(voice, None)
        elif condition.faults.get(voice) != reason:
            condition.faults.pop(voice, None)
            condition.faults[voice] = reason
        if condition.ok != ok:
            condition.since = trio.current_time()
            condition.told.clear()
        if condition.ok and not ok:
            logger.info("condition_holds", extra={"traksense_condition": name})
        elif not condition.ok and condition.reason not in condition.told and len(condition.told) < TOLD_MAX:
            # Voices meet one trouble in turns, and in more than one way: what was said before is no news.
            condition.told.add(condition.reason)
            extra = {"traksense_condition": name, "traksense_reason": condition.reason}
            logger.warning("condition_fails", extra=extra)

    def holds(self, name: str) -> bool:
        """Whether one condition holds."""
        return self._conditions[name].ok

    @property
    def ready(self) -> bool:
        """Whether every condition that decides it holds."""
        return all(c.ok or c.name in self._informing for c in self._conditions.values())

    def report(self) -> dict[str, dict[str, object]]:
        """Every condition, for people and machines; `seconds` is how long it has been so. Where `decides` is false, the
        service is ready all the same.
        """
        now = trio.current_time()
        none: dict[str, object] = {}
        return {
            c.name: none
            | {"ok": c.ok, "seconds": round(now - c.since, 1)}
            | ({} if c.ok else {"reason": c.reason})
            | ({"decides": False} if c.name in self._informing else {})
            for c in self._conditions.values()
        }


async def watch_progress(
    health: Health, ledger: Ledger, acknowledger: Acknowledger, *, stalled_after: float = STALLED_AFTER_SECONDS
) -> None:
    """Fail the condition "progress" when messages wait and nothing is committed for too long. Runs until cancelled."""
    ended = -1
    since = trio.current_time()
    while True:
        now = trio.current_time()
        if ledger.in_flight == 0 or ended != ledger.ended:
            ended, since = ledger.ended, now
        if now - since < stalled_after:
            health.set("progress")
        else:
            # No count of those that wait: it would be news each time (ingest_in_flight_messages has it).
            oldest = acknowledger.oldest_received_at
            health.set(
                "progress",
                f"messages wait and none was committed for more than {stalled_after:.0f} s"
                + (f"; the oldest was received at {oldest.isoformat(timespec='seconds')}" if oldest else ""),
            )
        await trio.sleep(PROGRESS_CHECK_SECONDS)
