"""What the database remembers of sessions: by its own clock where replicas compare, and only what still holds."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

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
        (sessions.alive, "one"),
        (sessions.remember, "one", ["a"], ["a"]),
        (sessions.claims_of_others, "two", "b"),
    )

    assert frozenset({"a"}) == claims
    (later,) = play(database, (sessions.connected, "one", "b", datetime.now(UTC) + 2 * HOUR))
    assert abs(later - datetime.now(UTC)) < timedelta(minutes=1)


def test_a_loss_that_was_recorded_late_does_not_end_before_it_begins(database: str) -> None:
    """While the database was away connections wait in memory, with their times."""
    at = datetime.now(UTC) - HOUR

    _, _, since = play(
        database,
        (sessions.connected, "one", "b", at),
        (sessions.alive, "one"),
        (sessions.connected, "one", "b", at),
    )

    assert since <= at


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
