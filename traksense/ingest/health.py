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


@attrs.define
class Condition:
    """One thing that must hold for the service to be ready."""

    name: str
    ok: bool = False
    reason: str = "not started yet"
    since: float = attrs.field(factory=trio.current_time)


class Health:
    """Named conditions; ready when all of them hold."""

    def __init__(self, names: Iterable[str]) -> None:
        self._conditions = {name: Condition(name) for name in names}

    def set(self, name: str, reason: str | None = None) -> None:
        """A condition holds (no reason) or does not, for this reason. Only changes are logged."""
        condition = self._conditions[name]
        ok = reason is None
        changed = condition.ok != ok or (not ok and condition.reason != reason)
        if not changed:
            return
        level = logging.INFO if ok else logging.WARNING
        condition.ok, condition.reason, condition.since = ok, reason or "", trio.current_time()
        extra = {"traksense_condition": name} | ({} if ok else {"traksense_reason": reason})
        logger.log(level, "condition_holds" if ok else "condition_fails", extra=extra)

    def holds(self, name: str) -> bool:
        """Whether one condition holds."""
        return self._conditions[name].ok

    @property
    def ready(self) -> bool:
        """Whether every condition holds."""
        return all(condition.ok for condition in self._conditions.values())

    def report(self) -> dict[str, dict[str, object]]:
        """Every condition, for people and machines; `seconds` is how long it has been so."""
        now = trio.current_time()
        return {
            c.name: {"ok": c.ok, "seconds": round(now - c.since, 1)} | ({} if c.ok else {"reason": c.reason})
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
            oldest = acknowledger.oldest_received_at
            health.set(
                "progress",
                f"{ledger.in_flight} messages wait and none was committed for more than {stalled_after:.0f} s"
                + (f"; the oldest was received at {oldest.isoformat(timespec='seconds')}" if oldest else ""),
            )
        await trio.sleep(PROGRESS_CHECK_SECONDS)
