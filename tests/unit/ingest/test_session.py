"""What the broker lost of ours: sessions, queues, messages; and what is said when the log cannot be kept."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import attrs
import pytest
import trio

from traksense.errors import StoreUnavailableError
from traksense.ingest.health import Health
from traksense.ingest.ports import Remembered, Told
from traksense.ingest.session import SessionWatch

if TYPE_CHECKING:
    from collections.abc import Callable

    from trio.testing import MockClock

NOON = datetime(2026, 11, 20, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)
TWO_HOURS_AGO = Remembered(NOON - 2 * HOUR, 7200.0, Told())


def alive(minutes: float, **told: Any) -> Remembered:
    """Known from before: alive so many minutes ago."""
    return Remembered(NOON - timedelta(minutes=minutes), minutes * 60, Told(**told))


class MemorySessionLog:
    """Remembers one session; fails as often as it is told to."""

    def __init__(self, remembered: Remembered | None, failures: float = 0) -> None:
        self.last = remembered
        self.failures = failures
        self.unknown_outcomes = 0
        self.alive_at: list[float] = []
        self.left_at: list[tuple[datetime, bool]] = []
        self.connected_at: datetime | None = None
        self.told = Told()
        self._noted = trio.current_time()

    async def remembered(self, client_id: str, broker: str, at: datetime) -> Remembered | None:
        await self._answer()
        passed, last = trio.current_time() - self._noted, self.last
        if last is None:
            return None
        started = last.told.started_seconds
        told = attrs.evolve(last.told, started_seconds=started + passed if started is not None else None)
        return Remembered(last.last_alive, last.seconds + passed, told)

    async def connected(self, client_id: str, broker: str, at: datetime) -> None:
        await self._answer()
        self.last, self.connected_at, self._noted = Remembered(at, 0.0, self.told), at, trio.current_time()
        if self.unknown_outcomes:
            self.unknown_outcomes -= 1
            raise StoreUnavailableError("the connection was lost at COMMIT")

    async def alive(self, client_id: str, connected_at: datetime, told: Told) -> bool:
        await self._answer()
        if connected_at != self.connected_at:
            return False
        self.alive_at.append(trio.current_time())
        self.told = told
        return True

    async def left(self, client_id: str, connected_at: datetime, told: Told, was_alive: bool) -> None:
        await self._answer()
        self.left_at.append((connected_at, was_alive))
        self.told = told

    async def _answer(self) -> None:
        await trio.lowlevel.checkpoint()
        if self.failures:
            self.failures -= 1
            raise StoreUnavailableError("away")


@pytest.fixture
async def health() -> Health:
    """Of a service that is connected to both servers."""
    health = Health(["broker", "database"])
    health.set("broker")
    health.set("database")
    return health


@pytest.fixture
def start(nursery: trio.Nursery, health: Health) -> Callable[[MemorySessionLog], SessionWatch]:
    """Starts a watch that keeps this log; its wall clock goes with the test's."""

    def start(log: MemorySessionLog) -> SessionWatch:
        began = trio.current_time()
        watch = SessionWatch(
            log,
            health,
            client_id="c",
            broker="mqtt://h",
            now=lambda: NOON + timedelta(seconds=trio.current_time() - began),
        )
        nursery.start_soon(watch.run)
        return watch

    return start


def said(caplog: pytest.LogCaptureFixture) -> list[tuple[str, ...]]:
    """The events, each with the interval at risk, if it has one."""
    names = ("traksense_at_risk_from", "traksense_at_risk_until")
    return [
        (r.getMessage(), *(r.__dict__[name][11:19] for name in names if name in r.__dict__)) for r in caplog.records
    ]


@pytest.mark.parametrize("present", [False, True])
@pytest.mark.parametrize("remembered", [TWO_HOURS_AGO, None])
async def test_session_lost_is_noticed(
    autojump_clock: MockClock,
    start: Callable[[MemorySessionLog], SessionWatch],
    caplog: pytest.LogCaptureFixture,
    remembered: Remembered | None,
    present: bool,
) -> None:
    """A session that we had and the broker no longer has is lost: counted, and logged with the interval at risk."""
    watch = start(MemorySessionLog(remembered, failures=2))
    watch.connected(present)
    await trio.sleep(60)

    lost = remembered is not None and not present
    assert (lost, 7200.0 * lost) == (watch.lost, watch.lost_seconds)
    assert [("session_lost", "10:00:00", "12:00:00")] * lost == [s for s in said(caplog) if s[0] == "session_lost"]


@pytest.mark.parametrize("remembered", [TWO_HOURS_AGO, None])
async def test_connection_recorded_with_unknown_outcome_is_not_its_own_past(
    autojump_clock: MockClock,
    start: Callable[[MemorySessionLog], SessionWatch],
    caplog: pytest.LogCaptureFixture,
    remembered: Remembered | None,
) -> None:
    """A COMMIT that failed may have come to pass all the same; the loss is that of the session before, if any."""
    log = MemorySessionLog(remembered)
    log.unknown_outcomes = 2
    watch = start(log)
    watch.connected(False)
    await trio.sleep(60)

    lost = [("session_lost", "10:00:00", "12:00:00")] if remembered is not None else []
    assert lost == [s for s in said(caplog) if s[0] == "session_lost"]


async def test_session_alive_is_recorded_while_connected(
    autojump_clock: MockClock, start: Callable[[MemorySessionLog], SessionWatch], health: Health
) -> None:
    """Only while the broker is there, so that the interval at risk begins when it went away."""
    log = MemorySessionLog(None)
    health.set("broker", "away")
    watch = start(log)
    watch.connected(True)
    await trio.sleep(35)
    assert [] == log.alive_at
    health.set("broker")
    await trio.sleep(35)

    assert len(log.alive_at) in (3, 4)


async def test_database_from_a_backup_learns_again_that_we_are_connected(
    autojump_clock: MockClock, start: Callable[[MemorySessionLog], SessionWatch], caplog: pytest.LogCaptureFixture
) -> None:
    """It knows an older connection, or none, perhaps of a session that was left: nobody connects for its sake. Nothing
    is said, and what we have left stays so.
    """
    log = MemorySessionLog(None)
    watch = start(log)
    watch.connected(True)
    await trio.sleep(15)
    log.connected_at = NOON - HOUR
    await trio.sleep(25)
    assert NOON == log.connected_at
    assert trio.current_time() - log.alive_at[-1] <= 10

    await watch.leave()
    log.connected_at = None
    await trio.sleep(25)

    assert (None, []) == (log.connected_at, said(caplog))


@pytest.mark.parametrize("late", [False, True], ids=["before the log answers", "after the alarm"])
async def test_broker_that_denies_a_session_and_delivers_it_is_found_out(
    autojump_clock: MockClock,
    start: Callable[[MemorySessionLog], SessionWatch],
    caplog: pytest.LogCaptureFixture,
    late: bool,
) -> None:
    """The proof keeps the alarm away, or takes it back; from then on the broker's word counts for nothing, also in the
    next process, until it says that there is a session.
    """
    log = MemorySessionLog(TWO_HOURS_AGO)
    watch = start(log)
    watch.connected(False)
    if late:
        await trio.sleep(1)
    watch.delivered()
    await trio.sleep(20)
    for _ in range(3):
        watch.connected(False)
        await trio.sleep(20)
    assert [*(["session_lost"] * late), "session_kept", "session_unknown"] == [event for event, *_ in said(caplog)]
    assert (int(late), True) == (watch.lost, log.told.denies_session)

    caplog.clear()
    following = start(log)
    for present in (False, True, False):
        following.connected(present)
        await trio.sleep(20)

    assert ["session_unknown", "session_lost"] == [event for event, *_ in said(caplog)]


@pytest.mark.parametrize(
    ("remembered", "uptime", "restarted"),
    [
        (alive(30, started_seconds=7200.0), 7200, False),
        (alive(30, started_seconds=7200.0), 7190, False),
        (alive(30, started_seconds=1900.0), 1890, False),
        (alive(30, started_seconds=1900.0), 1850, True),
        # The database's clock was set by an hour, or the broker's host was suspended.
        (alive(30, started_seconds=10800.0), 7200, False),
        (alive(30, started_seconds=7200.0), 600, True),
        (alive(30), 1800, False),
        (alive(30), 600, True),
        (alive(0.1, started_seconds=20.0), 3, True),
        (alive(0.1, started_seconds=20.0), 16, False),
        (None, 3, False),
    ],
)
@pytest.mark.parametrize("present", [True, False])
@pytest.mark.parametrize("failures", [0, 3])
async def test_broker_that_was_restarted_is_said(
    autojump_clock: MockClock,
    start: Callable[[MemorySessionLog], SessionWatch],
    caplog: pytest.LogCaptureFixture,
    remembered: Remembered | None,
    uptime: float,
    restarted: bool,
    present: bool,
    failures: int,
) -> None:
    """An uptime that is too short for a broker that was alive when we were, by more than clocks may differ; once, and
    not where the session is lost, since then all of its queue is.
    """
    watch = start(MemorySessionLog(remembered, failures=failures))
    watch.connected(present)
    watch.uptime(uptime)
    await trio.sleep(100)
    watch.connected(present)
    watch.uptime(uptime + 100)
    await trio.sleep(100)

    assert (restarted and present) == watch.restarts
    intervals = [interval for event, *interval in said(caplog) if event == "broker_restarted"]
    if watch.restarts and remembered is not None and uptime == 600:
        # Mosquitto's 600 seconds may be up to a second fewer.
        assert [["11:30:00", "11:50:01"]] == intervals
    assert watch.restarts == len(intervals)


async def test_restart_after_a_connection_that_told_nothing_is_of_both(
    autojump_clock: MockClock, start: Callable[[MemorySessionLog], SessionWatch], caplog: pytest.LogCaptureFixture
) -> None:
    """Killed again before it had told its uptime: what the first kill lost is in the interval, too."""
    watch = start(MemorySessionLog(alive(30, started_seconds=7200.0)))
    watch.connected(True)
    await trio.sleep(4)
    watch.connected(True)
    await trio.sleep(2)
    watch.connected(True)
    watch.uptime(1)
    await trio.sleep(30)
    watch.connected(True)
    watch.uptime(0.5)
    await trio.sleep(1)

    assert [
        ("broker_restarted", "11:30:00", "12:00:06"),
        ("broker_restarted", "12:00:06", "12:00:37"),
    ] == said(caplog)


@pytest.mark.parametrize(
    ("known", "first", "counted"), [(None, 270, 0), (270, 270, 0), (270, 275, 5), (270, 3, 3), (0, 19_000, 19_000)]
)
@pytest.mark.parametrize("failures", [0, 3])
async def test_drops_while_we_were_away_are_counted_and_said(
    autojump_clock: MockClock,
    start: Callable[[MemorySessionLog], SessionWatch],
    caplog: pytest.LogCaptureFixture,
    known: int | None,
    first: int,
    counted: int,
    failures: int,
) -> None:
    """The first count of a process goes on from what is remembered, with since when; whether the database answers at
    once or later. A count that has fallen is that of a broker that was restarted.
    """
    log = MemorySessionLog(alive(30, dropped=known), failures=failures)
    watch = start(log)
    watch.connected(True)
    watch.dropped_so_far(first)
    await trio.sleep(60)
    assert counted == watch.dropped
    watch.dropped_so_far(first + 2)
    watch.dropped_so_far(1)
    await trio.sleep(60)

    assert (counted + 3, 1) == (watch.dropped, log.told.dropped)
    drops = [r.__dict__ for r in caplog.records if r.getMessage() == "broker_dropped_messages"]
    expected: list[tuple[int, str | None]] = [(counted, "2026-11-20T11:30:00+00:00")] if counted else []
    assert [*expected, (2, None), (1, None)] == [(d["traksense_dropped"], d.get("traksense_since")) for d in drops]


async def test_count_of_a_broker_without_our_session_is_a_new_one(
    autojump_clock: MockClock, start: Callable[[MemorySessionLog], SessionWatch]
) -> None:
    """It may be another broker's, and what was queued for us is said to be lost; what it drops from now on counts."""
    log = MemorySessionLog(alive(30, dropped=270, started_seconds=7200.0))
    watch = start(log)
    watch.connected(False)
    watch.dropped_so_far(5000)
    watch.uptime(60)
    await trio.sleep(15)
    watch.dropped_so_far(5001)
    await trio.sleep(15)

    assert (1, 1, 5001) == (watch.lost, watch.dropped, log.told.dropped)


async def test_drops_over_connections_are_counted_once(
    autojump_clock: MockClock, start: Callable[[MemorySessionLog], SessionWatch], health: Health
) -> None:
    """Also those of connections that ended while the database was away."""
    log = MemorySessionLog(alive(30, dropped=10), failures=5)
    watch = start(log)
    for count in (10, 12, 15):
        watch.connected(True)
        watch.dropped_so_far(count)
        watch.dropped_so_far(count + 1)
    await trio.sleep(100)

    # 10, 11; 12, 13; 15, 16
    assert (6, 16) == (watch.dropped, log.told.dropped)


@pytest.mark.parametrize("uptime_first", [True, False])
async def test_restart_is_told_apart_though_the_count_is_higher(
    autojump_clock: MockClock, start: Callable[[MemorySessionLog], SessionWatch], uptime_first: bool
) -> None:
    """270 were known and 275 are said: 5 more, or 275 since a restart in between, which the uptime shows."""
    watch = start(MemorySessionLog(alive(30, dropped=270, started_seconds=7200.0)))
    watch.connected(True)
    if not uptime_first:
        watch.dropped_so_far(275)
        await trio.sleep(5)
        assert 5 == watch.dropped
    watch.uptime(60)
    await trio.sleep(5)
    if uptime_first:
        watch.dropped_so_far(275)

    assert 275 == watch.dropped


async def test_broken_log_is_said_once_and_so_is_its_end(
    autojump_clock: MockClock,
    start: Callable[[MemorySessionLog], SessionWatch],
    health: Health,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """If the database is away, its own condition says so; a log that fails alone is a line of its own."""
    caplog.set_level("INFO", "traksense.ingest.session")
    log = MemorySessionLog(None, failures=float("inf"))
    watch = start(log)
    health.set("database", "away")
    watch.connected(True)
    await trio.sleep(60)
    assert "session_log_failed" not in caplog.text
    health.set("database")
    await trio.sleep(60)
    log.failures = 0
    await trio.sleep(60)

    assert ["session_log_failed", "session_log_works"] == [event for event, *_ in said(caplog) if "session" in event]


async def test_leaving_is_recorded_for_the_connection_that_was_ours(
    autojump_clock: MockClock,
    start: Callable[[MemorySessionLog], SessionWatch],
    health: Health,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """With what is known of the broker, and whether it was there; a process that never was connected has left nothing,
    and a failure is said.
    """
    log = MemorySessionLog(None)
    watch = start(log)
    await watch.leave()
    watch.connected(True)
    watch.dropped_so_far(4)
    await trio.sleep(1)
    await watch.leave()
    health.set("broker", "away")
    await watch.leave()
    assert ([(NOON, True), (NOON, False)], 4) == (log.left_at, log.told.dropped)
    log.failures = 1
    await watch.leave()

    assert ["session_log_failed"] == [event for event, *_ in said(caplog) if "session" in event]


@pytest.mark.parametrize("present", [True, False])
async def test_loss_that_the_next_process_cannot_see_is_said_at_the_end(
    autojump_clock: MockClock,
    start: Callable[[MemorySessionLog], SessionWatch],
    health: Health,
    caplog: pytest.LogCaptureFixture,
    present: bool,
) -> None:
    """The database was away from this connection on, and the next finds the session that this one has made."""
    health.set("database", "away")
    log = MemorySessionLog(TWO_HOURS_AGO, failures=float("inf"))
    watch = start(log)
    watch.connected(present)
    await trio.sleep(60)
    await watch.leave()

    reasons = [r.__dict__["traksense_reason"] for r in caplog.records if r.getMessage() == "session_log_failed"]
    assert present == (not reasons)
    assert all("2026-11-20T12:00:00+00:00 the broker had no session" in reason for reason in reasons)
