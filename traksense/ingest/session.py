"""Notices a lost session: the broker has forgotten us, and with us what it had queued.

It cannot be undone, but it must be known, with the interval at risk. What is remembered of earlier connections is in
the database, so that a restart in between does not hide it.
"""

from __future__ import annotations

import logging
from collections import deque
from typing import TYPE_CHECKING, Final

import trio

from traksense.errors import StoreError

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from traksense.ingest.health import Health
    from traksense.ingest.ports import SessionLog

logger = logging.getLogger(__name__)

ALIVE_EVERY_SECONDS: Final = 10.0
"""How exact the start of the interval at risk is."""


class SessionWatch:
    """Told of each connection; compares with what the log remembers."""

    def __init__(
        self, log: SessionLog, health: Health, *, client_id: str, broker: str, now: Callable[[], datetime]
    ) -> None:
        self._log = log
        self._health = health
        self._client_id = client_id
        self._broker = broker
        self._now = now
        self._connections: deque[tuple[datetime, bool]] = deque()
        self._connected = trio.Event()
        self.lost = 0
        self.lost_seconds = 0.0

    def connected(self, session_present: bool) -> None:  # noqa: FBT001  (the flag of CONNACK)
        """CONNACK came, and said whether the broker had our session. Never blocks."""
        self._connections.append((self._now(), session_present))
        self._connected.set()

    async def run(self) -> None:
        """Keep the log, until cancelled. While the database is away, connections wait in memory: a few dozen bytes
        each.
        """
        while True:
            with trio.move_on_after(ALIVE_EVERY_SECONDS):
                await self._connected.wait()
            self._connected = trio.Event()
            try:
                while self._connections:
                    at, session_present = self._connections[0]
                    last_alive = await self._log.connected(self._client_id, self._broker, at)
                    self._connections.popleft()
                    if last_alive is not None and not session_present:
                        self._report(last_alive, at)
                if self._health.holds("broker"):
                    await self._log.alive(self._client_id)
            except StoreError as error:
                logger.debug("session_log_failed", extra={"traksense_reason": str(error)})

    def _report(self, since: datetime, until: datetime) -> None:
        self.lost += 1
        self.lost_seconds = (until - since).total_seconds()
        logger.error(
            "session_lost",
            extra={
                "traksense_client_id": self._client_id,
                "traksense_at_risk_from": since.isoformat(timespec="seconds"),
                "traksense_at_risk_until": until.isoformat(timespec="seconds"),
            },
        )
