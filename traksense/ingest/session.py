"""Notices what the broker has lost of ours: our session, or a part of its queue.

It cannot be undone, but it must be known, with the interval at risk. What is remembered of earlier connections is in
the database, so that a restart in between does not hide it.

    no session      the broker says so (CONNACK). A broker that has been caught saying so and delivering the queue all
                    the same (ActiveMQ Classic does) is not believed again.
    restarted       its uptime is shorter than it would be without: what it had queued is what it had last saved
    dropped         its count has risen, on a connection or since the last one
"""

from __future__ import annotations

import logging
from collections import deque
from datetime import timedelta
from typing import TYPE_CHECKING, Final

import attrs
import trio

from traksense.errors import StoreError
from traksense.ingest.ports import Told

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from traksense.ingest.health import Health
    from traksense.ingest.ports import Remembered, SessionLog

logger = logging.getLogger(__name__)

ALIVE_EVERY_SECONDS: Final = 10.0
"""How exact the start of the interval at risk is."""

FAILURES_TOLD: Final = 2
"""So many failures of the log in a row are said, if the database is well otherwise. The health of the database, which
is looked at twice as often, has noticed by then if it is not."""

UPTIME_MARGIN_SECONDS: Final = 5.0
UPTIME_MARGIN: Final = 0.001
"""By so many seconds, and this part of it, an uptime may fall short of what the clocks say before the broker was
restarted: it is told in whole seconds, and clocks drift (a thousandth is 86 seconds a day). Chosen by guess."""

UPTIME_UNTOLD_SECONDS: Final = 60.0
"""For so long a connection may last on which the broker does not come to tell its uptime: six times Mosquitto's default
`sys_interval`. Chosen by guess."""

_ALMOST_A_SECOND: Final = timedelta(microseconds=999_999)
"""Makes the end of an interval the next whole second, as its start is the one before."""


@attrs.define(eq=False)
class _Connection:
    """A connection, and what the broker has said of itself on it.

    Attributes:
        at: When CONNACK came.
        clock: Likewise, on Trio's clock.
        session_present: What CONNACK said.
        delivered: Whether something came that was queued in the session which there was not.
        asked: When the log said what it remembers from before, on Trio's clock; None if it has not.
        remembered: What it said.
        recorded: Whether the log has it.
        last_alive: When the session was last known to be alive before; None if there was none.
        unjudged_since: Likewise, before the first of the connections that ended before the broker told its uptime.
        alive_clock: Likewise, on Trio's clock.
        uptime: What the broker said, in seconds.
        started: When the broker was started, at the latest; on Trio's clock.
        first_dropped, dropped: Its count of dropped messages, the first time and the last time it was told.
        doubtful: How much of its first count is new only if it was restarted.
        told_lost: Whether the session was said to be lost.
    """

    at: datetime
    clock: float
    session_present: bool
    delivered: bool = False
    asked: float | None = None
    remembered: Remembered | None = None
    recorded: bool = False
    last_alive: datetime | None = None
    unjudged_since: datetime | None = None
    alive_clock: float | None = None
    uptime: float | None = None
    started: float | None = None
    first_dropped: int | None = None
    dropped: int | None = None
    doubtful: int = 0
    told_lost: bool = False


class SessionWatch:
    """Implements `ingest.ports.BrokerWatch`: compares what it is told with what is known from before.

    Attributes:
        lost: How often the session was lost.
        lost_seconds: How long the interval was that the last loss put at risk.
        restarts: How often the broker was restarted and has our session from its last save.
        dropped: How many messages the broker has dropped since we were last alive before this process.
    """

    def __init__(
        self,
        log: SessionLog,
        health: Health,
        *,
        client_id: str,
        broker: str,
        now: Callable[[], datetime],
        on_connected: Callable[[bool], None] = lambda _session_present: None,
    ) -> None:
        self._log = log
        self._health = health
        self._client_id = client_id
        self._broker = broker
        self._now = now
        self._on_connected = on_connected
        self._waiting: deque[_Connection] = deque()
        self._newest: _Connection | None = None
        self._recorded: _Connection | None = None
        self._woken = trio.Event()
        self._failures = 0
        self._failure_told = False
        self._leaving = False
        # What is known of the broker, over connections and processes.
        self._started: float | None = None
        self._known_dropped: int | None = None
        self._denies_session = False
        self._denial_told = False
        self.lost = 0
        self.lost_seconds = 0.0
        self.restarts = 0
        self.dropped = 0

    # --- what the reader tells; none of it blocks -------------------------------------------------------------------

    def connected(self, session_present: bool) -> None:  # noqa: FBT001  (the flag of CONNACK)
        """CONNACK came, and said whether the broker had our session."""
        self._newest = _Connection(self._now(), trio.current_time(), session_present)
        self._waiting.append(self._newest)
        self._woken.set()
        self._on_connected(session_present)

    def delivered(self) -> None:
        """On this connection something came that was queued for us before it, whatever CONNACK said."""
        if self._newest is not None:
            self._newest.delivered = True
            self._judge_session(self._newest)

    def uptime(self, seconds: float) -> None:
        """The broker said, after CONNACK, for how long it has been running. Once a connection is enough."""
        connection = self._newest
        if connection is not None and connection.uptime is None:
            connection.uptime = seconds
            connection.started = trio.current_time() - seconds
            self._judge_uptime(connection)

    def dropped_so_far(self, count: int) -> None:
        """The broker said how many messages it has dropped since it was started."""
        connection = self._newest
        if connection is None:
            return
        before, connection.dropped = connection.dropped, count
        if before is None:
            connection.first_dropped = count
            self._judge_dropped(connection)
        else:
            self._count_dropped(_increase(before, count), count)
            if connection.recorded:
                self._known_dropped = count

    # --- the log ----------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Keep the log, until cancelled. While the database is away, connections wait in memory: a few hundred bytes
        each.
        """
        while True:
            with trio.move_on_after(ALIVE_EVERY_SECONDS):
                await self._woken.wait()
            self._woken = trio.Event()
            try:
                while self._waiting:
                    await self._record(self._waiting[0])
                if self._recorded is not None and self._health.holds("broker"):
                    known = await self._log.alive(self._client_id, self._recorded.at, self._told())
                    if not known and not self._leaving:
                        # The database is a backup, or another one: it knows a connection from before, or none.
                        await self._log.connected(self._client_id, self._broker, self._recorded.at)
                    self._note_success()
            except StoreError as error:
                self._note_failure(error)

    async def leave(self) -> None:
        """Record that nobody uses the session any more, after the last connection has ended. If the broker was away by
        then, the interval at risk has begun before.

        Error handling: what cannot be recorded is said, unless the database is known to be away; the session then seems
        to be in use for a while.
        """
        self._leaving = True
        denied = next((connection for connection in self._waiting if not connection.session_present), None)
        if denied is not None:
            # The next process finds the session that this connection has made.
            at = denied.at.isoformat(timespec="seconds")
            reason = f"at {at} the broker had no session for us: whether we had one, the database was not there to say"
            logger.warning("session_log_failed", extra={"traksense_reason": reason})
        if self._recorded is None or self._waiting or not self._health.holds("database"):
            return
        try:
            was_alive = self._health.holds("broker")
            await self._log.left(self._client_id, self._recorded.at, self._told(), was_alive)
        except StoreError as error:
            logger.warning("session_log_failed", extra={"traksense_reason": str(error)})

    async def _record(self, connection: _Connection) -> None:
        if connection.asked is None:
            # Once: an attempt to record the connection may have failed and come to pass all the same, and then it would
            # be remembered as what was before.
            connection.remembered = await self._log.remembered(self._client_id, self._broker, connection.at)
            connection.asked = trio.current_time()
        await self._log.connected(self._client_id, self._broker, connection.at)
        self._waiting.popleft()
        before, self._recorded = self._recorded, connection
        connection.recorded = True
        if before is not None and before.uptime is None:
            connection.unjudged_since = before.unjudged_since or before.last_alive
        remembered = connection.remembered
        if remembered is not None:
            now, told = connection.asked, remembered.told
            connection.last_alive, connection.alive_clock = remembered.last_alive, now - remembered.seconds
            if before is None:
                self._denies_session = bool(told.denies_session)
                self._known_dropped = told.dropped
                self._started = now - told.started_seconds if told.started_seconds is not None else None
        self._judge_session(connection)
        self._judge_uptime(connection)
        self._judge_dropped(connection)

    def _told(self) -> Told:
        if self._recorded is None:
            return Told()
        running = trio.current_time() - self._started if self._started is not None else None
        return Told(running, self._known_dropped, self._denies_session)

    def _note_failure(self, error: StoreError) -> None:
        self._failures += 1
        if self._failures >= FAILURES_TOLD and not self._failure_told and self._health.holds("database"):
            self._failure_told = True
            logger.warning("session_log_failed", extra={"traksense_reason": str(error)})

    def _note_success(self) -> None:
        self._failures = 0
        if self._failure_told:
            self._failure_told = False
            logger.info("session_log_works")

    # --- what comes of it: each comparison once both sides are known ------------------------------------------------

    def _judge_session(self, connection: _Connection) -> None:
        if not connection.recorded:
            return
        if connection.session_present:
            self._denies_session = False
        elif connection.delivered:
            if not self._denies_session:
                self._denies_session = True
                logger.warning("session_kept", extra=self._at_risk(connection.last_alive, connection.at))
        elif connection.last_alive is None or connection.told_lost:
            return
        elif self._denies_session:
            if not self._denial_told:
                self._denial_told = True
                logger.warning("session_unknown", extra=self._at_risk(connection.last_alive, connection.at))
        else:
            connection.told_lost = True
            self.lost += 1
            self.lost_seconds = (connection.at - connection.last_alive).total_seconds()
            logger.error("session_lost", extra=self._at_risk(connection.last_alive, connection.at))

    def _judge_uptime(self, connection: _Connection) -> None:
        """The uptime is that of some time after CONNACK: had the broker run all the time since it was started, as far
        as we know, it could not be shorter than the time from there to CONNACK. If the broker has been running since
        long before the session was last alive, however, it is the clocks that differ: the database's was set, or the
        broker's host was suspended.
        """
        if not connection.recorded or connection.uptime is None or connection.started is None:
            return
        # When the session was alive, the broker was running.
        known = self._started if self._started is not None else connection.alive_clock
        due = connection.clock - known if known is not None else 0.0
        if connection.uptime >= due - UPTIME_MARGIN_SECONDS - UPTIME_MARGIN * due:
            # What comes late makes it seem younger than it is.
            earlier = self._started if self._started is not None else connection.started
            self._started = min(connection.started, earlier)
            return
        self._started = connection.started
        alive = connection.alive_clock
        if alive is not None and connection.started < alive - UPTIME_UNTOLD_SECONDS:
            return
        if connection.first_dropped is None:
            self._known_dropped = 0
        self._count_dropped(connection.doubtful, connection.dropped, since=connection.last_alive)
        connection.doubtful = 0
        if connection.session_present and connection.last_alive is not None:
            # Without a session there is no queue of which a part could be missing: all of it is, and that was said.
            self.restarts += 1
            since = connection.unjudged_since or connection.last_alive
            # The uptime was told in whole seconds.
            started = self._now() - timedelta(seconds=trio.current_time() - connection.started - 1)
            logger.warning("broker_restarted", extra=self._at_risk(min(since, started), started))

    def _judge_dropped(self, connection: _Connection) -> None:
        if not connection.recorded or connection.first_dropped is None:
            return
        before, self._known_dropped = self._known_dropped, connection.dropped
        # Without a session, what was dropped of ours is lost with the rest; and it may be another broker's count.
        if before is not None and (connection.session_present or self._denies_session):
            new = _increase(before, connection.first_dropped)
            connection.doubtful = connection.first_dropped - new
            self._count_dropped(new, connection.first_dropped, since=connection.last_alive)

    def _count_dropped(self, new: int, count: int | None, *, since: datetime | None = None) -> None:
        """`since` is when the former count was known last; without it, it was a moment ago."""
        if not new:
            return
        self.dropped += new
        extra: dict[str, object] = {"traksense_dropped": new, "traksense_total": count}
        if since is not None:
            extra["traksense_since"] = since.isoformat(timespec="seconds")
        logger.error("broker_dropped_messages", extra=extra)

    def _at_risk(self, since: datetime | None, until: datetime) -> dict[str, object]:
        extra: dict[str, object] = {"traksense_client_id": self._client_id}
        if since is not None:
            extra["traksense_at_risk_from"] = since.isoformat(timespec="seconds")
            extra["traksense_at_risk_until"] = (until + _ALMOST_A_SECOND).isoformat(timespec="seconds")
        return extra


def _increase(before: int, count: int) -> int:
    """A broker that was restarted counts from 0 again."""
    return count - before if count >= before else count
