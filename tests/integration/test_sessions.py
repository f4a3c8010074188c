"""What the database remembers of sessions: by its own clock where replicas compare, and only what still holds."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from traksense.ingest.ports import Told
from traksense.store import maintenance, sessions

HOUR = timedelta(hours=1)


def play(dsn: str, *steps: Any) -> list[Any]:
    """Functions of `sessions` with their arguments, one after the other; what they return."""

    async def run(connection: Any) -> list[Any]:
        return [await function(connection, *arguments) for function, *arguments in steps]

    return maintenance.run_once(dsn, "test_sessions", run)


@pytest.mark.parametrize("skew", [-HOUR, HOUR])
def test_a_replica_with_a_wrong_clock_lives_no_longer_and_no_shorter(database: str, skew: timedelta) -> None:
    """Its claims count while it says that it lives, and its age is not in the future."""
    wrong = datetime.now(UTC) + skew

    *_, claims = play(
        database,
        (sessions.connected, "one", "b", wrong),
        (sessions.alive, "one", wrong, Told()),
        (sessions.remember, "one", ["a"], ["a"]),
        (sessions.claims_of_others, "two", "b"),
    )

    assert frozenset({"a"}) == claims
    (later,) = play(database, (sessions.remembered, "one", "b", datetime.now(UTC) + 2 * HOUR))
    assert abs(later.last_alive - datetime.now(UTC)) < timedelta(minutes=1)


def test_a_loss_that_was_recorded_late_does_not_end_before_it_begins(database: str) -> None:
    """While the database was away connections wait in memory, with their times."""
    at = datetime.now(UTC) - HOUR

    _, _, since = play(
        database,
        (sessions.connected, "one", "b", at),
        (sessions.alive, "one", at, Told()),
        (sessions.remembered, "one", "b", at),
    )

    assert since.last_alive <= at


def test_a_claim_is_of_one_broker(database: str) -> None:
    """At another one nothing has been granted yet; what the session holds is not forgotten."""
    now = datetime.now(UTC)
    steps = [
        (sessions.connected, "one", "b", now),
        (sessions.remember, "one", ["a", "b"], ["a"]),
        (sessions.connected, "one", "b", now),
        (sessions.subscriptions, "one"),
        (sessions.connected, "one", "c", now),
        (sessions.subscriptions, "one"),
    ]

    played = play(database, *steps)

    assert (frozenset("ab"), frozenset("a")) == played[3]
    assert (frozenset("ab"), frozenset()) == played[5]


def test_a_session_that_was_left_is_nobodys(database: str) -> None:
    """It claims nothing, until the next connection; and only who has the last connection can leave it."""
    first, second = datetime.now(UTC) - HOUR, datetime.now(UTC)
    claims = (sessions.claims_of_others, "two", "b")
    steps = [
        (sessions.connected, "one", "b", first),
        (sessions.remember, "one", ["a"], ["a"]),
        (sessions.connected, "one", "b", second),
        (sessions.left, "one", first, Told(), True),
        claims,
        (sessions.left, "one", second, Told(), True),
        # The last word of a task that was still under way.
        (sessions.alive, "one", second, Told()),
        claims,
        (sessions.connected, "one", "b", datetime.now(UTC)),
        claims,
    ]

    played = play(database, *steps)

    assert [frozenset("a"), frozenset(), frozenset("a")] == [played[4], played[7], played[9]]


def test_who_leaves_while_the_broker_is_away_was_alive_before(database: str) -> None:
    """The interval at risk began when the broker went away, not at the end of the process; it is nobody's all the
    same.
    """
    at = datetime.now(UTC) - HOUR
    steps = [
        (sessions.connected, "one", "b", at),
        (sessions.remember, "one", ["a"], ["a"]),
        (sessions.left, "one", at, Told(), False),
        (sessions.claims_of_others, "two", "b"),
        (sessions.remembered, "one", "b", datetime.now(UTC)),
    ]

    *_, claims, remembered = play(database, *steps)

    assert (frozenset(), at) == (claims, remembered.last_alive)


def test_only_the_connection_that_is_known_is_alive(database: str) -> None:
    """A database from a backup knows another one, or none: it has to be told."""
    now = datetime.now(UTC)
    steps = [
        (sessions.alive, "one", now, Told()),
        (sessions.connected, "one", "b", now - HOUR),
        (sessions.alive, "one", now, Told()),
        (sessions.left, "one", now - HOUR, Told(), True),
        (sessions.connected, "one", "b", now),
        (sessions.alive, "one", now, Told()),
    ]

    played = play(database, *steps)

    assert [False, False, True] == [played[0], played[2], played[5]]


def test_who_was_taken_over_does_not_record_itself_again(database: str) -> None:
    """Its connection may be half open for one and a half keepalives; a time to come, though, proves nothing."""
    now = datetime.now(UTC)
    steps = [
        (sessions.connected, "one", "b", now - HOUR),
        (sessions.alive, "one", now - 2 * HOUR, Told()),
        (sessions.connected, "one", "b", now + HOUR),
        (sessions.alive, "one", now - 2 * HOUR, Told()),
    ]

    played = play(database, *steps)

    assert [True, False] == [played[1], played[3]]


def test_what_a_broker_told_is_remembered_of_that_broker(database: str) -> None:
    """By the database's clock; what is not told again stays, and another broker begins anew."""
    now = datetime.now(UTC)
    huge = 2**64 - 1
    steps = [
        (sessions.connected, "one", "b", now),
        (sessions.alive, "one", now, Told(100.0, huge, True)),
        (sessions.alive, "one", now, Told()),
        (sessions.remembered, "one", "b", now),
        (sessions.connected, "one", "b", now),
        (sessions.left, "one", now, Told(200.0, 3, False), True),
        (sessions.remembered, "one", "b", now),
        (sessions.remembered, "one", "c", now),
        (sessions.connected, "one", "c", now),
        (sessions.remembered, "one", "c", now),
    ]

    played = play(database, *steps)

    told = played[3].told
    assert 100 <= told.started_seconds < 160
    assert (huge, True) == (told.dropped, told.denies_session)
    told = played[6].told
    assert 200 <= told.started_seconds < 260
    assert (3, False) == (told.dropped, told.denies_session)
    assert (None, Told(None, None, False)) == (played[7], played[9].told)
